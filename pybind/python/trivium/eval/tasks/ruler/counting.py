"""Two aggregation tasks: the common words of a list, the frequent words of a code."""

from __future__ import annotations

import random
import string
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.tasks.corpus import Corpus
from trivium.eval.tasks.ruler.fitting import fit
from trivium.eval.tasks.ruler.words import keys
from trivium.eval.tasks.sample import Sample

COMMON, COMMON_TIMES, RARE_TIMES, COMMON_NEW_TOKENS = 10, 30, 3, 120
EXAMPLE_RARE, EXAMPLE_COMMON_TIMES, EXAMPLE_RARE_TIMES = 10, 3, 1
COMMON_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list? "
    "\0Answer: The top 10 words that appear most often in the list are:"
)
ALPHA, CODED_LENGTH, FREQUENT, FREQUENT_NEW_TOKENS = 2.0, 6, 3, 50
FREQUENT_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text? "
    "\0Answer: According to the coded text above, the three most frequently appeared words are:"
)


def common_words(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """Ten words thirty times among others three times; below 2,048 tokens six times among others once."""
    times, rare_times = (COMMON_TIMES, RARE_TIMES) if length >= 2048 else (6, 1)
    pool = _pool(tokenizer, text, length // (4 * rare_times) + COMMON + EXAMPLE_RARE, draw)
    common, rare = pool[:COMMON], pool[COMMON:]
    shown = rare[-COMMON - EXAMPLE_RARE :]
    example = _listed(shown[:COMMON], EXAMPLE_COMMON_TIMES, shown[COMMON:], EXAMPLE_RARE_TIMES, draw.random())
    opening = example + " " + " ".join(f"{n + 1}. {word}" for n, word in enumerate(shown[:COMMON])) + "\n\n"
    order = draw.random()

    def build(units: int) -> str:
        return opening + _listed(common, times, rare[:units], rare_times, order)

    return fit(tokenizer, build, length, tuple(common), COMMON_NEW_TOKENS, most=len(rare))


def frequent_words(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """Coded words by Zipf's law with exponent 2; the most frequent is noise, the next three are asked for."""
    size = max(FREQUENT + 2, length // 50)
    coded = ["...."]
    while len(coded) < size:
        word = "".join(draw.choices(string.ascii_lowercase, k=CODED_LENGTH))
        if word not in coded:
            coded.append(word)
    order = draw.random()
    weights = [rank**-ALPHA for rank in range(1, size + 1)]
    total = sum(weights)

    def build(units: int) -> str:
        words = [word for word, weight in zip(coded, weights) for _ in range(int(units * weight / total))]
        random.Random(order).shuffle(words)
        return FREQUENT_TEMPLATE.format(context=" ".join(words))

    least = 2 * _units_that_rank(weights, total)
    return fit(tokenizer, build, length, tuple(coded[1 : 1 + FREQUENT]), FREQUENT_NEW_TOKENS, least=least)


def _units_that_rank(weights: list[float], total: float) -> int:
    """Words enough that the third differs from the fourth."""
    return int(total / (weights[FREQUENT] - weights[FREQUENT + 1])) + 1


def _listed(common: list[str], times: int, rare: list[str], rare_times: int, order: float) -> str:
    words = common * times + rare * rare_times
    random.Random(order).shuffle(words)
    return COMMON_TEMPLATE.format(context=" ".join(f"{n + 1}. {word}" for n, word in enumerate(words)))


def _pool(tokenizer: Any, text: list[int], count: int, draw: random.Random) -> list[str]:
    """Distinct words of the text in random order, and made-up ones where it has too few."""
    words = list(Corpus.of(tokenizer, text).words)
    draw.shuffle(words)
    if len(words) < count:
        words += keys(draw, min(count, 10_000))
    if len(words) < 3 * COMMON:
        raise InvalidArgument(f"text: it has {len(words)} different words: want at least {3 * COMMON}")
    return words[:count]
