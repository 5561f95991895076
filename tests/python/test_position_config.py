"""Positions read from config.json, against what the installed transformers does with it.

Every family runs a forward pass of a tiny random model. What its layers hand to
``apply_rotary_pos_emb`` and get back is compared with the rotation that our plan of
that layer says: frequencies, scale, partial width and layout at once. Layers that do
not rotate must be those that the config reader says have no rope.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import trivium

LENGTH = 40
TINY = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
LONG = [1 + 0.5 * i for i in range(8)]
SHORT = [1 + 0.1 * i for i in range(8)]


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 5000.0, **parameters}}


FAMILIES: dict[str, Any] = {
    "llama default": lambda: transformers.LlamaConfig(**TINY, **rope(rope_type="default")),
    "llama linear": lambda: transformers.LlamaConfig(**TINY, **rope(rope_type="linear", factor=4.0)),
    "llama dynamic": lambda: transformers.LlamaConfig(**TINY, **rope(rope_type="dynamic", factor=2.0)),
    "llama yarn": lambda: transformers.LlamaConfig(**TINY, **rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama llama3": lambda: transformers.LlamaConfig(
        **TINY, **rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
    ),
    "llama longrope": lambda: transformers.LlamaConfig(
        **TINY, **rope(rope_type="longrope", factor=2.0, long_factor=LONG, short_factor=SHORT, original_max_position_embeddings=16)
    ),
    "llama head_dim": lambda: transformers.LlamaConfig(**TINY, head_dim=24),
    "qwen3": lambda: transformers.Qwen3Config(**TINY, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**TINY, sliding_window=16),
    "gemma2": lambda: transformers.Gemma2Config(**TINY, head_dim=16, sliding_window=16),
    "gemma3 two thetas": lambda: transformers.Gemma3TextConfig(
        **TINY, head_dim=16, sliding_window=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                         "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}},
    ),
    "gemma4 proportional": lambda: transformers.Gemma4TextConfig(
        **TINY, head_dim=16, global_head_dim=32, sliding_window=16, hidden_size_per_layer_input=0, vocab_size_per_layer_input=97,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                         "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}},
    ),
    "phi partial": lambda: transformers.PhiConfig(**TINY, partial_rotary_factor=0.5),
    "phi3 longrope": lambda: transformers.Phi3Config(
        **{**TINY, "max_position_embeddings": 64}, original_max_position_embeddings=16,
        **rope(rope_type="longrope", long_factor=LONG, short_factor=SHORT),
    ),
    "gpt_neox partial": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in TINY.items() if k != "num_key_value_heads"}, rotary_pct=0.25),
    "stablelm partial": lambda: transformers.StableLmConfig(**TINY, partial_rotary_factor=0.25),
    "nemotron partial": lambda: transformers.NemotronConfig(**TINY, partial_rotary_factor=0.5),
    "gpt_oss yarn": lambda: transformers.GptOssConfig(
        **{**TINY, "max_position_embeddings": 512}, head_dim=16, sliding_window=16, num_local_experts=2, num_experts_per_tok=1,
        **rope(rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=16),
    ),
    "cohere interleaved": lambda: transformers.CohereConfig(**TINY),
    "glm interleaved partial": lambda: transformers.GlmConfig(**TINY, head_dim=16, partial_rotary_factor=0.5),
    "glm4 interleaved partial": lambda: transformers.Glm4Config(**TINY, head_dim=16, partial_rotary_factor=0.5),
    "helium interleaved": lambda: transformers.HeliumConfig(**TINY, head_dim=16),
    "ernie4_5 interleaved": lambda: transformers.Ernie4_5Config(**TINY, head_dim=16),
    "cohere2 interleaved, no rope where full": lambda: transformers.Cohere2Config(**TINY, sliding_window=16),
    "exaone4 no rope where full": lambda: transformers.Exaone4Config(**TINY, sliding_window=16, sliding_window_pattern=4),
    "smollm3 no rope every fourth": lambda: transformers.SmolLM3Config(**TINY, no_rope_layer_interval=4),
    "smollm3 no rope by list": lambda: transformers.SmolLM3Config(**TINY, no_rope_layers=[0, 1, 1, 0]),
}


@torch.no_grad()
def rotations(config: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """By layer: what was rotated [heads, length, dim], before and after."""
    import sys

    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    modeling = sys.modules[type(model).__module__]
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(config.num_hidden_layers)]
    now = [-1]
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int):
            module.register_forward_pre_hook(lambda *_, i=index: now.__setitem__(0, i))
    inner = modeling.apply_rotary_pos_emb

    def spy(first: torch.Tensor, *rest: Any, **named: Any) -> Any:
        out = inner(first, *rest, **named)
        after = out[0] if isinstance(out, tuple) else out
        if named.get("unsqueeze_dim", 1) == 2:  # [batch, length, heads, dim]
            first, after = first.transpose(1, 2), after.transpose(1, 2)
        found[now[0]].append((first[0].clone(), after[0].clone()))
        return out

    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", spy)
    model(input_ids=torch.arange(3, 3 + LENGTH)[None] % 90 + 3)
    return found


def by_plan(x: np.ndarray, layer: Any) -> np.ndarray:
    """x [heads, length, dim] rotated as the plan of a layer says."""
    plan = layer.plan(LENGTH)
    half = len(plan.inv_freq)
    angle = np.arange(LENGTH)[:, None] * np.asarray(plan.inv_freq)
    cos, sin = plan.attention_scale * np.cos(angle), plan.attention_scale * np.sin(angle)
    out = x.copy()
    first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if plan.interleaved else (slice(0, half), slice(half, 2 * half))
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_rotate_as_the_config_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAMILIES[name]()
    config.save_pretrained(tmp_path)
    positions = trivium.position.from_config(tmp_path)
    assert len(positions) == config.num_hidden_layers
    assert positions.train_length == config.max_position_embeddings
    for layer, calls in zip(positions.layers, rotations(config, monkeypatch)):
        assert (layer is None) == (not calls)
        for before, after in calls:
            assert before.shape[-1] in (layer.head_dim, layer.rotary_dim)
            np.testing.assert_allclose(by_plan(before.double().numpy(), layer), after.numpy(), atol=2e-5)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n.startswith("llama")])
@pytest.mark.parametrize("length", [16, 40, 100])
def test_six_scalings_are_those_of_transformers(name: str, length: int) -> None:
    config = FAMILIES[name]()
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    rotary(torch.zeros(1), torch.arange(length)[None])  # dynamic types change their frequencies here
    plan = trivium.position.from_config(config)[0].plan(length)
    np.testing.assert_allclose(plan.inv_freq, rotary.inv_freq.double().numpy(), rtol=1e-6)
    assert plan.attention_scale == pytest.approx(rotary.attention_scaling, abs=1e-6)


OLD = {
    "plain": {"rope_theta": 5000.0},
    "type": {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_type": {"rope_theta": 5000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama3": {"rope_theta": 5000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_configs_of_older_releases(name: str, tmp_path: Path) -> None:
    """What transformers makes of an old config.json, we make of it too."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **TINY, **OLD[name]}))
    now = transformers.AutoConfig.from_pretrained(tmp_path)
    old, new = trivium.position.from_config(tmp_path / "config.json"), trivium.position.from_config(now)
    assert old.layers == new.layers
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(now)
    plan = old[0].plan(16)
    np.testing.assert_allclose(plan.inv_freq, rotary.inv_freq.double().numpy(), rtol=1e-6)
    assert plan.attention_scale == pytest.approx(rotary.attention_scaling, abs=1e-6)


def test_an_old_gemma3_has_its_local_theta() -> None:
    positions = trivium.position.from_config({
        "model_type": "gemma3_text", **TINY, "head_dim": 16, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 16, "sliding_window_pattern": 2,
    })  # fmt: skip
    assert [layer.rope_theta for layer in positions.layers] == [10_000.0, 1e6, 10_000.0, 1e6]
    assert [layer.position.strategy for layer in positions.layers] == ["rope", "linear", "rope", "linear"]


def test_a_tower_for_text_is_found() -> None:
    positions = trivium.position.from_config({"model_type": "llava", "text_config": {**TINY, "rope_theta": 5000.0}, "vision_config": {}})
    assert len(positions) == 4 and positions[0].rope_theta == 5000.0


def test_it_says_what_it_found() -> None:
    text = str(trivium.position.from_config(FAMILIES["smollm3 no rope every fourth"]()))
    assert "no rope: layers 3" in text and "halves: layers 0, 1, 2" in text


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "rope_scaling": {"type": "spiral"}}, trivium.Unsupported, "spiral"),
        ({"hidden_size": 64}, trivium.InvalidArgument, "layers"),
        ({"num_hidden_layers": 2, "hidden_size": 64}, trivium.InvalidArgument, "attention heads"),
        ({"num_hidden_layers": 2, "kv_lora_rank": 8}, trivium.Unsupported, "latent"),
    ],
)
def test_configs_that_cannot_be_read(content: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        trivium.position.from_config(content)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(trivium.CheckpointError, match="config.json"):
        trivium.position.from_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(trivium.CheckpointError, match="object"):
        trivium.position.from_config(tmp_path)
