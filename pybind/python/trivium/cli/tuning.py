"""The subcommand ``trivium tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

from rich.table import Table
import typer

from trivium.cli._console import Output, OutputOption, ProgressBar, out, print_json


def tune(
    strategy: Annotated[Optional[list[str]], typer.Argument(help="default: every strategy that selects")] = None,
    to: Annotated[Optional[Path], typer.Option("--out", help="default: where the built-in plugin looks")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Measure up to which length dense attention is the faster here; shorter prompts are then dense."""
    from trivium import tuning

    with ProgressBar("lengths", shown=output is Output.text) as bar:
        found = tuning.tune(strategy or None, path=to, progress=bar)
    if output is Output.json:
        print_json({"out": str(to or tuning.default_path()), **found})
        return
    limits = found["dense_up_to"]
    columns = list(next(iter(limits.values()), {}))
    table = Table("dense up to", *columns, box=None, pad_edge=False)
    for name, row in limits.items():
        table.add_row(name, *(str(row[c]) for c in columns))
    out.print(table)
    out.print(f"{found['backend']}; written to {to or tuning.default_path()}", highlight=False, soft_wrap=True)
