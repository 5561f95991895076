"""Dense attention through Trivium gives what eager attention gives, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import trivium.hf

from tiny_models import FAMILIES, build, tokens

TOLERANCE = 1e-4  # float32, logits of order 1 to 10


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> torch.Tensor:
    return model(**inputs).logits


def test_prefill(model: Any) -> None:
    ids = tokens(1, 70)
    want = logits(model, input_ids=ids)
    with trivium.hf.patch(model, attention="dense"):
        got = logits(model, input_ids=ids)
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(model: Any, side: str) -> None:
    ids, lengths = tokens(3, 40), (40, 29, 7)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, -length:] = 1 if side == "left" else 0
        mask[row, :length] = 1 if side == "right" else mask[row, :length]
    ids = ids.masked_fill(mask == 0, 0)
    want = logits(model, input_ids=ids, attention_mask=mask)
    with trivium.hf.patch(model, attention="dense"):
        got = logits(model, input_ids=ids, attention_mask=mask)
    seen = mask.bool()
    torch.testing.assert_close(got[seen], want[seen], atol=TOLERANCE, rtol=0)


def test_generate_with_cache(model: Any) -> None:
    ids = tokens(2, 33)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    options = dict(attention_mask=mask, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    want = model.generate(ids, **options)
    with trivium.hf.patch(model, attention="dense"):
        got = model.generate(ids, **options)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=TOLERANCE, rtol=0)
    assert got.sequences.tolist() == want.sequences.tolist()


def test_chunked_prefill(model: Any) -> None:
    ids = tokens(1, 60)
    want = logits(model, input_ids=ids)
    with trivium.hf.patch(model, attention="dense"), torch.no_grad():
        cache, parts = None, []
        for chunk in ids.split((25, 1, 20, 14), dim=1):
            step = model(input_ids=chunk, past_key_values=cache, use_cache=True)
            cache, parts = step.past_key_values, [*parts, step.logits]
    torch.testing.assert_close(torch.cat(parts, dim=1), want, atol=TOLERANCE, rtol=0)
