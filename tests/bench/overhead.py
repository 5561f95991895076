"""What a call costs beyond its arithmetic: p50 and p99 from Python, by size of the tensors.

    python tests/bench/overhead.py [--calls 2000] [--json FILE]

The call is dense attention over four tokens, on tensors of trivium.empty: no copy. The large
case gives a 256 MiB value tensor of which one query sees one key, so the time must not depend on its size.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

import trivium


def percentiles(call: Any, calls: int) -> dict[str, float]:
    for _ in range(50):
        call()
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return {f"p{p}_us": float(np.percentile(took, p) * 1e6) for p in (50, 90, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    small = [trivium.empty((1, 1, 4, 64)) for _ in range(3)]
    for x in small:
        x[:] = 1
    # One query that sees one key of a long cache.
    query = trivium.empty((1, 1, 1, 64))
    query[:] = 1
    key, value = (trivium.empty((1, 1, 1 << 20, 64)) for _ in range(2))
    for x in (key, value):
        x[:] = 1
    results = {
        "1 KiB": percentiles(lambda: trivium.attention(*small, strategy="dense"), arguments.calls),
        "256 MiB": percentiles(
            lambda: trivium.attention(query, key, value, strategy="dense", k_end=[1]), arguments.calls
        ),
        "bridge only": percentiles(lambda: trivium._bridge.run("bridge.check", {"echo": 1}), arguments.calls),
    }
    for name, row in results.items():
        print(f"{name:>12}: " + ", ".join(f"{k} {v:.0f}" for k, v in row.items()))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
