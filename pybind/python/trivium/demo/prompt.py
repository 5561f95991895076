"""The text of the demo: a window of a book that hides a pass key."""

from __future__ import annotations

import lzma
import random
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.tasks import QUESTION, SENTENCE

CONTINUATION = 1024  # tokens of the book whose perplexity is measured, before the question
DEPTH = 0.25  # where the key is hidden, as a share of the window


@dataclass(frozen=True)
class Prompt:
    """Token ids of the window, question included, and what is asked of them.

    Attributes
    ----------
    ids : list of int
    key : str
        The digits that are hidden.
    key_at : int
        Token at which the sentence with the key starts.
    continuation : (int, int)
        The tokens of the book, [start, end), whose perplexity is measured.
    """

    ids: list[int]
    key: str
    key_at: int
    continuation: tuple[int, int]


def book() -> str:
    """Jane Austen's *Emma*, which ships with the demo."""
    packed = (files("trivium.demo") / "data" / "emma.txt.xz").read_bytes()
    return lzma.decompress(packed).decode()


def make_prompt(
    tokenizer: Any,
    text: list[int],
    length: int,
    *,
    seed: int = 1,
    depth: float = DEPTH,
    continuation: int = CONTINUATION,
) -> Prompt:
    """Cut a window of ``length`` tokens and hide a key in it.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    text : list of int
        The book's tokens.
    length : int
        Tokens of the prompt, key and question included.
    seed : int
        Chooses the window and the key.
    depth : float
        Where the key is hidden, as a share of the window.
    continuation : int
        Tokens before the question whose perplexity is measured.
    """
    draw = random.Random(seed)
    key = str(draw.randrange(10_000, 100_000))
    sentence = tokenizer.encode(SENTENCE.format(key=key), add_special_tokens=False)
    question = tokenizer.encode(QUESTION, add_special_tokens=False)
    room = length - len(sentence) - len(question)
    if room < 2 * continuation or room > len(text):
        raise InvalidArgument(
            f"length {length}: want {2 * continuation + len(sentence) + len(question)} "
            f"to {len(text) + len(sentence) + len(question)} tokens"
        )
    start = draw.randrange(len(text) - room)
    window = text[start : start + room]
    at = int(depth * (room - continuation))
    ids = [*window[:at], *sentence, *window[at:], *question]
    end = length - len(question)
    return Prompt(ids, key, at, (end - continuation, end))
