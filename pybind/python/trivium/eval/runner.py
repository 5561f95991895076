"""Run every arm on the same samples; what is done is never done again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.arms import Arm, attending
from trivium.eval.bootstrap import Interval, interval, paired
from trivium.eval.tasks import TASKS, make_sample, measure
from trivium.hf.tracing import trace

RECORDS = "records.jsonl"  # appended while running; times differ from run to run
RESULTS = "results.json"  # written at the end; the same for the same plan


@dataclass(frozen=True)
class Plan:
    """What is to be run: arms x tasks x lengths x samples. The first arm is the baseline."""

    arms: tuple[Arm, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not self.arms or len(set(names)) != len(names):
            raise InvalidArgument(f"arms {names}: want at least one, each with a name of its own")
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise InvalidArgument(f"tasks {list(self.tasks)}: want some of {', '.join(sorted(TASKS))}")
        if not self.lengths or min(self.lengths) < 64 or self.samples < 1:
            raise InvalidArgument(f"lengths {list(self.lengths)}, samples {self.samples}: want lengths from 64 and a sample")

    @staticmethod
    def from_file(path: str | PathLike[str]) -> Plan:
        """Read a plan from YAML: ``arms``, ``tasks``, ``lengths``, ``samples``, ``seed``."""
        import yaml

        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
        if not isinstance(data, dict) or set(data) - {"arms", "tasks", "lengths", "samples", "seed"}:
            raise InvalidArgument(f"{path}: want the keys arms, tasks, lengths, samples and seed")
        arms = tuple(Arm.parse(arm) for arm in data.pop("arms", ()))
        return Plan(arms, tuple(data.pop("tasks", ())), tuple(data.pop("lengths", ())), **data)

    def cells(self) -> Iterator[tuple[str, int, int, Arm]]:
        """Task, length, sample and arm, arms innermost: a run cut short has whole pairs."""
        for task in self.tasks:
            for length in self.lengths:
                for index in range(self.samples):
                    for arm in self.arms:
                        yield task, length, index, arm


@dataclass(frozen=True)
class Row:
    """One arm on one task at one length, and its difference from the baseline."""

    task: str
    length: int
    arm: str
    exact: Interval
    nll: Interval
    exact_difference: Interval
    nll_difference: Interval
    density: float
    coverage: float | None
    attention_s: float


def run(
    plan: Plan,
    model: Any,
    tokenizer: Any,
    text: list[int],
    folder: Path,
    *,
    probe_rows: int = 0,
    step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Run what of a plan is not in ``folder`` yet, and sum up.

    Parameters
    ----------
    text : list of int
        Tokens of the text that samples are cut from.
    folder : Path
        Records, one line each, and results. A folder of another plan is refused.
    probe_rows : int
        Random rows of each head on which coverage is measured.
    step : callable
        Called when a cell is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_plan(plan, folder)
    done = _read(folder / RECORDS)
    with (folder / RECORDS).open("a", encoding="utf-8") as log:
        for task, length, index, arm in plan.cells():
            key = (task, length, index, arm.name)
            if key not in done:
                sample = make_sample(task, tokenizer, text, length, index, plan.seed)
                with attending(model, arm), trace(probe_rows=probe_rows) as traced:
                    scores = measure(model, sample)
                done[key] = {**scores, **sample.about, "density": traced.density, "coverage": traced.coverage,
                             "attention_s": traced.seconds}
                log.write(json.dumps({"cell": key, "found": done[key]}) + "\n")
                log.flush()
            step()
    rows = summarise(plan, done)
    _write(folder / RESULTS, json.dumps([_lasting(row) for row in rows], indent=1))
    return rows


Records = dict[tuple[str, int, int, str], dict[str, Any]]


def summarise(plan: Plan, records: Records) -> list[Row]:
    """Means, intervals and paired differences from the first arm."""
    return [
        _row(plan, records, task, length, arm) for task in plan.tasks for length in plan.lengths for arm in plan.arms
    ]


def _row(plan: Plan, records: Records, task: str, length: int, arm: Arm) -> Row:
    def column(name: str, of: Arm = arm) -> list[Any]:
        return [records[task, length, index, of.name][name] for index in range(plan.samples)]

    baseline = plan.arms[0]
    coverage = [value for value in column("coverage") if value is not None]
    return Row(
        task=task,
        length=length,
        arm=arm.name,
        exact=interval(column("exact")),
        nll=interval(column("nll")),
        exact_difference=paired(column("exact"), column("exact", baseline)),
        nll_difference=paired(column("nll"), column("nll", baseline)),
        density=_mean([1.0 if value is None else value for value in column("density")]),
        coverage=_mean(coverage) if coverage else None,
        attention_s=_mean(column("attention_s")),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _lasting(row: Row) -> dict[str, Any]:
    """What does not change when the same plan is run again: everything but time."""
    return {key: value for key, value in asdict(row).items() if key != "attention_s"}


def _check_plan(plan: Plan, folder: Path) -> None:
    path, text = folder / "plan.json", json.dumps(asdict(plan), indent=1, default=repr)
    if not path.exists():
        _write(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise InvalidArgument(f"{folder}: holds the records of another plan", hint="choose another folder, or remove it")


def _read(path: Path) -> Records:
    """Records of earlier runs; a last line cut short by a kill is dropped."""
    if not path.exists():
        return {}
    whole, newline, _ = path.read_text(encoding="utf-8").rpartition("\n")
    _write(path, whole + newline)
    lines = [json.loads(line) for line in whole.splitlines()]
    return {(task, length, index, arm): line["found"] for line in lines for task, length, index, arm in [line["cell"]]}


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
