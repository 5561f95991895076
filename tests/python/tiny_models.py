"""Small random transformers models, one per family that the tests cover."""

from __future__ import annotations

from typing import Any, Callable

import torch
import transformers

VOCABULARY = 97
SHARED = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)

ALL: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SHARED),
    "qwen2": lambda: transformers.Qwen2Config(**SHARED),
    "qwen3": lambda: transformers.Qwen3Config(**SHARED, head_dim=16),
    "mistral-window": lambda: transformers.MistralConfig(**SHARED, sliding_window=24),
    "gemma2-softcap": lambda: transformers.Gemma2Config(
        **SHARED, head_dim=16, query_pre_attn_scalar=16, sliding_window=24, attn_logit_softcapping=3.0
    ),
    "gemma3-layer-types": lambda: transformers.Gemma3TextConfig(
        **SHARED, head_dim=16, query_pre_attn_scalar=16, sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": lambda: transformers.Phi3Config(**SHARED),
    "glm-interleaved": lambda: transformers.GlmConfig(**SHARED, head_dim=16, partial_rotary_factor=0.5),
    "cohere2-no-rope": lambda: transformers.Cohere2Config(
        **SHARED, sliding_window=24, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "exaone4-no-rope": lambda: transformers.Exaone4Config(
        **SHARED, sliding_window=24, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "phi-partial-rotary": lambda: transformers.PhiConfig(**SHARED, partial_rotary_factor=0.5),
    "smollm3-no-rope-layers": lambda: transformers.SmolLM3Config(**SHARED, no_rope_layer_interval=2),
    "gpt-oss-sinks": lambda: transformers.GptOssConfig(
        **SHARED, head_dim=16, sliding_window=24, num_local_experts=2, num_experts_per_tok=1
    ),
}

# The oldest supported release does not know all of them.
YOUNG = {"gpt-oss-sinks": "GptOssConfig", "exaone4-no-rope": "Exaone4Config"}
FAMILIES = {name: make for name, make in ALL.items() if hasattr(transformers, YOUNG.get(name, "LlamaConfig"))}


def build(family: str, seed: int = 0) -> Any:
    """A model in float32, in eval mode, with eager attention."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # larger than the initial 0.02, so attention is not flat
        if parameter.ndim > 1 or parameter.numel() == config.num_attention_heads:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.float().eval()


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random ids [batch, length], none of them the padding token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (batch, length), generator=generator)
