"""Arms: a name, an attention and a position strategy, and how a model runs under them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import trivium
from trivium._errors import InvalidArgument
from trivium.hf import tracing

TORCH = "torch"  # torch's own attention: the arm that Trivium has no part in
TIMED_SDPA = "trivium_timed_sdpa"
ROPE = "rope"


@dataclass(frozen=True)
class Arm:
    """A name for the table, and what ``trivium.patch`` takes; ``"torch"`` leaves the model alone."""

    name: str
    attention: Any
    position: Any = None

    @staticmethod
    def parse(value: Any) -> Arm:
        """An arm from configuration: an id, ``attention[:param=value,..][+position[:..]]``, or a mapping."""
        if isinstance(value, str):
            return _from_text(value)
        if not isinstance(value, Mapping) or "attention" not in value:
            raise InvalidArgument(f"arm {value!r}: want a strategy id, or a mapping with the key 'attention'")
        unknown = sorted(set(value) - {"name", "attention", "position"})
        if unknown:
            raise InvalidArgument(f"arm {value!r}: unknown keys {unknown}: want name, attention, position")
        attention, position = value["attention"], value.get("position")
        name = value.get("name") or " + ".join(_label(choice) for choice in (attention, position) if choice)
        return Arm(str(name), attention, position)


@contextmanager
def attending(model: Any, arm: Arm) -> Iterator[None]:
    """Run a model's attention as an arm says, for the length of a block."""
    if arm.attention != TORCH:
        with trivium.patch(model, attention=arm.attention, position=arm.position):
            yield
        return
    if arm.position is not None:
        raise InvalidArgument(f"arm {arm.name!r}: torch attends at true positions only: want position to be unset")
    _register_timed_sdpa()
    before = model.config._attn_implementation
    model.config._attn_implementation = TIMED_SDPA
    try:
        yield
    finally:
        model.config._attn_implementation = before


def parse_all(values: Iterable[Any]) -> tuple[Arm, ...]:
    """Arms from configuration, where ``{grid: {attention: [..], position: [..]}}`` stands for every pair.

    A list in place of a parameter's value stands for each of its elements;
    ``rope`` in a grid is the model's own positions.
    """
    return tuple(arm for value in values for arm in _expand(value))


def _expand(value: Any) -> list[Arm]:
    if not isinstance(value, Mapping) or "grid" not in value:
        return [Arm.parse(value)]
    grid = value["grid"]
    if set(value) != {"grid"} or not isinstance(grid, Mapping) or not set(grid) <= {"attention", "position"} or "attention" not in grid:
        raise InvalidArgument(f"arms: {value!r}: want {{grid: {{attention: [..], position: [..]}}}}")
    attentions = [each for choice in _listed(grid["attention"]) for each in _choices(choice)]
    positions = [each for choice in _listed(grid.get("position", [ROPE])) for each in _choices(choice)]
    pairs = [(attention, None if position == ROPE else position) for position in positions for attention in attentions]
    return [Arm.parse({"attention": attention, "position": position}) for attention, position in pairs]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _choices(choice: Any) -> list[Any]:
    """The choices that one with lists of values stands for."""
    if not isinstance(choice, Mapping):
        return [choice]
    columns = [_listed(value) for value in choice.values()]
    return [dict(zip(choice, row)) for row in itertools.product(*columns)]


def _from_text(text: str) -> Arm:
    attention, plus, position = text.partition("+")
    return Arm(text, _choice(attention), _choice(position) if plus else None)


def _choice(text: str) -> Any:
    """``id`` or ``id:param=value,param=value``; values are JSON, or else text."""
    name, colon, pairs = text.strip().partition(":")
    if not colon:
        return name
    params: dict[str, Any] = {}
    for pair in pairs.split(","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise InvalidArgument(f"arm {text!r}: want id:param=value,param=value")
        params[key] = _value(value)
    return {"strategy": name, **params}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _label(choice: Any) -> str:
    if not isinstance(choice, Mapping):
        return str(choice)
    params = ", ".join(f"{key}={value}" for key, value in choice.items() if key != "strategy")
    return f"{choice.get('strategy')}({params})" if params else str(choice.get("strategy"))


def _register_timed_sdpa() -> None:
    """torch's own attention, with its time in the trace as the others have theirs."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    from trivium.report import Report, Times

    def timed(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = sdpa_attention_forward(module, query, key, *args, **kwargs)
        seconds = time.perf_counter() - started
        trace = tracing.active()
        if trace is not None:
            report = Report("sdpa", "torch", torch.get_num_threads(), 1.0, Times(attend_ms=1e3 * seconds))
            trace.add(module.layer_idx, query.shape[2], key.shape[2], report, seconds)
        return result

    AttentionInterface.register(TIMED_SDPA, timed)
    AttentionMaskInterface.register(TIMED_SDPA, sdpa_mask)
