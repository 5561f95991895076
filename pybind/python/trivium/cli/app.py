"""Subcommands of ``trivium``. Each reads its arguments and calls one function of the package."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape
from rich.table import Table

import trivium
from trivium._errors import TriviumError
from trivium.cli import effective, evaluating, merging, plugins, searching, tuning
from trivium.cli._console import Output, OutputOption, err, out, print_json

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(merging.app, name="merge")
app.add_typer(plugins.app, name="plugin")
app.command()(searching.search)
app.command("eval")(evaluating.eval_command)
app.command()(tuning.tune)
app.command("effective-length")(effective.effective_length)

TRACEBACK = "TRIVIUM_TRACEBACK"


class Kind(str, Enum):
    """The three kinds of strategy."""

    attention = "attention"
    position = "position"
    merge = "merge"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trivium {trivium.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)] = False,
) -> None:
    """Attention, position and merge strategies for long-context language models."""


def run() -> None:
    """Run the app; whatever goes wrong becomes a line and the next step, never a traceback."""
    try:
        app(standalone_mode=True)
    except TriviumError as error:
        _fail(type(error).__name__, error.args[0], error.hint)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail("OSError", f"{where}{error.strerror or error}", "check the path, its permissions and the room on the disk")
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        _fail("InternalError", f"{type(error).__name__}: {error}", f"this is a bug: report it with what {TRACEBACK}=1 prints")


def _fail(kind: str, message: str, hint: str) -> None:
    err.print(f"[red]{kind}[/]: {escape(message)}", highlight=False, soft_wrap=True)
    if hint:
        err.print(f"[dim]next:[/] {escape(hint)}", highlight=False, soft_wrap=True)
    sys.exit(1)


@app.command("list")
def list_command(
    kind: Annotated[Optional[Kind], typer.Argument(help="only strategies of this kind")] = None,
    output: OutputOption = Output.text,
) -> None:
    """List the strategies there are."""
    found = trivium.list(kind.value if kind else None)
    if output is Output.json:
        print_json(found)
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
        print_json(found)
    else:
        typer.echo(str(found))


@app.command()
def doctor(output: OutputOption = Output.text) -> None:
    """Check the installation: versions, plugin processes, kernels."""
    found = trivium.doctor()
    if output is Output.json:
        print_json(found)
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
        print_json(result)
