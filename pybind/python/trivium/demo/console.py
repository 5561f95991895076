"""The demo's table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trivium.demo.page import ARM_COLUMNS, arm_rows

if TYPE_CHECKING:
    from trivium.demo import Result


def show(result: Result) -> None:
    """Print the arms, the merge and where the page is."""
    console = Console()
    table = Table(
        title=f"{result.model}, {result.length:,} tokens, {result.dtype}, key {result.key}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(ARM_COLUMNS):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in arm_rows(result):
        table.add_row(*("–" if value is None else str(value) for value in row))
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    m = result.merge
    console.print(f"held-out loss: last checkpoint {m.last:.4f}, merge of four {m.merged:.4f}, annealed {m.annealed:.4f}")
    console.print(f"{result.seconds:.0f} s; the page with pictures is {result.page}")
