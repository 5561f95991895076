"""Position plans, made once a forward pass and not once a layer."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from trivium.hf.rotary import Rotary
from trivium.positions import Position, PositionPlan

HELD = 8  # a forward pass needs one for each rope of the model


class Plans:
    """The plans that the layers of a model share, the most recent ones.

    A plan depends on the strategy, the frequencies and the length, so it is found
    again by these: dynamic rope types change the frequencies between passes.
    """

    def __init__(self) -> None:
        self._made: OrderedDict[Any, PositionPlan] = OrderedDict()
        self.asked = 0  # plans that were not there yet

    def get(self, position: Position, rotary: Rotary, head_dim: int, length: int) -> PositionPlan:
        """The plan for sequences of ``length`` tokens, cache included."""
        key = (position.strategy, repr(position.params), rotary.key(), rotary.interleaved, head_dim, length)
        plan = self._made.pop(key, None)
        if plan is None:
            self.asked += 1
            plan = position.plan(head_dim=head_dim, length=length, inv_freq=rotary.inv_freq(), interleaved=rotary.interleaved)
        self._made[key] = plan
        while len(self._made) > HELD:
            self._made.popitem(last=False)
        return plan
