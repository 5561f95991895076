"""Automatic S and W: a small grid, each point on the same prompts, the best kept beside the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium._errors import InvalidArgument
from trivium.effective.arms import string_arms
from trivium.effective.study import PERPLEXITY, run_plan
from trivium.effective.subject import Target
from trivium.eval.arms import Arm
from trivium.eval.bootstrap import Interval, interval, paired
from trivium.eval.plan import Cell, Plan
from trivium.eval.summary import Records
from trivium.saved_positions import Saved

SHARES = (1 / 4, 1 / 3, 1 / 2)  # of the trained length, for S
LOCALS = (32, 128)  # W
SEED = 1  # other prompts than those of a study, whose seed is 0
TOLERATED = 0.05  # rise of the likelihood of text over plain rope, natural log per token
ROPE = "rope"


@dataclass(frozen=True)
class Tried:
    """One S and W of the grid."""

    shift: int
    local: int
    exact: Interval
    nll: float  # of the needle
    text_rise: Interval  # of the NLL of text over plain rope, paired


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Attributes
    ----------
    shift, local : int
        The S and W to use.
    gain : Interval
        Share retrieved with them, less that of plain rope, on the same prompts.
    helps : bool
        Whether the interval of the gain lies above 0.
    tried : tuple of Tried
        The grid, best first.
    """

    shift: int
    local: int
    gain: Interval
    rope: Interval
    helps: bool
    tried: tuple[Tried, ...]
    lengths: tuple[int, ...]
    train_length: int

    def saved(self) -> Saved:
        """What is written beside the model."""
        best = self.tried[0]
        measured: dict[str, Any] = {
            "retrieved": best.exact.mean,
            "rope": self.rope.mean,
            "gain": [self.gain.mean, self.gain.low, self.gain.high],
            "text_nll_rise": [best.text_rise.mean, best.text_rise.low, best.text_rise.high],
            "lengths": list(self.lengths),
            "samples": self.gain.samples,
        }
        return Saved(self.shift, self.local, self.train_length, self.helps, measured)


def grid(trained: int, shares: Sequence[float] = SHARES, locals_: Sequence[int] = LOCALS) -> tuple[tuple[int, int], ...]:
    """S and W of the search; W never exceeds S."""
    points = {(max(1, int(share * trained)), local) for share in shares for local in locals_}
    kept = tuple(sorted(point for point in points if point[1] <= point[0]))
    if not kept:
        raise InvalidArgument(f"grid: every W of {list(locals_)} exceeds every S of a model trained for {trained}")
    return kept


def choose(
    target: Target,
    lengths: Sequence[int],
    *,
    samples: int = 32,
    text_samples: int = 4,
    task: str | None = None,
    points: Sequence[tuple[int, int]] | None = None,
    attention: str = "dense",
    out: Path = Path("effective-length") / "search",
    step: Callable[[], None] = lambda: None,
) -> Choice:
    """Search S and W for a model.

    The best point retrieves most over all lengths; of equals, the one that gives the
    needle the higher likelihood. Points that raise the NLL of text by more than .05 are
    out, unless all do. Resumes as :func:`trivium.effective.measure` does.
    """
    points, lengths, task = tuple(points or grid(target.train_length)), tuple(sorted(lengths)), task or target.task
    arms = (Arm(ROPE, attention), *string_arms(points, attention))
    found = run_plan(Plan(arms, (task,), lengths, samples, SEED), target, out / task, step)
    texts = run_plan(Plan(arms, (PERPLEXITY,), lengths, text_samples, SEED), target, out / PERPLEXITY, step)

    def column(records: Records, of: str, name: str, metric: str, count: int) -> list[float]:
        return [records[Cell(of, n, i, name)]["scores"][metric] for n in lengths for i in range(count)]

    rope = column(found, task, ROPE, "exact", samples)
    rope_text = column(texts, PERPLEXITY, ROPE, "nll", text_samples)
    tried = []
    for arm, (shift, local) in zip(arms[1:], points):
        needle = column(found, task, arm.name, "nll", samples)
        tried.append(
            Tried(
                shift,
                local,
                interval(column(found, task, arm.name, "exact", samples)),
                sum(needle) / len(needle),
                paired(column(texts, PERPLEXITY, arm.name, "nll", text_samples), rope_text),
            )
        )
    ranked = tuple(sorted(tried, key=_rank))
    best = ranked[0]
    gain = paired(column(found, task, f"string S={best.shift} W={best.local}", "exact", samples), rope)
    return Choice(best.shift, best.local, gain, interval(rope), gain.low > 0, ranked, lengths, target.train_length)


def _rank(point: Tried) -> tuple[bool, float, float]:
    return point.text_rise.mean > TOLERATED, -point.exact.mean, point.nll
