"""Eight needle tasks: how many keys, values and queries, in which haystack."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import Any

from trivium.eval.tasks.corpus import Corpus
from trivium.eval.tasks.ruler.fitting import NOISE, fit, scatter
from trivium.eval.tasks.ruler.words import capacity, keys
from trivium.eval.tasks.sample import Sample

NEW_TOKENS = 128
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text? "
    "\0The special magic {kind} for {query} mentioned in the provided text are"
)
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text? "
    "\0The special magic {kind} for {query} mentioned in the provided text is"
)


@dataclass(frozen=True)
class Setting:
    """A needle task. ``haystack`` is noise, essay or needles."""

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    distinct: int = 1  # keys among the needles
    each: int = 1  # values of each key
    asked: int = 1  # keys that are asked for


NEEDLES = {
    "niah_single_1": Setting("noise"),
    "niah_single_2": Setting("essay"),
    "niah_single_3": Setting("essay", values="uuids"),
    "niah_multikey_1": Setting("essay", distinct=4),
    "niah_multikey_2": Setting("needles"),
    "niah_multikey_3": Setting("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Setting("essay", each=4),
    "niah_multiquery": Setting("essay", distinct=4, asked=4),
}


def needles(setting: Setting, tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """Hide needles at random depths and ask for the values of some keys."""
    most = setting.distinct + (_most_distractors(setting, length) if setting.haystack == "needles" else 0)
    names = _names(setting.keys, most, draw)
    hidden = [(key, _value(setting.values, draw)) for key in names[: setting.distinct] for _ in range(setting.each)]
    asked = names[: setting.asked]
    depths = [draw.random() for _ in hidden]
    seed = draw.random()
    sentences = [(depth, _needle(setting, key, value)) for depth, (key, value) in zip(depths, hidden)]
    distractors = [_needle(setting, key, _value(setting.values, draw)) for key in names[setting.distinct :]]

    def build(units: int) -> str:
        hay = distractors[:units] if setting.haystack == "needles" else _hay(setting, tokenizer, text, units, seed)
        joint = "\n" if setting.haystack != "essay" else " "
        return _prompt(setting, joint.join(scatter(hay, sentences)), asked)

    answers = tuple(value for key, value in hidden if key in asked)
    units = len(distractors) if setting.haystack == "needles" else length
    return fit(tokenizer, build, length, answers, NEW_TOKENS, most=units, about={"depth": depths[0]})


def _most_distractors(setting: Setting, length: int) -> int:
    """No needle has fewer than 12 tokens."""
    return min(length // 12, capacity() - setting.distinct) if setting.keys == "words" else length // 12


def _hay(setting: Setting, tokenizer: Any, text: list[int], units: int, seed: float) -> list[str]:
    """So many sentences: of the text, from a random one on and round, or of the noise."""
    if setting.haystack == "noise":
        return [NOISE] * units
    sentences = Corpus.of(tokenizer, text).sentences
    start = int(seed * len(sentences))
    return [sentences[(start + n) % len(sentences)] for n in range(units)]


def _prompt(setting: Setting, context: str, asked: list[str]) -> str:
    query = asked[0] if len(asked) == 1 else ", ".join(asked[:-1]) + ", and " + asked[-1]
    if setting.asked * setting.each == 1:
        return ONE.format(kind=setting.values.removesuffix("s"), context=context, query=query)
    return MANY.format(kind=setting.values, context=context, query=query)


def _needle(setting: Setting, key: str, value: str) -> str:
    return NEEDLE.format(kind=setting.values, key=key, value=value)


def _names(kind: str, count: int, draw: random.Random) -> list[str]:
    return keys(draw, count) if kind == "words" else [_value("uuids", draw) for _ in range(count)]


def _value(kind: str, draw: random.Random) -> str:
    if kind == "numbers":
        return str(draw.randrange(1_000_000, 10_000_000))
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
