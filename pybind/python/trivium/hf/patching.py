"""Run a model's attention through Trivium for the length of a ``with`` block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

import trivium
from trivium import saved_positions
from trivium._errors import InvalidArgument
from trivium.hf.plans import Plans
from trivium.hf.registry import PATCHED, register
from trivium.hf.rotary import find_rotary, train_length
from trivium.hf.settings import ATTRIBUTE, Choice, Settings, by_layer, split
from trivium.positions import Position, PositionPlan


logger = logging.getLogger(__name__)


@contextmanager
def patch(
    model: Any,
    attention: Choice | dict[int, Choice] = "flexprefill",
    position: Any = None,
    **params: Any,
) -> Iterator[Any]:
    """Attend through a strategy, at the positions of a position strategy.

    Prefill goes through the strategy, decode is dense at the same positions.
    Everything is put back on exit, also after an exception; blocks may nest.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    attention : str, Attention, mapping, or mapping by layer
        A strategy id, ``trivium.attention(id, **params)`` or
        ``{"strategy": id, **params}``; or one of these per layer index, with -1
        for every layer not named. Layers left out attend densely.
    position : str, Position, PositionPlan or mapping
        ``"string"``, ``trivium.position("string", shift=2730)`` or
        ``{"strategy": "string", "shift": 2730}``. The length the model was
        trained for comes from its config unless it is given, STRING's S and W
        from ``trivium-position.json`` beside the model where neither is given
        and ``trivium effective-length`` left that file there.
    **params
        Parameters of the attention strategy, when it is one for all layers, and
        ``precision=`` as :func:`trivium.attention` takes it.

    Examples
    --------
    >>> with trivium.patch(model, attention="flexprefill", gamma=0.9, position="string"):
    ...     model.generate(**inputs)
    """
    register()
    layers = _attention_layers(model)
    settings = _settings(model, layers, attention, position, params)
    configs = {id(layer.config): layer.config for layer in layers.values()}
    before = [(config, config._attn_implementation) for config in configs.values()]
    outer = [(layer, getattr(layer, ATTRIBUTE, None)) for layer in layers.values()]
    try:
        for index, layer in layers.items():
            setattr(layer, ATTRIBUTE, settings[index])
        for config, _ in before:
            config._attn_implementation = PATCHED
        yield model
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
        for layer, previous in outer:
            _restore(layer, previous)


def _restore(layer: nn.Module, previous: Settings | None) -> None:
    if previous is None:
        delattr(layer, ATTRIBUTE)
    else:
        setattr(layer, ATTRIBUTE, previous)


def _attention_layers(model: Any) -> dict[int, Any]:
    """The modules that call an attention function, by layer index."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise InvalidArgument(f"patch: {type(model).__name__}: want a transformers model")
    if not getattr(model, "_supports_attention_backend", False):
        raise InvalidArgument(
            f"patch: {type(model).__name__} does not take attention functions: want a model that does",
            hint="models with attn_implementation='sdpa' through AttentionInterface do, such as Llama or Qwen",
        )
    layers = {
        module.layer_idx: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "is_causal") and hasattr(module, "config")
    }
    if not layers:
        raise InvalidArgument(f"patch: {type(model).__name__} has no attention layer with an index")
    return layers


def _settings(
    model: Any, layers: dict[int, Any], attention: Any, position: Any, params: dict[str, Any]
) -> dict[int, Settings]:
    where = by_layer(attention, list(layers), "attention")
    settings, plans = {}, Plans()
    folder = str(getattr(model, "name_or_path", "") or "")
    for index, layer in layers.items():
        strategy, own = split(where[index] if where[index] is not None else "dense", "attention")
        rotary = None if position is None else find_rotary(model, layer)
        settings[index] = Settings(strategy, {**own, **params}, _position(position, layer.config, folder), rotary, plans)
    return settings


def _position(choice: Any, config: Any, folder: str) -> Position | PositionPlan | None:
    """A position strategy that knows the length the model was trained for, and what was found for it."""
    if choice is None or isinstance(choice, PositionPlan):
        return choice
    strategy, params = split(choice, "position")
    if strategy == "string" and not {"shift", "local", "train_length"} & set(params):
        found = saved_positions.load(folder) if folder else None
        if found is not None and found.train_length == train_length(config):
            params.update(found.params)
            logger.info("position 'string': S %d, W %d, found for this model: %s", found.shift, found.local, folder)
    known = {parameter.name for parameter in trivium.info(f"position.{strategy}").parameters}
    if "train_length" in known and "train_length" not in params:
        params["train_length"] = train_length(config)
    return trivium.position(strategy, **params)
