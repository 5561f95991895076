"""Means, intervals and paired differences from the records of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from trivium.eval.bootstrap import Interval, interval, paired
from trivium.eval.plan import Cell, Plan

Records = dict[Cell, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One arm on one task at one length, and its difference from the baseline.

    Attributes
    ----------
    metrics, differences : dict of Interval
        By metric: the mean, and the paired difference from the baseline.
    curves, curve_differences : dict of list of Interval
        The same in each part of the window, where a task has them.
    density, coverage : float
        Means over samples; coverage is None where it was not measured.
    ttft_s, attention_s : float
        Median wall clock of the prefill, and of attention in it, without measuring coverage.
    processes : int
        How many shared the machine while that was timed, at most.
    chat : bool
        Whether the prompts were turns of the model's chat template.
    """

    task: str
    length: int
    arm: str
    metrics: dict[str, Interval]
    differences: dict[str, Interval]
    density: float
    coverage: float | None
    ttft_s: float
    attention_s: float
    processes: int = 1
    chat: bool = False
    curves: dict[str, list[Interval]] = field(default_factory=dict)
    curve_differences: dict[str, list[Interval]] = field(default_factory=dict)

    @property
    def exact(self) -> Interval:
        """Share of samples of which every scored token was the most likely one."""
        return self.metrics["exact"]

    @property
    def nll(self) -> Interval:
        """Negative log-likelihood of the scored tokens."""
        return self.metrics["nll"]

    @property
    def exact_difference(self) -> Interval:
        """Paired difference of ``exact`` from the baseline."""
        return self.differences["exact"]

    @property
    def nll_difference(self) -> Interval:
        """Paired difference of ``nll`` from the baseline."""
        return self.differences["nll"]


def summarise(plan: Plan, records: Records) -> list[Row]:
    """A row for each task, length and arm."""
    return [_row(plan, records, task, length, arm.name) for task in plan.tasks for length in plan.lengths for arm in plan.arms]


def _row(plan: Plan, records: Records, task: str, length: int, arm: str) -> Row:
    own = [records[Cell(task, length, index, arm)] for index in range(plan.samples)]
    base = [records[Cell(task, length, index, plan.baseline.name)] for index in range(plan.samples)]
    coverage = [record["coverage"] for record in own if record["coverage"] is not None]
    scores = {metric: [record["scores"][metric] for record in own] for metric in own[0]["scores"]}
    curves = {metric: list(zip(*(record["curves"][metric] for record in own))) for metric in own[0]["curves"]}
    base_curves = {metric: list(zip(*(record["curves"][metric] for record in base))) for metric in curves}
    return Row(
        task=task,
        length=length,
        arm=arm,
        metrics={metric: interval(values) for metric, values in scores.items()},
        differences={metric: paired(values, [b["scores"][metric] for b in base]) for metric, values in scores.items()},
        density=_mean([1.0 if record["density"] is None else record["density"] for record in own]),
        coverage=_mean(coverage) if coverage else None,
        ttft_s=median(record["ttft_s"] for record in own),
        attention_s=median(record["attention_s"] for record in own),
        processes=max(record["processes"] for record in own),
        chat=own[0]["chat"],
        curves={metric: [interval(part) for part in parts] for metric, parts in curves.items()},
        curve_differences={
            metric: [paired(part, other) for part, other in zip(parts, base_curves[metric])] for metric, parts in curves.items()
        },
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
