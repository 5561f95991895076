"""Rows as a data frame of whichever library the caller has."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from trivium._errors import InvalidArgument

BACKENDS = ("pandas", "polars", "pyarrow")


def frame(rows: list[dict[str, Any]], backend: str | None = None) -> Any:
    """A native data frame; pyarrow, which is always there, is the last choice.

    Raises
    ------
    InvalidArgument
        A library that is unknown or not installed.
    """
    if backend is None:
        backend = next(name for name in BACKENDS if find_spec(name))
    if backend not in BACKENDS:
        raise InvalidArgument(f"table {backend!r}: want {', '.join(BACKENDS)}, or None for what is installed")
    if find_spec(backend) is None:
        raise InvalidArgument(f"table: {backend} is not installed", hint=f"pip install {backend}")
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    try:
        import narwhals
    except ModuleNotFoundError:
        raise InvalidArgument("table: narwhals is not installed", hint="pip install 'trivium[hf]'") from None
    made: Any = narwhals.from_dict(columns, backend=getattr(narwhals.Implementation, backend.upper())).to_native()
    return made
