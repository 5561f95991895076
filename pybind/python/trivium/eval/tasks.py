"""Tasks that need no network: a pass key in a book, and the likelihood of the book."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trivium._errors import InvalidArgument

SENTENCE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nThe pass key is"


@dataclass(frozen=True)
class Sample:
    """Tokens of which the last ``scored`` are to be predicted, each from those before."""

    ids: list[int]
    scored: int
    about: dict[str, float]  # such as the depth of a needle


MakeSample = Callable[[Any, list[int], int, int, random.Random], Sample]


def passkey(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """Five digits hidden in a book, asked for at the end.

    The depth of sample ``i`` is the ``i``-th point of an even, low-discrepancy
    sequence, so any number of samples covers the window.
    """
    key = str(draw.randrange(10_000, 100_000))
    depth = (0.5 + index * 0.6180339887498949) % 1.0
    sentence = _encode(tokenizer, SENTENCE.format(key=key))
    question, answer = _encode(tokenizer, QUESTION), _encode(tokenizer, f" {key}")
    window = _window(text, length - len(sentence) - len(question) - len(answer), draw)
    at = int(depth * len(window))
    ids = [*window[:at], *sentence, *window[at:], *question, *answer]
    return Sample(ids, len(answer), {"depth": depth})


def perplexity(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """A window of a book; its last quarter, at most 1,024 tokens, is scored."""
    return Sample(_window(text, length, draw), min(length // 4, 1024), {})


TASKS: dict[str, MakeSample] = {"passkey": passkey, "perplexity": perplexity}


def make_sample(task: str, tokenizer: Any, text: list[int], length: int, index: int, seed: int) -> Sample:
    """Sample ``index`` of a task: the same for every arm, whatever else is run."""
    if task not in TASKS:
        raise InvalidArgument(f"task {task!r}: want one of {', '.join(sorted(TASKS))}")
    return TASKS[task](tokenizer, text, length, index, random.Random(f"{task} {length} {index} {seed}"))


@torch.inference_mode()
def measure(model: Any, sample: Sample) -> dict[str, float]:
    """Score the last tokens of a sample with one forward pass.

    Returns
    -------
    dict
        ``nll``, the mean over scored tokens, natural log; and ``exact``, 1 when
        each of them is the most likely token given those before, else 0.
    """
    ids = torch.tensor([sample.ids])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=sample.scored + 1).logits[0, :-1].float()
    want = ids[0, -sample.scored :]
    nll = torch.nn.functional.cross_entropy(logits, want)
    return {"nll": float(nll), "exact": float((logits.argmax(dim=-1) == want).all())}


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _window(text: list[int], length: int, draw: random.Random) -> list[int]:
    if not 0 < length <= len(text):
        raise InvalidArgument(f"a window of {length} tokens from a text of {len(text)}: want a length that fits")
    start = draw.randrange(len(text) - length + 1)
    return text[start : start + length]
