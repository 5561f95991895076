"""Tasks that need no network: each makes sample ``i`` of a length from any text and a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable

from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.tasks.copying import copy
from trivium.eval.tasks.corpus import Corpus
from trivium.eval.tasks.likelihood import agreement, perplexity, perplexity_by_position
from trivium.eval.tasks.retrieval import QUESTION, SENTENCE, keyvalue, needle, passkey
from trivium.eval.tasks.ruler import RULER
from trivium.eval.tasks.sample import MakeSample, Sample

__all__ = [
    "GROUPS", "QUESTION", "SENTENCE", "TASKS", "Corpus", "MakeSample", "Sample", "agreement", "copy", "expand", "keyvalue",
    "make_sample", "needle", "passkey", "perplexity", "perplexity_by_position",
]  # fmt: skip

TASKS: dict[str, MakeSample] = {
    "passkey": passkey,
    "needle": needle,
    "copy": copy,
    "keyvalue": keyvalue,
    "perplexity": perplexity,
    "perplexity_by_position": perplexity_by_position,
    "agreement": agreement,
    **{f"ruler.{name}": make for name, make in RULER.items()},
}
GROUPS: dict[str, tuple[str, ...]] = {"ruler": tuple(f"ruler.{name}" for name in RULER)}


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Task names, groups such as ``ruler`` replaced by their tasks."""
    return tuple(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))


def make_sample(task: str, tokenizer: Any, text: list[int], length: int, index: int, seed: int) -> Sample:
    """Sample ``index`` of a task: the same for every arm, whatever else is run."""
    if task not in TASKS:
        raise InvalidArgument(f"task {task!r}: want one of {', '.join(sorted(TASKS))}")
    return TASKS[task](tokenizer, text, length, index, random.Random(f"{task} {length} {index} {seed}"))
