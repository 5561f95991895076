"""Find what was said once: a pass key, a needle among others, the value of a key."""

from __future__ import annotations

import random
import uuid
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.tasks.sample import Sample, depth_of, encode, window

SENTENCE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nThe pass key is"

NEEDLE = "\nThe lucky number of {city} is {number}.\n"
ASKED = "\nThe lucky number of {city} is"
CITIES = (
    "Lisbon", "Nairobi", "Kyoto", "Bergen", "Quito", "Tbilisi", "Hobart", "Salzburg", "Montreal", "Jaipur", "Dakar", "Cork",
    "Valencia", "Izmir", "Havana", "Riga", "Oaxaca", "Perth", "Hanoi", "Bruges",
)  # fmt: skip
DISTRACTORS = 3  # needles of other cities

PAIR_INTRO = "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n{"
PAIR_END = '}}\n\nKey: "{key}"\nCorresponding value: "'


def passkey(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """Five digits hidden in a book, asked for at the end.

    The depth of sample ``i`` is the ``i``-th point of an even, low-discrepancy
    sequence, so any number of samples covers the window.
    """
    key = str(draw.randrange(10_000, 100_000))
    sentence = encode(tokenizer, SENTENCE.format(key=key))
    return _hidden(tokenizer, text, length, draw, [(depth_of(index), sentence)], QUESTION, f" {key}", depth_of(index))


def needle(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """The lucky number of one city, in a book that says those of others too.

    Unlike the pass key it is said once, and only its key tells it from the other
    needles. Depths are as in :func:`passkey`; those of the others are random.
    """
    depth = depth_of(index)
    asked, *others = draw.sample(CITIES, 1 + DISTRACTORS)
    number = _number(draw)
    needles = [(depth, encode(tokenizer, NEEDLE.format(city=asked, number=number)))]
    needles += [(draw.random(), encode(tokenizer, NEEDLE.format(city=city, number=_number(draw)))) for city in others]
    return _hidden(tokenizer, text, length, draw, needles, ASKED.format(city=asked), f" {number}", depth)


def keyvalue(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """The value of one key among as many random pairs as fit (arXiv:2307.03172)."""
    pairs = [(_uuid(draw), _uuid(draw)) for _ in range(max(2, length // 40))]
    made = _pairs_that_fit(tokenizer, length, pairs, depth_of(index))
    if made is None:
        raise InvalidArgument(f"task keyvalue: {length} tokens hold fewer than two pairs: want a longer length")
    return made


def _pairs_that_fit(tokenizer: Any, length: int, pairs: list[tuple[str, str]], depth: float) -> Sample | None:
    """As many of the pairs as fit into ``length``, with the asked one at ``depth``."""
    intro = encode(tokenizer, PAIR_INTRO)
    lines = [encode(tokenizer, f'"{key}": "{value}",\n ') for key, value in pairs]
    key, value = pairs[0]
    end, answer = encode(tokenizer, PAIR_END.format(key=key)), encode(tokenizer, value)
    room = length - len(intro) - len(end) - len(answer) - len(lines[0])
    before: list[list[int]] = []
    for line in lines[1:]:
        if room < len(line):
            break
        before.append(line)
        room -= len(line)
    if room < 0 or not before:
        return None
    at = round(depth * len(before))
    body = [*before[:at], lines[0], *before[at:]]
    ids = [*intro, *(token for line in body for token in line), *end, *answer]
    return Sample(ids, len(answer), {"depth": depth, "pairs": len(body)})


def _hidden(
    tokenizer: Any, text: list[int], length: int, draw: random.Random,
    needles: list[tuple[float, list[int]]], question: str, answer: str, depth: float,
) -> Sample:  # fmt: skip
    """A window of the book with needles at their depths, the question and the answer: ``length`` tokens."""
    asked, wanted = encode(tokenizer, question), encode(tokenizer, answer)
    book = window(text, length - len(asked) - len(wanted) - sum(len(n) for _, n in needles), draw)
    ids: list[int] = []
    start = 0
    for share, tokens in sorted(needles):
        at = int(share * len(book))
        ids += [*book[start:at], *tokens]
        start = at
    return Sample([*ids, *book[start:], *asked, *wanted], len(wanted), {"depth": depth})


def _number(draw: random.Random) -> str:
    return str(draw.randrange(1_000_000, 10_000_000))


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
