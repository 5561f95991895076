"""What a call on CUDA tensors costs through the plugin process: host time, device time and gaps between calls.

    python tests/bench/gpu/through_plugin.py [--json FILE]

host      time until the call returns, nothing else on the device (median, 90th percentile); before it the host has
          waited for the device, which after some milliseconds makes all that it does several times as slow
torch     a small call of torch's own attention after as long a wait, for comparison
queued    time until the call returns, one call after another as a model makes them
device    time between the first and the last of many calls that were queued behind a long kernel, so that the
          host does not count; the events by which processes wait for each other do
steady    the same without the long kernel: what a model sees
gap       steady - device, over device; the card's clock falls under steady work, which counts here
cost      of STRING, of a whole call
alone     the dense kernel of 8k in this process, half a second at a time in turn with as much through the plugin, so
          that both have the card's clock of steady work
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any, Callable

import torch
import bench
import driver
import inputs
import trivium

DEVICE = "cuda:0"


def host_times(call: Callable[[], Any], repeats: int = 300, before: Callable[[], Any] = torch.cuda.synchronize) -> list[float]:
    """Microseconds until each of many calls returns; by default the device is idle at its start."""
    times = []
    for _ in range(repeats):
        before()
        began = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - began))
    torch.cuda.synchronize()
    return times


def torch_after(call: Callable[[], Any], repeats: int = 100) -> float:
    """Microseconds until a small call of torch's attention returns, after the device was waited for as behind `call`."""
    q, k, v = (x.transpose(1, 2) for x in make(256))

    def before() -> None:
        call()
        torch.cuda.synchronize()

    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # noqa: E731
    return statistics.median(host_times(attend, repeats, before))


def device_time(call: Callable[[], Any], calls: int, ahead: bool) -> float:
    """Milliseconds of the device for each of many calls, which the host gets ahead of or not."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if ahead:
        torch.cuda._sleep(int(2e9 * 0.0004 * calls))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def measure(name: str, call: Callable[[], Any], calls: int = 100) -> dict[str, Any]:
    for _ in range(10):
        call()
    host = host_times(call)
    beside = torch_after(call)
    queued = statistics.median(host_times(call, calls, lambda: None))
    device = statistics.median(device_time(call, calls, True) for _ in range(5))
    steady = statistics.median(device_time(call, calls, False) for _ in range(5))
    return {
        "name": name, "host_us": round(statistics.median(host), 1), "host_p90_us": round(sorted(host)[int(0.9 * len(host))], 1),
        "torch_us": round(beside, 1), "queued_us": round(queued, 1),
        "device_ms": round(device, 4), "steady_ms": round(steady, 4), "gap": round(steady / device - 1, 3),
    }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    us = " ".join(f"{row[x]:8.1f}" for x in ("host_us", "host_p90_us", "torch_us", "queued_us"))
    print(f"{row['name']:26} {us} {row['device_ms']:10.4f} {row['steady_ms']:10.4f} {row['gap']:7.1%}", flush=True)


def make(n: int, n_q: int | None = None) -> tuple[Any, Any, Any]:
    generator = torch.Generator(DEVICE).manual_seed(n)
    shapes = ((n_q or n, 32), (n, 8), (n, 8))
    q, k, v = (torch.randn(1, rows, heads, 128, device=DEVICE, generator=generator) for rows, heads in shapes)
    k[:, :4] += 1.5  # something to select
    q += 0.2
    return tuple(x.to(torch.bfloat16) for x in (q, k, v))


def cases() -> list[tuple[str, Callable[[], Any], int]]:
    position = trivium.position("string", train_length=8192)
    made: list[tuple[str, Callable[[], Any], int]] = []

    def add(name: str, n: int, n_q: int | None = None, calls: int = 100, **options: Any) -> None:
        q, k, v = make(n, n_q)
        if n_q:
            options["q_offset"] = n - n_q
        made.append((name, lambda: trivium.attention(q, k, v, layout="bnhd", **options), calls))

    add("dense 256", 256, strategy="dense")
    add("dense 8k", 8192, strategy="dense")
    add("flexprefill 8k", 8192, strategy="flexprefill")
    add("dense 8k + string", 8192, strategy="dense", position=position, rope_theta=5e5)
    add("flexprefill 32k", 32768, strategy="flexprefill", calls=30)
    add("flexprefill 32k + string", 32768, strategy="flexprefill", position=position, rope_theta=5e5, calls=30)
    add("decode 8k", 8192, 1, strategy="dense")
    add("decode 64k", 65536, 1, strategy="dense")
    return made


def beside_alone(n: int = 8192, seconds: float = 0.5, rounds: int = 5) -> dict[str, Any]:
    """The dense kernel with and without the way through the plugin, in turn."""
    q, k, v = make(n)
    out, lse = torch.empty_like(q), torch.empty(1, 32, n, device=DEVICE)
    alone = driver.Attend().prepare(*(x.transpose(1, 2) for x in (q, k, v, out)), lse)
    through = lambda: trivium.attention(q, k, v, layout="bnhd", strategy="dense")  # noqa: E731
    times: dict[str, list[float]] = {"alone": [], "through": []}
    calls = int(1000 * seconds / device_time(through, 20, False))
    for _ in range(rounds):
        for name, call in (("alone", alone), ("through", through)):
            times[name].append(device_time(call, calls, False))
    medians = {f"{name}_ms": round(statistics.median(t[1:]), 4) for name, t in times.items()}
    return {"name": f"dense {n} at the clock of steady work", **medians, "gap_us": round(1000 * (medians["through_ms"] - medians["alone_ms"]), 1)}


def string_costs(rounds: int = 12) -> list[dict[str, Any]]:
    """What STRING, its border at a third, costs a whole call: over the same call without it, right before and after it."""
    rows = []
    for n, density in ((8192, None), (8192, 0.1), (32768, None), (32768, 0.1), (131072, None)):
        q, k, v = make(n)
        options: dict[str, Any] = {} if density is None else {"mask": inputs.synthetic_mask(n, density).repeat_interleave(4, 0).cpu().numpy(), "block_size": 128}
        plain = lambda: trivium.attention(q, k, v, layout="bnhd", strategy="dense", **options)  # noqa: E731
        position = trivium.position("string", train_length=n)
        string = lambda: trivium.attention(q, k, v, layout="bnhd", strategy="dense", position=position, rope_theta=5e5, **options)  # noqa: E731
        cost = bench.ratios(plain, [string], rounds=rounds if n < 131072 else 5)
        rows.append({"name": f"cost of string, {n}, {'dense' if density is None else density}", "cost": round(cost[0] - 1, 4)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    target = parser.parse_args().json
    rows = []
    print(f"{torch.cuda.get_device_name()}: {trivium.doctor().machine.get('cuda:0')}")
    print(f"{'case':26} {'host us':>8} {'p90':>8} {'torch':>8} {'queued':>8} {'device ms':>10} {'steady ms':>10} {'gap':>7}")
    for name, call, calls in cases():
        row = measure(name, call, calls)
        rows.append(row)
        show(row)
    q, k, v = make(8192)
    sdpa = lambda: torch.nn.functional.scaled_dot_product_attention(  # noqa: E731
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    row = measure("torch sdpa 8k", sdpa)
    rows.append(row)
    show(row)
    rows.append(beside_alone())
    print(rows[-1])
    rows += string_costs()
    if target:
        with open(target, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
