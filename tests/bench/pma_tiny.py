"""PMA on a real run: merges of the last N checkpoints of pma-tiny against single and annealed ones, as JSON.

    python pma_tiny.py path/to/pma-tiny [--output pma-tiny.json]

The folder is what pma-tiny.tar.xz unpacks to. One sweep makes all the merges; the loss is that of
``eval.safetensors`` in float32. ``--expect`` compares with the table in a README and fails beyond 0.001.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

from safetensors.numpy import load_file

import trivium
from trivium.pma import Losses

SIZES = (2, 3, 4, 6, 8, 12)
# The table's EMA is the recursion that starts from the oldest checkpoint.
METHODS = ("sma", "wma", ("ema", {"alpha": 0.2, "variant": "seeded"}))
TOLERANCE = 1e-3


def expected(readme: Path) -> dict[str, float]:
    """Losses that a README's tables give, by name."""
    found = {}
    for line in readme.read_text().splitlines():
        if single := re.fullmatch(r"\| ((?:step|annealed)-\d+) \| ([\d.]+) \|", line):
            found[single[1]] = float(single[2])
        if merges := re.fullmatch(r"\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", line):
            for label, loss in zip(("sma", "wma", "ema alpha=0.2 variant=seeded"), merges.groups()[1:]):
                found[f"{label} n={merges[1]} v=200"] = float(loss)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expect", type=Path, help="README with the table to compare with")
    parser.add_argument("--individuals", action="store_true", help="evaluate each checkpoint alone too")
    parser.add_argument("--limit", type=int, help="sequences to use; all by default")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="N")
    parser.add_argument("--intervals", type=int, nargs="*", default=[200], help="V, in steps; a size that is too long for one is left out")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    losses = Losses(load_file(args.folder / "eval.safetensors")["tokens"], limit=args.limit, batch=32)
    annealed = {p.name: str(p) for p in sorted(args.folder.glob("annealed-*"))}
    begin = time.perf_counter()
    found = trivium.series(args.folder)
    rows, merged, seconds, read = [], [], 0.0, 0
    for interval in args.intervals:
        sizes = [n for n in args.sizes if found.steps[-1] - (n - 1) * interval >= found.steps[0]]
        sweep = trivium.sweep(found, n=sizes, interval=[interval], method=METHODS, evaluate=losses,
                              references=annealed, individuals=args.individuals)  # fmt: skip
        rows += [row for row in sweep.to_rows() if row not in rows]
        merged += sweep.candidates
        seconds, read = seconds + sweep.seconds, read + sweep.bytes_read
    best = min(merged, key=lambda c: c.loss or 0.0)
    names = {"last": f"step-{sweep.sources[-1].step:05d}", **{f"step {c.step}": f"step-{c.step:05d}" for c in sweep.sources}}
    got = {names.get(row["name"], row["name"]): row["loss"] for row in rows}
    result = {
        "best": best.name, "losses": got, "merge_seconds": seconds, "bytes_read": read,
        "seconds": time.perf_counter() - begin, "rows": [{k: v for k, v in row.items() if k != "path"} for row in rows],
    }  # fmt: skip
    if args.expect:
        want = {name: loss for name, loss in expected(args.expect).items() if name in got}
        result["compared"] = len(want)
        result["largest_difference"] = max(abs(got[name] - loss) for name, loss in want.items())
    text = json.dumps(result, indent=1)
    if args.output:
        args.output.write_text(text + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))
    if args.expect and (len(want) < len(SIZES) * len(METHODS) or result["largest_difference"] > TOLERANCE):
        sys.exit(f"{len(want)} losses compared, largest difference {result['largest_difference']:.2g}: want {TOLERANCE} at most")


if __name__ == "__main__":
    main()
