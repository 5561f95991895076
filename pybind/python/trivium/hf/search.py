"""Find a pattern for each head, offline: MInference's search (arXiv 2407.02490).

Each candidate is tried on every head through the strategy that will use it,
``minference``, and the attention mass that it keeps is measured on random rows. The
attending and the measuring are the kernels'; here is only the choice.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch

import trivium
from trivium._errors import InvalidArgument
from trivium.hf.observing import observing
from trivium.hf.patching import _attention_layers
from trivium.report import HeadReport


class Candidate(NamedTuple):
    """A pattern and its two numbers, named as in the released files.

    ``vertical_and_slash`` takes columns and diagonals in tokens, ``stream_llm`` first
    and recent tokens, ``block_sparse`` key blocks for each query block (the second
    number is not used).
    """

    pattern: str
    first: int
    second: int


# Those of the released search; an eighth of the blocks at 8k for block_sparse.
CANDIDATES = (
    Candidate("stream_llm", 100, 800),
    Candidate("vertical_and_slash", 30, 800),
    Candidate("vertical_and_slash", 100, 750),
    Candidate("vertical_and_slash", 500, 700),
    Candidate("vertical_and_slash", 3500, 100),
    Candidate("vertical_and_slash", 1000, 4096),
    Candidate("block_sparse", 8, 1),
)


@dataclass(frozen=True)
class Found:
    """What suits one head."""

    layer: int
    head: int
    candidate: Candidate
    coverage: float  # attention mass kept, mean over the probe rows
    density: float
    reached: bool  # gamma, by the lower bound; true without a gamma


@dataclass
class Patterns:
    """The outcome of a search, by layer and head."""

    heads: list[Found] = field(default_factory=list)

    @property
    def coverage(self) -> float:
        """Mean over heads."""
        return sum(h.coverage for h in self.heads) / max(1, len(self.heads))

    @property
    def density(self) -> float:
        """Mean over heads."""
        return sum(h.density for h in self.heads) / max(1, len(self.heads))

    def layers(self) -> list[dict[str, list[Any]]]:
        """The released files' form: for each layer, head number to pattern, two numbers, score."""
        count = 1 + max((h.layer for h in self.heads), default=-1)
        layers: list[dict[str, list[Any]]] = [{} for _ in range(count)]
        for h in self.heads:
            layers[h.layer][str(h.head)] = [*h.candidate, h.coverage]
        return layers

    def save(self, path: str | PathLike[str]) -> None:
        """Write the file that ``trivium.attention("minference", patterns=path)`` reads."""
        Path(path).write_text(json.dumps(self.layers()))


Progress = Callable[[int, int], None]


def search(
    model: Any,
    input_ids: torch.Tensor,
    *,
    candidates: Sequence[Candidate] = CANDIDATES,
    gamma: float | None = None,
    budget: float = 0.5,
    skip: int = 2500,
    probe_rows: int = 256,
    block_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patterns:
    """Choose a pattern for each head of a model, on one long sample.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    input_ids : tensor [1, n]
    candidates : sequence of Candidate
    gamma : float, optional
        Take the sparsest candidate whose coverage reaches gamma by its lower bound,
        and the one with the highest coverage where none does. Default: the highest
        coverage within the budget.
    budget : float
        Without a gamma: candidates with a higher density are left aside, since those
        of the paper cost about the same on its long samples but not on short ones.
    skip : int
        Rows at the start that do not count: they see too little to tell.
    probe_rows : int
        Random rows of each head that coverage is measured on.
    progress : callable, optional
        Told of (layers done, layers).
    """
    n = input_ids.shape[1]
    if not candidates:
        raise InvalidArgument("search: no candidates: want at least one")
    if n - skip < 2 * block_size:
        raise InvalidArgument(f"search: {n} tokens with {skip} skipped: want at least {2 * block_size} more", hint="pass a longer text, or a smaller skip")
    patterns, layers = Patterns(), len(_attention_layers(model))
    with tempfile.TemporaryDirectory(prefix="trivium-search-") as folder:

        def see(layer: int, query: Any, key: Any, value: Any, scale: float | None) -> None:
            tried = []
            for number, candidate in enumerate(candidates):
                path = Path(folder) / f"{number}-{query.shape[1]}.json"
                if not path.exists():
                    path.write_text(json.dumps([{str(h): [*candidate, 0.0] for h in range(query.shape[1])}]))
                _, report = trivium.attention(
                    query[:, :, skip:], key, value, strategy="minference", patterns=str(path), layer=0, scale=scale, q_offset=skip,
                    probe_rows=probe_rows, block_size=block_size, seed=seed, return_report=True,
                )  # fmt: skip
                tried.append(report.heads)
            patterns.heads += [_best(layer, h, candidates, [heads[h] for heads in tried], gamma, budget) for h in range(query.shape[1])]
            if progress:
                progress(layer + 1, layers)

        with torch.no_grad(), observing(model, see):
            model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
    return patterns


def _best(layer: int, head: int, candidates: Sequence[Candidate], tried: list[HeadReport], gamma: float | None, budget: float) -> Found:
    def lower(at: int) -> float:
        return tried[at].coverage_lower or 0.0

    order = sorted(range(len(tried)), key=lambda at: (-(tried[at].coverage or 0.0), tried[at].density))
    reached = [at for at in order if gamma is not None and lower(at) >= gamma]
    within = [at for at in order if tried[at].density <= budget] or [min(order, key=lambda at: tried[at].density)]
    if reached:
        best = min(reached, key=lambda at: (tried[at].density, -lower(at)))
    else:
        best = within[0] if gamma is None else order[0]
    report = tried[best]
    return Found(layer, head, candidates[best], report.coverage or 0.0, report.density, gamma is None or bool(reached))
