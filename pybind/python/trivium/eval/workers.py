"""Run a plan in several processes of this machine, each with the model in its memory.

They share the device, and with it what one of them alone leaves idle between two kernels.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium._errors import OutOfMemory, TriviumError
from trivium.eval.plan import Cell, Plan
from trivium.eval.runner import Bench, Found
from trivium.eval.subject import Subject
from trivium.eval.units import Unit, fairly, units

Records = list[tuple[Cell, Found]]


@dataclass
class _Worker:
    process: Any
    pipe: Any
    busy: Unit | None = None


def work(plan: Plan, subject: Subject, missing: list[Cell], count: int, cache: Path) -> Iterator[tuple[Cell, Found]]:
    """Yield what each missing cell gave, in the order in which they end."""
    left = deque(fairly(units(plan, missing)))
    workers = [_start(plan, subject, cache, number, min(count, len(left))) for number in range(min(count, len(left)))]
    try:
        for worker in workers:
            _give(worker, left)
        while any(worker.busy for worker in workers):
            for ready in multiprocessing.connection.wait([worker.pipe for worker in workers if worker.busy]):
                worker = next(each for each in workers if each.pipe is ready)
                yield from _receive(worker)
                _give(worker, left)
    finally:
        for worker in workers:
            worker.pipe.close()  # one that waits for work ends by this
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _start(plan: Plan, subject: Subject, cache: Path, number: int, count: int) -> _Worker:
    # Spawned, since neither CUDA nor the engine survives a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, plan, subject, cache, number, count), name=f"trivium-eval-{number}")
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, left: deque[Unit]) -> None:
    worker.busy = left.popleft() if left else None
    if worker.busy:
        try:
            worker.pipe.send(worker.busy)
        except OSError:
            raise _lost(worker) from None


def _receive(worker: _Worker) -> Records:
    try:
        found = worker.pipe.recv()
    except (EOFError, OSError):
        raise _lost(worker) from None
    if isinstance(found, BaseException):
        raise found
    records: Records = found
    return records


def _lost(worker: _Worker) -> OutOfMemory:
    worker.process.join()
    unit = worker.busy
    assert unit is not None
    return OutOfMemory(
        f"a worker process ended with status {worker.process.exitcode} at {unit.task}, {unit.length:,} tokens",
        hint="the usual reason is too little memory: the same command with fewer --workers goes on from here",
    )


def _serve(pipe: Any, plan: Plan, subject: Subject, cache: Path, number: int, count: int) -> None:
    """A worker: units in, records out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    bench: Bench | None = None
    while True:
        try:
            unit: Unit = pipe.recv()
        except EOFError:
            return
        try:
            bench = bench or _bench(plan, subject, cache, number, count)
            pipe.send(list(bench.run(unit)))
        except TriviumError as error:
            pipe.send(error)
            return
        except Exception as error:
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))  # what another library raises may not pickle
            return


def _bench(plan: Plan, subject: Subject, cache: Path, number: int, count: int) -> Bench:
    bench = Bench(plan, subject.load(), cache, processes=count)
    if number == 0:
        bench.check()
    return bench
