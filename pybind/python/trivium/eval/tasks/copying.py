"""Say again what was said once: needles of token ids, for models without a tokenizer."""

from __future__ import annotations

import random
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.tasks.sample import Sample, depth_of, window

MARK, KEY, VALUE = 0, 3, 4  # a needle is the token MARK, then so many of a key, then of a value


def copy(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """A needle of random tokens in the text, repeated at the end: its value is to be predicted.

    Needs no tokenizer, so it fits any vocabulary. Depths are as in ``passkey``.
    """
    size = 1 + KEY + VALUE
    room = length - 2 * size
    if room < 0:
        raise InvalidArgument(f"task copy: length {length}: want at least {2 * size} tokens")
    depth = depth_of(index)
    at = int(depth * (room + 1))
    needle = [MARK, *(draw.randrange(1, max(text) + 1) for _ in range(size - 1))]
    ids = window(text, length, draw)
    ids[at : at + size] = needle
    ids[-size:] = needle
    return Sample(ids, VALUE, {"depth": depth, "distance": length - size - at})
