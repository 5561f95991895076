"""What a run leaves in its folder.

``records.jsonl`` is appended to while running. From it follow ``results.json``,
``results.parquet`` and ``samples.parquet``, which are the same bytes whenever the same plan is
run, and ``times.json``, which is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trivium._files import replace
from trivium.eval.bootstrap import Interval
from trivium.eval.plan import Cell, Plan
from trivium.eval.summary import Records, Row

RECORDS = "records.jsonl"
RESULTS = "results.json"
TABLE = "results.parquet"
SAMPLES = "samples.parquet"
TIMES = "times.json"
CLOCKS = ("ttft_s", "attention_s", "processes")  # all that differs from run to run


def read_records(path: Path) -> Records:
    """Records of earlier runs; a last line cut short by a kill is dropped."""
    if not path.exists():
        return {}
    whole, newline, _ = path.read_text(encoding="utf-8").rpartition("\n")
    replace(path, whole + newline)
    lines = [json.loads(line) for line in whole.splitlines()]
    return {Cell(*line["cell"]): line["found"] for line in lines}


def record_line(cell: Cell, found: Mapping[str, Any]) -> str:
    """One line of ``records.jsonl``."""
    return json.dumps({"cell": [cell.task, cell.length, cell.index, cell.arm], "found": found}) + "\n"


def write_results(folder: Path, plan: Plan, records: Records, rows: Sequence[Row]) -> None:
    """Write everything that follows from the records."""
    replace(folder / RESULTS, json.dumps([_lasting(asdict(row)) for row in rows], indent=1))
    replace(folder / TABLE, _parquet([line for row in rows for line in _flat(row)]))
    replace(folder / SAMPLES, _parquet([line for cell in plan.order() for line in _samples(cell, records[cell])]))
    clocks = [{"task": row.task, "length": row.length, "arm": row.arm, **{name: getattr(row, name) for name in CLOCKS}} for row in rows]
    replace(folder / TIMES, json.dumps(clocks, indent=1))


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    """What does not change when the same plan is run again: everything but time."""
    return {key: value for key, value in row.items() if key not in CLOCKS}


def _flat(row: Row) -> list[dict[str, Any]]:
    """One line for each metric; those of a curve have the number of their part."""
    shared = {"task": row.task, "length": row.length, "arm": row.arm, "density": row.density, "coverage": row.coverage}
    found: list[tuple[str, int | None, Interval, Interval]] = [(metric, None, mean, row.differences[metric]) for metric, mean in row.metrics.items()]
    for metric, parts in row.curves.items():
        found += [(metric, part, *pair) for part, pair in enumerate(zip(parts, row.curve_differences[metric]))]
    return [
        {
            **shared, "metric": metric, "part": part, "samples": mean.samples, "mean": mean.mean, "low": mean.low, "high": mean.high,
            "difference": change.mean, "difference_low": change.low, "difference_high": change.high,
        }
        for metric, part, mean, change in found
    ]  # fmt: skip


def _samples(cell: Cell, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line for each metric of a cell."""
    shared = {
        **asdict(cell), "prompt": found["prompt"], "depth": found["about"].get("depth"), "density": found["density"],
        "coverage": found["coverage"], "answer": found["answer"],
    }  # fmt: skip
    return [{**shared, "metric": metric, "value": value} for metric, value in found["scores"].items()]


SCHEMA_NUMBERS = ("depth", "density", "coverage", "mean", "low", "high", "difference", "difference_low", "difference_high", "value")
SCHEMA_COUNTS = ("length", "index", "part", "samples")


def _parquet(lines: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {**dict.fromkeys(SCHEMA_NUMBERS, pa.float64()), **dict.fromkeys(SCHEMA_COUNTS, pa.int64())}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in lines[0]])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(lines, schema), sink, compression="zstd")
    return bytes(sink.getvalue())
