"""What one attention layer of a patched model has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from trivium._attention import Attention
from trivium._errors import InvalidArgument
from trivium.hf.rotary import Rotary
from trivium.positions import Position, PositionPlan

# A strategy id, trivium.attention(id, **params), or a mapping with the key "strategy".
Choice = Union[str, Attention, Mapping[str, Any]]
ATTRIBUTE = "_trivium_settings"  # on an attention module while its model is patched


@dataclass(frozen=True)
class Settings:
    """The strategy of a layer and the positions it follows."""

    strategy: str
    params: dict[str, Any] = field(default_factory=dict)
    position: Any = None  # what trivium.attention takes as position=
    rotary: Rotary | None = None

    def position_arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``trivium.attention`` about positions."""
        if self.position is None or self.rotary is None:
            return {}
        return {"position": self.position, "inv_freq": self.rotary.inv_freq()}


def split(choice: Any, what: str) -> tuple[str, dict[str, Any]]:
    """The id and the parameters of a choice."""
    if isinstance(choice, str):
        return choice, {}
    if isinstance(choice, (Attention, Position)):
        return choice.strategy, dict(choice.params)
    if isinstance(choice, Mapping) and isinstance(choice.get("strategy"), str):
        params = dict(choice)
        return params.pop("strategy"), params
    raise InvalidArgument(
        f"{what}: {choice!r}: want a strategy id or a mapping with the key 'strategy'",
        hint=f"{what}='flexprefill' or {what}={{'strategy': 'flexprefill', 'gamma': 0.9}}",
    )


def by_layer(choice: Any, layers: Sequence[int], what: str) -> dict[int, Any]:
    """One choice per layer index, from one choice for all or a mapping by index.

    A mapping by index may leave layers out; they attend densely. The key -1
    stands for every layer that is not named.
    """
    if not isinstance(choice, Mapping) or not all(isinstance(key, int) for key in choice):
        return {layer: choice for layer in layers}
    unknown = sorted(set(choice) - set(layers) - {-1})
    if unknown:
        raise InvalidArgument(f"{what}: layers {unknown}: want indices from {min(layers)} to {max(layers)}")
    return {layer: choice.get(layer, choice.get(-1)) for layer in layers}
