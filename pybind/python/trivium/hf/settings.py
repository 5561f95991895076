"""What one attention layer of a patched model has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from trivium._attention import Attention
from trivium._errors import InvalidArgument
from trivium.hf.plans import Plans
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
    position: Position | PositionPlan | None = None
    rotary: Rotary | None = None
    plans: Plans = field(default_factory=Plans, compare=False, repr=False)  # shared by the layers of a model

    def plan(self, head_dim: int, length: int) -> PositionPlan | None:
        """What ``trivium.attention`` takes as ``position=``, for sequences of ``length`` tokens."""
        if self.position is None or self.rotary is None:
            return None
        if isinstance(self.position, PositionPlan):
            return self.position
        return self.plans.get(self.position, self.rotary, head_dim, length)


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
