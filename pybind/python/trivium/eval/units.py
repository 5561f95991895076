"""What is run together: one sample under the arms that share its positions.

They share more than the prompt. Decoding is dense whatever selected the blocks of the prefill,
so their answers are decoded side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trivium.eval.arms import TORCH, Arm
from trivium.eval.plan import Cell, Plan


@dataclass(frozen=True)
class Unit:
    """One sample under a group of arms.

    Attributes
    ----------
    arms : tuple of str
        The whole group in the plan's order, also those that are done already: what is decoded
        together depends on the plan alone, and so do the answers, to the last bit.
    missing : tuple of str
        Those whose records are wanted.
    """

    task: str
    length: int
    index: int
    group: int
    arms: tuple[str, ...]
    missing: tuple[str, ...]

    def cell(self, arm: str) -> Cell:
        """The cell of an arm."""
        return Cell(self.task, self.length, self.index, arm)


def units(plan: Plan, missing: Iterable[Cell]) -> Iterator[Unit]:
    """The units that hold the missing cells, in the plan's order."""
    wanted = set(missing)
    groups = [tuple(arm.name for arm in group) for group in groups_of(plan.arms)]
    for task in plan.tasks:
        for length in plan.lengths:
            for index in range(plan.samples):
                for number, arms in enumerate(groups):
                    left = tuple(arm for arm in arms if Cell(task, length, index, arm) in wanted)
                    if left:
                        yield Unit(task, length, index, number, arms, left)


def fairly(units: Iterable[Unit]) -> list[Unit]:
    """An order for many hands: a run cut short has equally many samples of everything, and none waits for a long one at the end."""
    return sorted(units, key=lambda unit: (unit.index, -unit.length, unit.group))


def groups_of(arms: Iterable[Arm]) -> list[tuple[Arm, ...]]:
    """The arms that decode alike: at the same positions, by the same attention."""
    groups: dict[tuple[bool, str], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.attention == TORCH, repr(arm.position)), []).append(arm)
    return [tuple(group) for group in groups.values()]
