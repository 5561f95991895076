"""One progress bar for the whole demo."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars of transformers: the demo has one of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class Bar:
    """Stages one under the other, each with its own count, on stderr."""

    def __init__(self, *, shown: bool = True) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),  # this stream, even while sys.stderr is redirected
            disable=not shown,
        )
        self._current: Any = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[None]:
        """Count steps up to ``total`` under a name; None: only show that it is alive."""
        self._current = self._progress.add_task(name, total=total)
        yield
        task = self._progress.tasks[self._current]
        done = task.total or 1
        self._progress.update(self._current, total=done, completed=done)

    def step(self, count: int = 1) -> None:
        """Advance the current stage."""
        self._progress.advance(self._current, count)

    def say(self, what: str) -> None:
        """Rename the current stage."""
        self._progress.update(self._current, description=what)
