"""From a plan and a subject to a folder of results, in this process or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trivium._errors import InvalidArgument
from trivium._files import cache_root
from trivium.eval.plan import Cell, Plan
from trivium.eval.runner import Bench, finish, open_folder
from trivium.eval.spread import Cluster, spread
from trivium.eval.subject import Subject
from trivium.eval.summary import Row
from trivium.eval.units import units
from trivium.eval.workers import work

Say = Callable[[str], None]


def evaluate(
    plan: Plan,
    subject: Subject,
    folder: Path,
    *,
    cluster: Cluster | None = None,
    workers: int = 1,
    say: Say = lambda what: None,
    step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Run a plan, or what of it is not in ``folder`` yet, and write results and report.

    Parameters
    ----------
    cluster : Cluster, optional
        Spread the work over Ray; default: run it here.
    workers : int
        Processes that share this machine, without Ray. The results are the same, times are not.
    say : callable
        Told what is being done.
    step : callable
        Called when a cell is done, also for those of earlier runs.
    """
    from trivium.eval.page import write_page

    if workers < 1 or (workers > 1 and cluster):
        raise InvalidArgument(f"workers {workers}: want 1 or more, and only without Ray, which has workers of its own")
    subject = subject.pinned()
    records = open_folder(plan, subject, folder)
    missing = [cell for cell in plan.order() if cell not in records]
    found = _found(plan, subject, missing, cluster, workers, say)
    rows = finish(plan, records, folder, found, step)
    write_page(folder, plan, subject, records, rows)
    return rows


def cache() -> Path:
    """Where samples are kept."""
    return cache_root() / "eval"


def _found(
    plan: Plan, subject: Subject, missing: list[Cell], cluster: Cluster | None, workers: int, say: Say
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    if cluster:
        return spread(plan, subject, missing, cluster, cache())
    if workers > 1 and missing:
        subject.prepare(say)
        say(f"{workers} workers")
        return work(plan, subject, missing, workers, cache())
    return _here(plan, subject, missing, say)


def _here(plan: Plan, subject: Subject, missing: list[Cell], say: Say) -> Iterator[tuple[Cell, dict[str, Any]]]:
    if not missing:
        return
    bench = Bench(plan, subject.load(say), cache())
    bench.check()
    for unit in units(plan, missing):
        say(f"{unit.task} at {unit.length:,}")
        yield from bench.run(unit)
