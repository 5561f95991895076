"""STRING repairs a real model whose far positions are rare in training.

The model and its task are described in tests/data/retrieval-tiny/README.md. In
the reference run, at distance 960 of 1,024: plain rope 0.41, STRING 1.00.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trivium
import trivium.hf
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[1] / "data" / "retrieval-tiny"
LENGTH, SAMPLES, BATCH, SEED = 1024, 24, 8, 7


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER).float().eval()


def windows(distance: int) -> torch.Tensor:
    """Token ids [SAMPLES, LENGTH] with a needle ``distance`` tokens before its repetition at the end."""
    text = load_file(FOLDER / "text.safetensors")["tokens"].long()
    generator = torch.Generator().manual_seed(SEED + distance)
    made = []
    for _ in range(SAMPLES):
        start = int(torch.randint(len(text) - LENGTH, (1,), generator=generator))
        needle = torch.cat([torch.zeros(1, dtype=torch.long), torch.randint(1, 1024, (8 - 1,), generator=generator)])
        window = text[start : start + LENGTH].clone()
        at = LENGTH - 8 - distance
        window[at : at + 8] = needle
        window[-8:] = needle
        made.append(window)
    return torch.stack(made)


@torch.inference_mode()
def retrieved(model: Any, ids: torch.Tensor) -> float:
    """Share of windows in which all but the first four tokens of the needle are predicted."""
    right = []
    for batch in ids.split(BATCH):
        guess = model(input_ids=batch, logits_to_keep=5).logits[:, :-1].argmax(dim=-1)
        right.append((guess == batch[:, -4:]).all(dim=1))
    return float(torch.cat(right).float().mean())


def test_string_repairs_the_far_half(model: Any) -> None:
    ids = windows(960)
    with trivium.hf.patch(model, attention="dense"):
        plain = retrieved(model, ids)
    with trivium.hf.patch(model, attention="dense", position=trivium.position("string", shift=512, local=32)):
        repaired = retrieved(model, ids)
    print(f"seed {SEED}: plain {plain:.2f}, string {repaired:.2f}")
    assert plain < 0.75
    assert repaired > 0.9


def test_near_retrieval_stays_perfect(model: Any) -> None:
    ids = windows(256)
    with trivium.hf.patch(model, attention="dense", position=trivium.position("string", shift=512, local=32)):
        assert retrieved(model, ids) > 0.95
