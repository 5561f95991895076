"""What a task makes: tokens, and what is asked of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trivium._errors import InvalidArgument


@dataclass(frozen=True)
class Sample:
    """One prompt and how it is scored.

    Attributes
    ----------
    ids : list of int
        The tokens of the prompt.
    scored : int
        The last so many of ``ids`` are to be predicted, each from those before.
    about : dict
        What pictures sort by, such as the depth of a needle.
    kind : str
        ``"answer"``: the scored tokens are the one right answer;
        ``"text"``: they are text, of which the likelihood counts;
        ``"rows"``: the tokens after the positions ``rows`` are scored, in ``bins`` parts;
        ``"compare"``: the predictions at ``rows`` are compared with the baseline's;
        ``"generate"``: ``new_tokens`` are generated, and searched for ``answers``.
    answers : tuple of str
        What a generated text must hold: all of them, or one where ``any_answer``.
    """

    ids: list[int]
    scored: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    kind: str = "answer"
    rows: tuple[int, ...] = ()
    bins: int = 1
    new_tokens: int = 0
    answers: tuple[str, ...] = ()
    any_answer: bool = False

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Sample:
        """Read what ``dataclasses.asdict`` and JSON made of a sample."""
        return Sample(**{**data, "rows": tuple(data["rows"]), "answers": tuple(data["answers"])})


MakeSample = Callable[[Any, list[int], int, int, random.Random], Sample]


def depth_of(index: int) -> float:
    """Where sample ``index`` hides its needle, as a share of the window.

    An even, low-discrepancy sequence: any number of samples covers the window.
    """
    return (0.5 + index * 0.6180339887498949) % 1.0


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens without those that open or close a text."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def window(text: list[int], length: int, draw: random.Random) -> list[int]:
    """``length`` tokens of the text from a random one on."""
    if not 0 < length <= len(text):
        raise InvalidArgument(
            f"a window of {length} tokens from a text of {len(text)}: want a length that fits",
            hint="give a longer text (--text), or shorter lengths",
        )
    start = draw.randrange(len(text) - length + 1)
    return list(text[start : start + length])
