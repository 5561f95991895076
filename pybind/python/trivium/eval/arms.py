"""Arms: a name, an attention and a position strategy, and how a model runs under them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import trivium
from trivium._errors import InvalidArgument
from trivium.hf import tracing

TORCH = "torch"  # torch's own attention: the arm that Trivium has no part in
TIMED_SDPA = "trivium_timed_sdpa"


@dataclass(frozen=True)
class Arm:
    """A name for the table, and what ``trivium.patch`` takes; ``"torch"`` leaves the model alone."""

    name: str
    attention: Any
    position: Any = None

    @staticmethod
    def parse(value: Any) -> Arm:
        """An arm from configuration: a strategy id, or a mapping with ``attention`` and more."""
        if isinstance(value, str):
            return Arm(value, value)
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
