"""The attention functions that transformers calls instead of its own."""

from __future__ import annotations

import time
from typing import Any, Callable

import torch
from torch import nn

import trivium
from trivium._errors import InvalidArgument
from trivium.hf import tracing
from trivium.hf.settings import ATTRIBUTE, Settings
from trivium.hf.visibility import Visibility

# What transformers calls: (module, query, key, value, mask, **kwargs) -> (output, weights).
AttentionFunction = Callable[..., tuple[torch.Tensor, None]]


def attention_function(strategy: str) -> AttentionFunction:
    """The function behind ``attn_implementation="trivium_<strategy>"``."""
    settings = Settings(strategy)

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return _forward(settings, module, *args, **kwargs)

    return forward


def patched(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """The function of a patched model: each layer carries its own settings."""
    settings = getattr(module, ATTRIBUTE, None)
    if settings is None:
        raise InvalidArgument(
            f"patch: {type(module).__name__} belongs to a model that is not patched "
            "but shares its config with one that is: want a config of its own",
            hint="build the model with copy.deepcopy(config)",
        )
    return _forward(settings, module, *args, **kwargs)


def _forward(
    settings: Settings,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """query [batch, q_heads, q_len, head_dim] -> output [batch, q_len, q_heads, head_dim]."""
    _refuse(dropout, position_bias)
    seen = attention_mask
    if not isinstance(seen, Visibility):
        seen = _without_mask(module, query, key, attention_mask, is_causal)
    layer = int(getattr(module, "layer_idx", -1))
    # One token at a time has nothing to select: decode is dense, at the same positions.
    decode = query.shape[2] == 1
    call = {
        "strategy": "dense" if decode else settings.strategy,
        "scale": scaling,
        "softcap": softcap,
        "sinks": None if s_aux is None else s_aux.detach().float(),
        "layout": "bnhd",
        "layer": layer,
        "position": settings.plan(query.shape[3], key.shape[2]),
        **seen.arguments(),
        **({} if decode else settings.params),
    }
    tensors = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    trace = tracing.active()
    if trace is None:
        return trivium.attention(*tensors, **call), None
    wants_mask = trace.wants_mask(layer, decode)
    started = time.perf_counter()
    call |= {"return_report": True, "return_mask": wants_mask}
    if not decode:
        call |= {"probe_rows": trace.probe_rows, "bound": trace.bound, "delta": trace.delta}
    output, report = trivium.attention(*tensors, **call)
    trace.add(layer, query.shape[2], key.shape[2], report, time.perf_counter() - started)
    return output, None


def _refuse(dropout: float, position_bias: Any) -> None:
    if dropout:
        raise InvalidArgument(f"attention: dropout {dropout:g}: want 0", hint="call model.eval()")
    if position_bias is not None:
        raise InvalidArgument("attention: the model adds a position bias: want a model with rope")


def _without_mask(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, mask: Any, is_causal: bool | None
) -> Visibility:
    """A model that builds no mask means a plain one; a ready-made matrix has no description."""
    if mask is not None:
        raise InvalidArgument(
            f"mask: a {type(mask).__name__} was passed in: want the 2-d attention mask of the tokenizer",
            hint="4-d masks work with attn_implementation='eager'",
        )
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    return Visibility(q_offset=key.shape[2] - query.shape[2], causal=causal)
