"""See the queries, keys and values of each layer as a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import nn

from trivium.hf.function import attention_function
from trivium.hf.patching import _attention_layers
from trivium.hf.registry import register_function

NAME = "trivium_observed"

# Told of a layer: its index, query [batch, q_heads, n, head_dim], key and value
# [batch, kv_heads, n, head_dim], rotated at their positions, and the scale.
See = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, "float | None"], None]


@contextmanager
def observing(model: Any, see: See) -> Iterator[Any]:
    """Show each layer's attention inputs to a function; attention itself is dense.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    see : callable
        Called before the layer attends. It may borrow the tensors until it returns.
    """
    dense = attention_function("dense")

    def observed(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        see(int(getattr(module, "layer_idx", -1)), query, key, value, kwargs.get("scaling"))
        return dense(module, query, key, value, mask, **kwargs)

    register_function(NAME, observed)
    configs = {id(layer.config): layer.config for layer in _attention_layers(model).values()}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield model
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
