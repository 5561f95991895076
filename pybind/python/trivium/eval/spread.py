"""Spread a plan over a Ray cluster: one task for each arm, length and kind of sample.

A task only computes: what it returns depends on its arguments alone, so Ray may run it
anywhere and again. The driver alone writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trivium._errors import Unsupported
from trivium.eval.plan import Cell, Plan
from trivium.eval.runner import Bench, Found
from trivium.eval.subject import Loaded, Subject

RETRIES = 3  # of a task whose worker died


@dataclass(frozen=True)
class Cluster:
    """Which Ray cluster.

    Attributes
    ----------
    address : str, optional
        Of a running cluster, or ``auto``; None: one is started here and stopped at the end.
    workers : int, optional
        Tasks at a time on a cluster that is started here; default: the number of CPUs.
    """

    address: str | None = None
    workers: int | None = None


def spread(
    plan: Plan, subject: Subject, missing: list[Cell], cluster: Cluster, cache: Path
) -> Iterator[tuple[Cell, Found]]:
    """Yield what each missing cell gave, in the order in which the tasks end."""
    if not missing:
        return
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        _start(ray, cluster)
    try:
        resources = {"num_cpus": 1, "num_gpus": 0 if subject.device == "cpu" else 1}
        task = ray.remote(max_retries=RETRIES, **resources)(run_cells)
        waiting = [task.remote(plan, subject, cells, cache) for cells in _units(missing)]
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            yield from _result(ray, done)
    finally:
        if started:
            ray.shutdown()


def run_cells(plan: Plan, subject: Subject, cells: list[Cell], cache: Path) -> list[tuple[Cell, Found]]:
    """One task: the cells of one arm at one length. A worker loads the model once."""
    bench = Bench(plan, _load(subject), cache)
    return [(cell, bench.run(cell)) for cell in cells]


@lru_cache(maxsize=1)
def _load(subject: Subject) -> Loaded:
    return subject.load()


def _units(missing: list[Cell]) -> list[list[Cell]]:
    """Long ones first, so that none is left over at the end."""

    def unit(cell: Cell) -> tuple[int, str, str]:
        return -cell.length, cell.task, cell.arm

    return [list(cells) for _, cells in itertools.groupby(sorted(missing, key=unit), key=unit)]


def _result(ray: Any, reference: Any) -> list[tuple[Cell, Found]]:
    try:
        found: list[tuple[Cell, Found]] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return found


def _start(ray: Any, cluster: Cluster) -> None:
    if cluster.address is not None:
        ray.init(address=cluster.address, log_to_driver=False)
        return
    ray.init(num_cpus=cluster.workers, include_dashboard=False, log_to_driver=False)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise Unsupported("spreading over a cluster needs ray", hint="pip install 'trivium[ray]'") from None
    return ray
