"""The position strategies that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trivium.eval.arms import Arm, parse_all

DEFAULTS = (
    "rope",
    "string",
    "ntk:variant=aware,factor=2.0",
    "ntk:variant=aware,factor=4.0",
    "yarn:factor=2.0",
    "rerope",
    "selfextend",
    "dca",
)


def default_arms(trained: int, attention: str = "dense") -> tuple[Arm, ...]:
    """Plain rope, STRING and its peers, with the defaults of each, for a trained length."""
    return arms(DEFAULTS, trained, attention)


def arms(positions: Iterable[str], trained: int, attention: str = "dense") -> tuple[Arm, ...]:
    """An arm for each position strategy, written ``id`` or ``id:param=value,param=value``.

    ``string`` alone has the paper's S and W, whatever is saved beside the model.
    """
    return tuple(_string(trained, attention) if text == "string" else _arm(text, attention) for text in map(str.strip, positions))


def _string(trained: int, attention: str) -> Arm:
    shift = max(1, trained // 3)
    return string_arms([(shift, min(128, shift))], attention)[0]


def _arm(position: str, attention: str) -> Arm:
    parsed = parse_all([f"{attention}+{position}"])[0]
    return Arm(_name(position), parsed.attention, None if position == "rope" else parsed.position)


def _name(position: str) -> str:
    """A name for the table: ``ntk x2``, ``string S=512 W=32``."""
    strategy, _, pairs = position.partition(":")
    words = [strategy]
    for key, value in (pair.split("=", 1) for pair in pairs.split(",") if "=" in pair):
        if key == "factor":
            words.append(f"x{float(value):g}")
        elif key != "variant":
            words.append(f"{SHORT.get(key, key)}={value}")
    return " ".join(words)


SHORT = {"shift": "S", "local": "W"}


def string_arms(grid: Sequence[tuple[int, int]], attention: str = "dense") -> tuple[Arm, ...]:
    """STRING at each S and W of a grid."""
    made: list[Arm] = []
    for shift, local in grid:
        position: dict[str, Any] = {"strategy": "string", "shift": shift, "local": local}
        made.append(Arm(f"string S={shift} W={local}", attention, position))
    return tuple(made)
