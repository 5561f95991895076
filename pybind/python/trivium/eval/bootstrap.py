"""Intervals for means and for paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval over samples."""

    mean: float
    low: float
    high: float
    samples: int


def interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean.

    Parameters
    ----------
    values : sequence of float
        One for each sample; for a paired difference, the differences.
    seed : int
        The same values and seed give the same interval.
    """
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(array.mean()), float(low), float(high), len(array))


def paired(values: Sequence[float], baseline: Sequence[float], *, seed: int = 0) -> Interval:
    """Interval of the mean difference of two arms on the same samples."""
    return interval(np.asarray(values) - np.asarray(baseline), seed=seed)
