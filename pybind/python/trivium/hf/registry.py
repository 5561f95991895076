"""Tell transformers about Trivium's attention functions."""

from __future__ import annotations

import trivium
from trivium.hf.function import AttentionFunction, attention_function, patched
from trivium.hf.visibility import visibility

PREFIX = "trivium_"
PATCHED = "trivium"  # the implementation of a patched model


def register() -> list[str]:
    """Register an attention function and its mask function for each strategy.

    Afterwards ``attn_implementation="trivium_flexprefill"`` works wherever
    transformers takes an attention implementation. Registering again is free.

    Returns
    -------
    list of str
        The names that ``attn_implementation`` now takes.
    """
    functions = {PREFIX + info.name: attention_function(info.name) for info in trivium.list("attention")}
    for name, function in functions.items():
        register_function(name, function)
    register_function(PATCHED, patched)
    return sorted(functions)


def register_function(name: str, function: AttentionFunction) -> None:
    """The two registries belong together: without the second, transformers
    builds no mask at all and padding is attended to."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, visibility)
