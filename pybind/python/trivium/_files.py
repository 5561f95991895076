"""Where files of our own are kept, and how they are written."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/trivium``, by default ``~/.cache/trivium``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trivium"


def replace(path: Path, content: str | bytes) -> None:
    """Write a file in one step: a reader never sees half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)
