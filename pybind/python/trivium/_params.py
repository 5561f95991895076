"""Parameter values as JSON has them."""

from __future__ import annotations

import math
from typing import Any

from trivium._errors import InvalidArgument


def plain(params: dict[str, Any]) -> dict[str, Any]:
    """Turn numpy scalars and arrays into numbers and lists.

    Raises
    ------
    InvalidArgument
        A value that is not finite, or that no parameter can have.
    """
    return {name: _value(name, value) for name, value in params.items()}


def _value(name: str, value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_value(name, v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgument(f"{name}: {value}: want a finite number")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InvalidArgument(f"{name} is a {type(value).__name__}: want a number, a string, a boolean or a list of numbers")
