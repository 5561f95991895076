"""Spread a plan over a Ray cluster: one task for the arms of one position strategy on one sample.

A task only computes: what it returns depends on its arguments alone, so Ray may run it
anywhere and again. The driver alone writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium._errors import Unsupported
from trivium.eval.plan import Cell, Plan
from trivium.eval.runner import Bench, Found
from trivium.eval.subject import Subject
from trivium.eval.units import Unit, fairly, units

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
        task = ray.remote(max_retries=RETRIES, **resources)(run_unit)
        processes = int(ray.cluster_resources().get("CPU", 1))
        waiting = [task.remote(plan, subject, unit, cache, processes) for unit in fairly(units(plan, missing))]
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            yield from _result(ray, done)
    finally:
        if started:
            ray.shutdown()


def run_unit(plan: Plan, subject: Subject, unit: Unit, cache: Path, processes: int = 1) -> list[tuple[Cell, Found]]:
    """One task: the arms of one position strategy on one sample. A worker loads the model once."""
    return list(_bench(plan, subject, cache, processes).run(unit))


_kept: list[tuple[Any, Bench]] = []


def _bench(plan: Plan, subject: Subject, cache: Path, processes: int) -> Bench:
    """The bench of this worker, kept from task to task: loading takes longer than most of them."""
    key = (repr(plan), subject, cache, processes)
    if not _kept or _kept[0][0] != key:
        _kept[:] = [(key, Bench(plan, subject.load(), cache, processes))]
    return _kept[0][1]


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
