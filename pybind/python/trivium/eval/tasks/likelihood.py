"""How well text is predicted, where in the window, and how unlike the baseline."""

from __future__ import annotations

import random
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.tasks.sample import Sample, window

BINS = 16  # parts of the window in the curve by position
ROWS_PER_BIN = 64
COMPARED = 128  # positions at which predictions are compared


def perplexity(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """A window of a book; its last quarter, at most 1,024 tokens, is scored."""
    return Sample(window(text, length, draw), min(length // 4, 1024), kind="text")


def perplexity_by_position(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """A window of a book, scored at random positions of each sixteenth."""
    ids = window(text, length, draw)
    edges = [part * (length - 1) // BINS for part in range(BINS + 1)]
    size = min(ROWS_PER_BIN, min(high - low for low, high in zip(edges, edges[1:])))
    if size < 1:
        raise InvalidArgument(f"task perplexity_by_position: length {length}: want at least {BINS + 1} tokens")
    rows = [row for low, high in zip(edges, edges[1:]) for row in sorted(draw.sample(range(low, high), size))]
    return Sample(ids, kind="rows", rows=tuple(rows), bins=BINS)


def agreement(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """A window of a book; predictions at random positions of its second half are compared with the baseline's."""
    ids = window(text, length, draw)
    places = range(length // 2, length - 1)
    return Sample(ids, kind="compare", rows=tuple(sorted(draw.sample(places, min(COMPARED, len(places))))))
