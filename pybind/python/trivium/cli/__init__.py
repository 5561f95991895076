"""The command ``trivium``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit status 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        from trivium.cli.app import run
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich", "click"):
            raise
        sys.exit("the command line needs typer and rich: pip install 'trivium[cli]'")
    run()
