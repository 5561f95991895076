"""What is to be run: arms x tasks x lengths x samples, on a subject."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.arms import Arm, parse_all
from trivium.eval.schema import check
from trivium.eval.subject import Subject
from trivium.eval.tasks import GROUPS, TASKS, expand

KEYS = ("arms", "tasks", "lengths", "samples", "seed", "probe_rows", "new_tokens", "chat")


@dataclass(frozen=True)
class Cell:
    """One arm on one sample: the unit that is run once and never again."""

    task: str
    length: int
    index: int
    arm: str


@dataclass(frozen=True)
class Plan:
    """What is to be run: arms x tasks x lengths x samples. The first arm is the baseline.

    ``probe_rows`` random rows of each head measure coverage; 0: it is not measured.
    ``new_tokens`` limits generated answers; 0: each task's own number, which is RULER's.
    ``chat`` puts generated tasks into the model's chat template; None: where it has one.
    """

    arms: tuple[Arm, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int = 20
    seed: int = 0
    probe_rows: int = 0
    new_tokens: int = 0
    chat: bool | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not self.arms or len(set(names)) != len(names):
            raise InvalidArgument(f"arms {names}: want at least one, each with a name of its own")
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise InvalidArgument(f"tasks {list(self.tasks)}: want some of {', '.join(sorted({*TASKS, *GROUPS}))}")
        if not self.lengths or min(self.lengths) < 64 or self.samples < 1:
            raise InvalidArgument(f"lengths {list(self.lengths)}, samples {self.samples}: want lengths from 64 and a sample")
        for name in ("probe_rows", "new_tokens"):
            if getattr(self, name) < 0:
                raise InvalidArgument(f"{name} {getattr(self, name)}: want 0 or more")

    @staticmethod
    def from_file(path: str | PathLike[str]) -> Plan:
        """Read a plan from YAML; see :func:`read`."""
        return read(path)[0]

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def cells(self) -> Iterator[tuple[str, int, int, Arm]]:
        """Task, length, sample and arm, arms innermost: a run cut short has whole pairs."""
        for task in self.tasks:
            for length in self.lengths:
                for index in range(self.samples):
                    for arm in self.arms:
                        yield task, length, index, arm

    def order(self) -> list[Cell]:
        """The cells, by name."""
        return [Cell(task, length, index, arm.name) for task, length, index, arm in self.cells()]


def read(path: str | PathLike[str]) -> tuple[Plan, Subject]:
    """Read a plan and its subject from YAML.

    The keys are ``arms``, ``tasks``, ``lengths``, ``samples``, ``seed``, ``probe_rows``,
    ``new_tokens`` and ``chat`` of the plan and ``model``, ``text``, ``device``, ``dtype`` and ``threads`` of the subject.
    """
    return from_mapping(load_yaml(path), str(path))


def load_yaml(path: str | PathLike[str]) -> Mapping[str, Any]:
    """The keys of a plan file, unchecked."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgument(f"{path}: {error}: want a plan in YAML") from error
    if not isinstance(data, Mapping):
        raise InvalidArgument(f"{path}: want the keys {', '.join((*KEYS, *Subject.keys()))}")
    return data


def from_mapping(data: Mapping[str, Any], where: str = "plan") -> tuple[Plan, Subject]:
    """A plan and its subject from plain values."""
    check(data, where)
    plan = {key: data[key] for key in ("samples", "seed", "probe_rows", "new_tokens", "chat") if key in data}
    arms, tasks, lengths = (data.get(key, []) for key in ("arms", "tasks", "lengths"))
    subject = {key: data[key] for key in Subject.keys() if key in data}
    return Plan(parse_all(arms), expand(map(str, tasks)), tuple(lengths), **plan), Subject(**subject)
