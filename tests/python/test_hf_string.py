"""STRING under a model: against the oracle, and repairing a model that plain rope fails."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
import trivium
import trivium.hf

from tiny_models import FAMILIES, build, tokens

TRAIN, SHIFT, LOCAL = 48, 16, 4


WANTED = ("llama", "qwen3", "phi3", "glm-interleaved", "cohere2-no-rope", "exaone4-no-rope")


@pytest.fixture(params=[family for family in WANTED if family in FAMILIES])
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def window(model: Any, module: Any) -> int | None:
    types = getattr(model.config, "layer_types", None)
    return model.config.sliding_window if types and types[module.layer_idx] == "sliding_attention" else None


def bands(model: Any, module: Any, rule: tuple[int, int] | None) -> Any:
    """Layers of full attention among sliding ones have no rope in these models, so nothing to shift."""
    no_rope = model.config.model_type in ("cohere2", "exaone4") and window(model, module) is None
    return reference.PLAIN if rule is None or no_rope else reference.string_bands(TRAIN, *rule)


@torch.no_grad()
def by_oracle(model: Any, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The model's own eager code with the attention of each layer spelled out."""
    from transformers import AttentionInterface

    def forward(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        out, _ = reference.attention(
            q, k, v, scale=scaling, window=window(model, module), bands=bands(model, module, (SHIFT, LOCAL)),
            inv_freq=model.model.rotary_emb.inv_freq.tolist(), interleaved=model.config.model_type in ("glm", "cohere2"),
        )
        return out.to(q.dtype).transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "oracle", forward)
    monkeypatch.setattr(model.config, "_attn_implementation", "oracle")
    logits = model(input_ids=ids).logits
    monkeypatch.undo()
    return logits


@torch.no_grad()
def test_positions_change_while_a_cache_lives(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys stay at their true positions, so S and W may change, or end, from one call to the next.

    The cache of the first 40 tokens is made by one STRING, the next 10 see it by
    another, the last 10 by plain rope; the oracle spells the same out in one pass.
    """
    from transformers import AttentionInterface

    ids = tokens(1, 60)
    parts = [(0, 40, (SHIFT, LOCAL)), (40, 50, (8, 2)), (50, 60, None)]

    def forward(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        rows = []
        for start, end, rule in parts:
            out, _ = reference.attention(
                q, k, v, scale=scaling, window=window(model, module), bands=bands(model, module, rule),
                inv_freq=model.model.rotary_emb.inv_freq.tolist(), interleaved=model.config.model_type in ("glm", "cohere2"),
            )
            rows.append(out[:, :, start:end])
        return torch.cat(rows, dim=2).to(q.dtype).transpose(1, 2).contiguous(), None

    with monkeypatch.context() as patch:
        patch.setitem(AttentionInterface._global_mapping, "oracle", forward)
        patch.setattr(model.config, "_attn_implementation", "oracle")
        want = model(input_ids=ids).logits
    cache, made = None, []
    for start, end, rule in parts:
        position = None if rule is None else trivium.position("string", train_length=TRAIN, shift=rule[0], local=rule[1])
        with trivium.hf.patch(model, attention="dense", position=position):
            for token in range(start, end) if start else [start]:  # a prefill, then a token at a time
                step = model(input_ids=ids[:, token : end if not start else token + 1], past_key_values=cache, use_cache=True)
                cache, made = step.past_key_values, [*made, step.logits]
    torch.testing.assert_close(torch.cat(made, dim=1), want, atol=1e-4, rtol=0)
    with trivium.hf.patch(model, attention="dense", position=string()):
        unchanged = model(input_ids=ids).logits
    assert (unchanged - want)[:, 40:].abs().max() > 1e-2, "the change must matter for this test to say anything"


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
