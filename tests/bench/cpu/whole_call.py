"""What a whole trivium.attention call costs beyond selecting and attending.

    python tests/bench/cpu/whole_call.py --n 8192 16384 --json FILE

For tensors in Trivium's memory, and for torch's own, which are copied once: wall clock
of the call against what the plugin spent in its kernels, and the rate of the copy
against that of one memcpy. Calls alternate; the least of each is told, which other
programs disturb least.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import trivium


def call(tensors, strategy):
    started = time.perf_counter()
    _, report = trivium.attention(*tensors, strategy=strategy, return_report=True)
    return 1e3 * (time.perf_counter() - started), report.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[8192, 16384])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    a = parser.parse_args()
    results = []
    for n in a.n:
        foreign = [torch.randn(1, a.heads, n, a.dim).bfloat16() for _ in range(3)]
        own = [trivium.empty(tuple(t.shape), "bfloat16", like="torch").copy_(t) for t in foreign]
        target = torch.empty_like(foreign[0])
        for strategy in ("dense", "streaming"):
            taken = {"own": [], "foreign": [], "memcpy": []}
            for r in range(a.rounds + 1):
                for kind, tensors in (("own", own), ("foreign", foreign)):
                    measured = call(tensors, strategy)
                    if r:
                        taken[kind].append(measured)
                started = time.perf_counter()
                for t in foreign:
                    target.copy_(t)
                if r:
                    taken["memcpy"].append(1e3 * (time.perf_counter() - started))
            row = {"n": n, "strategy": strategy, "memcpy_ms": min(taken["memcpy"])}
            for kind in ("own", "foreign"):
                whole = min(w for w, _ in taken[kind])
                beyond = min(w - t.select_ms - t.attend_ms for w, t in taken[kind])
                row[kind] = {"call_ms": whole, "beyond_kernels_ms": beyond, "beyond_percent": 100 * beyond / whole,
                             "copy_ms": min(t.copy_ms for _, t in taken[kind])}  # fmt: skip
            results.append(row)
            print(json.dumps(row))
    if a.json:
        with open(a.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
