"""Prompts as long as they may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.tasks.chat import written
from trivium.eval.tasks.sample import Sample, encode

Build = Callable[[int], str]  # a prompt with so many units of haystack, the answer marked off


def fit(tokenizer: Any, build: Build, length: int, answers: tuple[str, ...], new_tokens: int, *,
        least: int = 1, most: int = 1 << 30, any_answer: bool = False, about: dict[str, Any] | None = None) -> Sample:  # fmt: skip
    """The longest prompt that leaves ``new_tokens`` of ``length`` for the answer.

    Parameters
    ----------
    build : callable
        Makes the prompt of a number of units; more units must not make it shorter.
    least, most : int
        The fewest units that make sense, and how many there are.
    """
    budget = length - new_tokens

    def prompt(units: int) -> list[int]:
        return encode(tokenizer, written(tokenizer, build(units)))

    units = _most(lambda n: len(prompt(n)) <= budget, least, most)
    if units is None:
        need = len(prompt(least)) + new_tokens
        raise InvalidArgument(f"length {length}: the shortest prompt of this task needs {need} tokens")
    return Sample(prompt(units), about=about or {}, kind="generate", new_tokens=new_tokens, answers=answers, any_answer=any_answer)


def _most(fits: Callable[[int], bool], least: int, most: int) -> int | None:
    """The largest number from ``least`` to ``most`` that fits; None where ``least`` does not."""
    if not fits(least):
        return None
    low, high = least, min(2 * least + 1, most + 1)
    while high <= most and fits(high):
        low, high = high, min(2 * high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def scatter(units: list[str], needles: list[tuple[float, str]]) -> list[str]:
    """Put each needle among the units, at its share of them."""
    made: list[str] = []
    start = 0
    for share, needle in sorted(needles):
        at = round(share * len(units))
        made += [*units[start:at], needle]
        start = at
    return [*made, *units[start:]]


NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
