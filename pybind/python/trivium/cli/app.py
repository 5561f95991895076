"""Subcommands of ``trivium``. Each reads its arguments and calls one function of the package."""

from __future__ import annotations

import dataclasses
import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

import trivium
from trivium._errors import InvalidArgument, TriviumError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Attention, position and merge strategies for long-context language models.",
)
out = Console()
err = Console(stderr=True)


class Output(str, Enum):
    """How a reading command prints."""

    text = "text"
    json = "json"


class Kind(str, Enum):
    """The three kinds of strategy."""

    attention = "attention"
    position = "position"
    merge = "merge"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]


def run() -> None:
    """Run the app; errors of Trivium become one line and a hint, never a traceback."""
    try:
        app(standalone_mode=True)
    except TriviumError as error:
        err.print(f"[red]{type(error).__name__}[/]: {error.args[0]}", highlight=False, soft_wrap=True)
        if error.hint:
            err.print(f"[dim]next:[/] {error.hint}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


@app.command("list")
def list_command(
    kind: Annotated[Optional[Kind], typer.Argument(help="only strategies of this kind")] = None,
    output: OutputOption = Output.text,
) -> None:
    """List the strategies there are."""
    found = trivium.list(kind.value if kind else None)
    if output is Output.json:
        _print_json(found)
        return
    table = Table("strategy", "", "paper", box=None, pad_edge=False)
    for strategy in found:
        table.add_row(strategy.id, strategy.summary, strategy.paper)
    out.print(table)


@app.command()
def info(
    strategy: Annotated[str, typer.Argument(help="name or dotted identifier")],
    output: OutputOption = Output.text,
) -> None:
    """Describe a strategy and its parameters."""
    found = trivium.info(strategy)
    if output is Output.json:
        _print_json(found)
    else:
        typer.echo(str(found))


@app.command()
def doctor(output: OutputOption = Output.text) -> None:
    """Check the installation: versions, plugin processes, kernels."""
    found = trivium.doctor()
    if output is Output.json:
        _print_json(found)
    else:
        _print_doctor(found)
    if not found.healthy:
        raise typer.Exit(1)


def _print_doctor(found: trivium.Doctor) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in {**found.versions, **found.machine}.items():
        table.add_row(name, str(value))
    for plugin in found.plugins:
        details = ", ".join(f"{k} {v}" for k, v in plugin.items() if k not in ("name", "error") and v)
        table.add_row(plugin["name"], details)
    out.print(table)
    for problem in found.problems:
        out.print(f"[red]problem:[/] {problem}", soft_wrap=True)
    if found.healthy:
        out.print("[green]all is well[/]")


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(help="checkpoint folders, oldest first", show_default=False)],
    to: Annotated[Path, typer.Option("--out", help="folder to be made")],
    method: Annotated[str, typer.Option(help="see `trivium list merge`")] = "sma",
    param: Annotated[Optional[list[str]], typer.Option("--param", "-p", help="name=value, may be repeated")] = None,
    weights: Annotated[Optional[str], typer.Option(help="comma-separated, one for each source")] = None,
    base: Annotated[Optional[Path], typer.Option(help="for methods that work on differences")] = None,
    dtype: Annotated[Optional[str], typer.Option(help="of the merged tensors, default as in the sources")] = None,
    float64: Annotated[bool, typer.Option(help="accumulate in float64")] = False,
    allow_non_finite: Annotated[bool, typer.Option(help="count NaN and infinities instead of refusing them")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a checkpoint that is there")] = False,
    resume: Annotated[bool, typer.Option(help="go on with a killed merge of the same recipe")] = False,
    dry_run: Annotated[bool, typer.Option(help="check and plan, write nothing")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Merge checkpoints into one."""
    with _progress_bar("merging", shown=output is Output.text and not dry_run) as progress:
        report = trivium.merge(
            sources, to, method=method, weights=_numbers(weights), base=base, dtype=dtype, float64=float64,
            allow_non_finite=allow_non_finite, overwrite=overwrite, resume=resume, dry_run=dry_run,
            progress=progress, **_parameters(param or []),
        )  # fmt: skip
    if output is Output.json:
        _print_json(report)
        return
    for warning in report.warnings:
        out.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
    if dry_run:
        out.print(f"would merge {len(report.sources)} checkpoints into {report.out}")
        return
    size = report.bytes_written / 1e6
    out.print(
        f"merged {report.tensors} tensors of {len(report.sources)} checkpoints into {report.out}: "
        f"{size:,.1f} MB in {report.seconds:.1f} s on {report.backend}"
    )


class _progress_bar:
    """A bar on stderr that is fed with (done, total)."""

    def __init__(self, what: str, *, shown: bool) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        self._bar = Progress(
            "{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=err, disable=not shown
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> _progress_bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)


def _numbers(text: Optional[str]) -> Optional[list[float]]:
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise InvalidArgument(f"--weights {text}: want numbers separated by commas") from error


def _parameters(pairs: list[str]) -> dict[str, Any]:
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


@app.command()
def demo(
    to: Annotated[Path, typer.Option("--out", help="folder of the report")] = Path("demo-report"),
    length: Annotated[Optional[int], typer.Option(help="tokens; default 8192, 4096 on slow machines")] = None,
    fast: Annotated[bool, typer.Option(help="a short window, to see that it works")] = False,
    model_dir: Annotated[Optional[Path], typer.Option(help="a Llama-like model folder instead of SmolLM2")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Run the main job on a real model: attention arms, and a merge of real checkpoints."""
    from trivium.demo import run as run_demo

    result = run_demo(out=to, length=length, fast=fast, model_dir=model_dir, quiet=output is Output.json)
    if output is Output.json:
        _print_json(result)
