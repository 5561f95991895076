"""The offline search for head patterns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import trivium
from tiny_models import VOCABULARY, build
from trivium.hf.search import Candidate, search

CANDIDATES = (
    Candidate("stream_llm", 32, 64),
    Candidate("vertical_and_slash", 64, 64),
    Candidate("block_sparse", 3, 1),
)
SHAPE = {"skip": 100, "block_size": 32, "probe_rows": 64}


def ids(n: int = 600) -> torch.Tensor:
    return torch.randint(VOCABULARY, (1, n), generator=torch.Generator().manual_seed(1))


def test_search_takes_what_keeps_most(tmp_path: Path) -> None:
    model = build("llama")
    seen = []
    found = search(model, ids(), candidates=CANDIDATES, budget=1, progress=lambda done, all: seen.append((done, all)), **SHAPE)
    assert seen == [(1, 3), (2, 3), (3, 3)] and len(found.heads) == 12
    assert model.config._attn_implementation == "eager"
    alone = [search(model, ids(), candidates=[c], budget=1, **SHAPE) for c in CANDIDATES]
    for at, head in enumerate(found.heads):
        kept = {run.heads[at].candidate: run.heads[at].coverage for run in alone}
        assert head.coverage == max(kept.values()) == kept[head.candidate]
    assert len({h.candidate for h in found.heads}) > 1

    found.save(tmp_path / "patterns.json")
    layers = json.loads((tmp_path / "patterns.json").read_text())
    assert layers[2]["3"][:3] == list(found.heads[11].candidate)
    q = torch.randn(1, 4, 600, 16)
    k, v = torch.randn(2, 1, 2, 600, 16)
    _, report = trivium.attention(
        q, k, v, strategy="minference", patterns=str(tmp_path / "patterns.json"), layer=2, block_size=32, return_report=True
    )
    assert [h.pattern for h in report.heads] == [h.candidate.pattern for h in found.heads[8:]]


def test_gamma_takes_the_sparsest_that_reaches_it() -> None:
    model = build("llama")
    every = Candidate("vertical_and_slash", 600, 600)
    found = search(model, ids(), candidates=[every, *CANDIDATES], gamma=0.05, **SHAPE)
    assert all(h.reached and h.candidate != every for h in found.heads)
    found = search(model, ids(), candidates=[every, *CANDIDATES], gamma=0.9999, **SHAPE)
    assert all(h.candidate == every and h.coverage == pytest.approx(1) for h in found.heads)


def test_a_budget_leaves_what_is_denser_aside() -> None:
    every = Candidate("vertical_and_slash", 600, 600)
    found = search(build("llama"), ids(), candidates=[every, *CANDIDATES], budget=0.9, **SHAPE)
    assert all(h.candidate != every and h.density <= 0.9 for h in found.heads)
    found = search(build("llama"), ids(), candidates=[every, CANDIDATES[0]], budget=0.01, **SHAPE)
    assert all(h.candidate == CANDIDATES[0] for h in found.heads)


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(trivium.InvalidArgument, match="600 tokens with 590 skipped"):
        search(build("llama"), ids(), skip=590)
