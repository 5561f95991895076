"""Retrieval by depth and length under each position strategy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium._errors import InvalidArgument
from trivium._files import replace
from trivium.effective.arms import default_arms
from trivium.effective.subject import Target, open_target
from trivium.eval.arms import Arm
from trivium.eval.bootstrap import Interval, interval, paired
from trivium.eval.files import RECORDS, read_records
from trivium.eval.plan import Cell, Plan
from trivium.eval.runner import run
from trivium.eval.summary import Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY = "study.json"
DEPTHS = 5  # rows of the heat map
PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Row:
    """One position strategy at one length.

    Attributes
    ----------
    exact, difference : Interval
        Share of samples retrieved, and its paired difference from the first arm.
    far : Interval
        The share over samples whose needle lies in the first half of the window.
    nll, nll_difference : Interval
        Of plain text at that length, natural log, and paired; None where it was not measured.
    depths : tuple of float
        Share retrieved by depth, the start of the window first; NaN without a sample.
    """

    arm: str
    length: int
    exact: Interval
    difference: Interval
    far: Interval | None
    nll: Interval | None
    nll_difference: Interval | None
    depths: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """What was found; ``rows`` by length, then by arm."""

    model: str
    task: str
    train_length: int
    threshold: float
    samples: int
    rows: tuple[Row, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that were measured."""
        return tuple(dict.fromkeys(row.length for row in self.rows))

    @property
    def arms(self) -> tuple[str, ...]:
        """The position strategies that were compared."""
        return tuple(dict.fromkeys(row.arm for row in self.rows))

    def row(self, arm: str, length: int) -> Row:
        """One row."""
        return next(row for row in self.rows if row.arm == arm and row.length == length)

    def effective_length(self, arm: str) -> int:
        """The longest length up to which, at every length measured, the threshold is met; 0: none."""
        reached = 0
        for length in sorted(self.lengths):
            if self.row(arm, length).exact.mean < self.threshold:
                break
            reached = length
        return reached

    def plot(self) -> Figure:
        """Draw a heat map of depth against length for each arm."""
        from trivium.effective.picture import heat_maps

        return heat_maps(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "effective_length": {arm: self.effective_length(arm) for arm in self.arms}}


def measure(
    model: str | Target,
    lengths: Sequence[int] | None = None,
    *,
    arms: Sequence[Arm] | None = None,
    samples: int = 32,
    text_samples: int = 8,
    task: str | None = None,
    threshold: float = 0.85,
    seed: int = 0,
    text: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    out: Path = Path("effective-length"),
    step: Callable[[], None] = lambda: None,
) -> Study:
    """Measure retrieval by depth and length for each position strategy.

    Parameters
    ----------
    model : str or Target
        A Hugging Face folder, or ``smollm2``.
    lengths : sequence of int, optional
        Tokens of a prompt; default: a half, all and one and a half of the trained length.
    arms : sequence of Arm, optional
        The first is the baseline of paired differences; default :func:`default_arms`.
    samples, text_samples : int
        Prompts of the task, and windows of plain text for its likelihood, at each length.
    task : str, optional
        ``passkey``, ``needle`` or ``copy``; default: ``passkey`` with a tokenizer, else ``copy``.
    threshold : float
        Share retrieved that counts as using the length.
    out : Path
        Records, one line for each forward pass, and results. A run that was stopped goes
        on where it was; a folder of another plan is refused.
    step : callable
        Called when a forward pass is done.
    """
    target = model if isinstance(model, Target) else open_target(model, text=text, device=device, dtype=dtype)
    lengths = tuple(sorted(lengths or _default_lengths(target.train_length)))
    chosen, task = tuple(arms or default_arms(target.train_length)), task or target.task
    if not 0 < threshold <= 1:
        raise InvalidArgument(f"threshold {threshold:g}: want a share in (0, 1]")
    plan = Plan(chosen, (task,), lengths, samples, seed)
    records = run_plan(plan, target, out / task, step)
    texts: Records = {}
    if text_samples:
        texts = run_plan(Plan(chosen, (PERPLEXITY,), lengths, text_samples, seed), target, out / PERPLEXITY, step)
    rows = tuple(_row(plan, records, texts, text_samples, arm.name, length) for length in lengths for arm in chosen)
    name = target.folder.name if target.folder else target.subject.model
    study = Study(name, task, target.train_length, threshold, samples, rows)
    replace(out / STUDY, json.dumps(study.as_dict(), indent=1))
    return study


def cells(arms: int, lengths: int, samples: int, text_samples: int) -> int:
    """Forward passes of :func:`measure`, for a progress bar."""
    return arms * lengths * (samples + text_samples)


def run_plan(plan: Plan, target: Target, folder: Path, step: Callable[[], None] = lambda: None) -> Records:
    """Run what of a plan is not in a folder yet, and read all of its records."""
    loaded = target.loaded
    run(plan, loaded.model, loaded.tokenizer, loaded.text, folder, step=step, subject=target.subject)
    return read_records(folder / RECORDS)


def _default_lengths(trained: int) -> tuple[int, ...]:
    return trained // 2, trained, trained * 3 // 2


def _row(plan: Plan, records: Records, texts: Records, text_samples: int, arm: str, length: int) -> Row:
    task, base = plan.tasks[0], plan.baseline.name
    own = [records[Cell(task, length, i, arm)] for i in range(plan.samples)]
    first = [records[Cell(task, length, i, base)] for i in range(plan.samples)]
    exact = [record["scores"]["exact"] for record in own]
    far = [value for record, value in zip(own, exact) if record["about"]["depth"] < 0.5]
    nll = [texts[Cell(PERPLEXITY, length, i, arm)]["scores"]["nll"] for i in range(text_samples)]
    base_nll = [texts[Cell(PERPLEXITY, length, i, base)]["scores"]["nll"] for i in range(text_samples)]
    return Row(
        arm=arm,
        length=length,
        exact=interval(exact),
        difference=paired(exact, [record["scores"]["exact"] for record in first]),
        far=interval(far) if far else None,
        nll=interval(nll) if nll else None,
        nll_difference=paired(nll, base_nll) if nll else None,
        depths=_by_depth([record["about"]["depth"] for record in own], exact),
    )


def _by_depth(depths: Sequence[float], values: Sequence[float]) -> tuple[float, ...]:
    bins: list[list[float]] = [[] for _ in range(DEPTHS)]
    for depth, value in zip(depths, values):
        bins[min(int(depth * DEPTHS), DEPTHS - 1)].append(value)
    return tuple(sum(found) / len(found) if found else float("nan") for found in bins)
