"""What the subcommands print with."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from trivium._errors import InvalidArgument

out = Console()
err = Console(stderr=True)


class Output(str, Enum):
    """How a reading command prints."""

    text = "text"
    json = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]


def print_json(value: Any) -> None:
    """Print a result of the package as JSON."""
    typer.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


class ProgressBar:
    """A bar on stderr that is fed with (done, total)."""

    def __init__(self, what: str, *, shown: bool) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        self._bar = Progress(
            "{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=err, disable=not shown
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Say how far it is."""
        self._bar.update(self._task, completed=done, total=total)


def numbers(option: str, text: Optional[str]) -> Optional[list[float]]:
    """Read numbers separated by commas."""
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise InvalidArgument(f"{option} {text}: want numbers separated by commas") from error


def parameters(pairs: list[str]) -> dict[str, Any]:
    """Read name=value pairs; values are JSON, or else text."""
    params: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"--param {pair}: want name=value")
        try:
            params[name] = json.loads(value)
        except json.JSONDecodeError:
            params[name] = value
    return params
