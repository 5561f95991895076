"""What STRING costs over plain rope: the same dense kernel, the same process, in turn.

    python tests/bench/string_cost.py --n 16384 --dtype float32

Each round runs both once, in an order that alternates, on tensors in shared memory;
the ratio of a round is paired, so what else the machine does meets both alike. Wall
clock wants a machine at rest; the time that the plugin's threads were on a processor,
which is told beside it, bears a busy one. Prints a line of JSON: ratios with 95 %
bootstrap intervals over rounds, and what share of the tiles STRING's border crosses.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import trivium
from trivium.eval import interval


TILE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    a = parser.parse_args()
    print(json.dumps(compare(a)))


def compare(a: argparse.Namespace) -> dict[str, Any]:
    inputs = [filled((1, heads, a.n, a.dim), a.dtype, seed) for seed, heads in enumerate((a.heads, a.kv_heads, a.kv_heads))]
    plans = {
        "rope": trivium.position("rope").plan(head_dim=a.dim, length=a.n, rope_theta=1e6),
        "string": trivium.position("string", train_length=a.n).plan(head_dim=a.dim, length=a.n, rope_theta=1e6),
    }
    clocks = {"wall": time.perf_counter, "cpu": lambda: on_processor(plugin)}
    trivium.attention(*inputs, strategy="dense", threads=a.threads)  # starts the plugin
    plugin = next(p["pid"] for p in trivium.doctor().plugins if p["kind"] == "attention")
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in plans} for clock in clocks}
    for round_ in range(a.rounds + 1):
        for name in sorted(plans, reverse=bool(round_ % 2)):
            started = {clock: read() for clock, read in clocks.items()}
            _, report = trivium.attention(*inputs, strategy="dense", position=plans[name], return_report=True, threads=a.threads)
            for clock, read in clocks.items():
                if round_:  # the first warms up
                    times[clock][name].append(read() - started[clock])
    blocks, shift = a.n // TILE, a.n // 3
    crossed = 2 * sum(1 for i in range(blocks) if (i + 1) * TILE > shift)
    return {
        "n": a.n, "heads": [a.heads, a.kv_heads], "dim": a.dim, "dtype": a.dtype, "kernel": report.backend, "threads": report.threads,
        "rounds": a.rounds, "crossed_tiles": round(crossed / (blocks * (blocks + 1) / 2), 4),
        **{clock: ratios(found["string"], found["rope"]) for clock, found in times.items()},
    }  # fmt: skip


def ratios(string: list[float], rope: list[float]) -> dict[str, Any]:
    """Medians in seconds, their ratio, the mean paired ratio with its interval, and the ratio of the least."""
    paired = interval([s / r for s, r in zip(string, rope)])
    return {
        "rope_s": round(float(np.median(rope)), 4), "string_s": round(float(np.median(string)), 4),
        "of_medians": round(float(np.median(string) / np.median(rope)), 4),
        "paired": [round(x, 4) for x in (paired.mean, paired.low, paired.high)], "of_least": round(min(string) / min(rope), 4),
    }  # fmt: skip


def on_processor(pid: int) -> float:
    """Seconds that the threads of a process have run."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def filled(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """A tensor in shared memory, so that no copy is timed."""
    import torch

    made = trivium.empty(shape, dtype, like="torch")
    made.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    return made


if __name__ == "__main__":
    main()
