"""The command ``trivium``."""

from __future__ import annotations

import sys

EXIT_CODES = {
    0: "done",
    1: "failed: stderr has what was wrong and the next step",
    2: "wrong usage: an unknown command, option or value",
    130: "interrupted",
}


def main() -> None:
    """Run the command line; the exit status is one of :data:`EXIT_CODES`."""
    try:
        from trivium.cli.app import run
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich", "click"):
            raise
        sys.exit("the command line needs typer and rich: pip install 'trivium[cli]'")
    run()
