"""Follow a chain of assignments through noise."""

from __future__ import annotations

import random
import string
from typing import Any

from trivium.eval.tasks.ruler.fitting import NOISE, fit, scatter
from trivium.eval.tasks.sample import Sample

HOPS, NEW_TOKENS, EXAMPLE_UNITS = 4, 30, 5
TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above. "
    "\0Answer: According to the chain(s) of variable assignment in the text above, "
    "{count} variables are assigned the value {value}, they are:"
)


def variable_tracking(tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """One chain of four hops; an example of the task, with its answer, comes first."""
    example_names, example = _chain(draw)
    example_text = _prompt(example, [NOISE] * EXAMPLE_UNITS) + " " + " ".join(example_names)
    names, chain = _chain(draw)

    def build(units: int) -> str:
        return example_text + "\n\n" + _prompt(chain, [NOISE] * units)

    return fit(tokenizer, build, length, tuple(names), NEW_TOKENS)


def _chain(draw: random.Random) -> tuple[list[str], list[tuple[float, str]]]:
    """Variables, and their assignments at random depths in the order of the chain."""
    names: list[str] = []
    while len(names) <= HOPS:
        name = "".join(draw.choices(string.ascii_uppercase, k=5))
        if name not in names:
            names.append(name)
    value = str(draw.randrange(10_000, 100_000))
    says = [f"VAR {names[0]} = {value}", *(f"VAR {new} = VAR {old}" for old, new in zip(names, names[1:]))]
    return names, list(zip(sorted(draw.random() for _ in says), says))


def _prompt(chain: list[tuple[float, str]], noise: list[str]) -> str:
    value = chain[0][1].rsplit(" ", 1)[1]
    return TEMPLATE.format(context="\n".join(scatter(noise, chain)), value=value, count=len(chain))
