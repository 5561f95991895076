"""STRING under a model: against the oracle, and repairing a model that plain rope fails."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
import trivium
import trivium.hf

from tiny_models import build, tokens

TRAIN, SHIFT, LOCAL = 48, 16, 4


@pytest.fixture(params=["llama", "qwen3", "phi3"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@torch.no_grad()
def by_oracle(model: Any, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The model's own eager code with the attention of each layer spelled out."""
    from transformers import AttentionInterface

    def forward(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        out, _ = reference.attention(
            q, k, v, scale=scaling, bands=reference.string_bands(TRAIN, SHIFT, LOCAL),
            inv_freq=model.model.rotary_emb.inv_freq.tolist(),
        )
        return out.to(q.dtype).transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "oracle", forward)
    monkeypatch.setattr(model.config, "_attn_implementation", "oracle")
    logits = model(input_ids=ids).logits
    monkeypatch.undo()
    return logits


def string(**more: Any) -> Any:
    return trivium.position("string", train_length=TRAIN, shift=SHIFT, local=LOCAL, **more)


def test_prefill_against_the_oracle(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens(1, 60)
    want = by_oracle(model, ids, monkeypatch)
    with trivium.hf.patch(model, attention="dense", position=string()), torch.no_grad():
        got = model(input_ids=ids).logits
    with trivium.hf.patch(model, attention="dense"), torch.no_grad():
        plain = model(input_ids=ids).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert (plain - want).abs().max() > 1e-2, "the positions must matter for this test to say anything"


def test_chunks_and_decode_agree_with_one_pass(model: Any) -> None:
    ids = tokens(1, 60)
    with trivium.hf.patch(model, attention="dense", position=string()), torch.no_grad():
        want = model(input_ids=ids).logits
        cache, parts = None, []
        for chunk in ids.split((31, 1, 1, 20, 7), dim=1):
            step = model(input_ids=chunk, past_key_values=cache, use_cache=True)
            cache, parts = step.past_key_values, [*parts, step.logits]
    torch.testing.assert_close(torch.cat(parts, dim=1), want, atol=1e-4, rtol=0)


def test_left_padding_changes_nothing(model: Any) -> None:
    ids = tokens(1, 50)
    padded = torch.cat([torch.zeros(1, 13, dtype=torch.long), ids], dim=1)
    mask = (padded != 0).long()
    with trivium.hf.patch(model, attention="dense", position=string()), torch.no_grad():
        want = model(input_ids=ids).logits
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        got = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 13:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_trained_length_comes_from_the_config(model: Any) -> None:
    with trivium.hf.patch(model, attention="dense", position="string"):
        settings = model.model.layers[0].self_attn._trivium_settings
        assert settings.position.params["train_length"] == model.config.max_position_embeddings
