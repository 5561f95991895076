"""From a plan and a subject to a folder of results, in this process or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trivium.eval.plan import Cell, Plan
from trivium.eval.runner import Bench, finish, open_folder
from trivium.eval.spread import Cluster, spread
from trivium.eval.subject import Subject
from trivium.eval.summary import Row

Say = Callable[[str], None]


def evaluate(
    plan: Plan,
    subject: Subject,
    folder: Path,
    *,
    cluster: Cluster | None = None,
    say: Say = lambda what: None,
    step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Run a plan, or what of it is not in ``folder`` yet, and write results and report.

    Parameters
    ----------
    cluster : Cluster, optional
        Spread the work over Ray; default: run it here.
    say : callable
        Told what is being done.
    step : callable
        Called when a cell is done, also for those of earlier runs.
    """
    from trivium.eval.page import write_page

    subject = subject.pinned()
    records = open_folder(plan, subject, folder)
    missing = [cell for cell in plan.order() if cell not in records]
    found = spread(plan, subject, missing, cluster, cache()) if cluster else _here(plan, subject, missing, say)
    rows = finish(plan, records, folder, found, step)
    write_page(folder, plan, subject, records, rows)
    return rows


def cache() -> Path:
    """Where samples are kept."""
    from trivium.demo.download import cache_root

    return cache_root() / "eval"


def _here(plan: Plan, subject: Subject, missing: list[Cell], say: Say) -> Iterator[tuple[Cell, dict[str, Any]]]:
    if not missing:
        return
    bench = Bench(plan, subject.load(say), cache())
    bench.check()
    for cell in missing:
        say(f"{cell.task} at {cell.length:,}: {cell.arm}")
        yield cell, bench.run(cell)
