"""Tools about positions: how often distances are trained, samples of long plans, pictures."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import trivium

STRING = {"train_length": 96, "shift": 32, "local": 8}


def plan(strategy: str = "string", length: int = 200, **params: Any) -> trivium.PositionPlan:
    return trivium.position(strategy, **(params or STRING)).plan(head_dim=16, length=length, rope_theta=1e4, train_length=96)


def test_frequency_counts_pairs() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 60, 25).tolist()
    counted = np.zeros(max(lengths))
    for n in lengths:
        for i in range(n):
            counted[i] += n - i  # pairs (m, m - i) of a sequence
    np.testing.assert_array_equal(trivium.position.frequency(lengths), counted)
    np.testing.assert_array_equal(trivium.position.frequency(np.array(lengths)), counted)


def test_frequency_by_counts() -> None:
    np.testing.assert_allclose(
        trivium.position.frequency({8: 0.75, 16: 0.25}), 0.75 * np.r_[np.arange(8, 0, -1), np.zeros(8)] + 0.25 * np.arange(16, 0, -1)
    )


def test_frequency_is_skewed_to_the_left_even_for_full_windows() -> None:
    """With every sequence at its full length, the far third of distances has a ninth of the pairs."""
    seen = trivium.position.frequency([3000] * 10)
    assert seen[2000:].sum() / seen.sum() == pytest.approx(1 / 9, rel=1e-2)


def test_frequency_of_long_sequences_needs_little_memory() -> None:
    tracemalloc.start()
    try:
        trivium.position.frequency([1_000_000, 131_072, 8192])
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("lengths", [[], [0], [1.5], [[1, 2]], {4: -1.0}, {4: float("nan")}])
def test_lengths_that_are_none(lengths: Any) -> None:
    with pytest.raises(trivium.InvalidArgument, match="lengths"):
        trivium.position.frequency(lengths)


def test_long_plans_are_sampled() -> None:
    n = 1_000_000
    made = plan(length=n)
    tracemalloc.start()
    try:
        relative = made.relative_positions(n)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert relative.shape == (1024, 1024)
    assert relative[-1, 0] == n - 1 - 32 + 8, "the first and the last token are among the sampled"
    assert np.nanmax(relative) == relative[-1, 0]


def test_matrices_are_whole_up_to_4096() -> None:
    assert plan(length=4096).relative_positions(4096).shape == (4096, 4096)
    with pytest.raises(trivium.InvalidArgument, match="n 0"):
        plan().relative_positions(0)


@pytest.mark.parametrize("strategy", ["rope", "string", "rerope", "selfextend", "dca"])
def test_borders_in_the_picture_are_those_of_the_bands(strategy: str) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    n = 150
    params = {"string": STRING, "dca": {"chunk": 40}}.get(strategy, {})
    made = trivium.position(strategy, **params).plan(head_dim=16, length=n, rope_theta=1e4, train_length=96)
    ax = made.plot(n)
    stairs = [line.get_xydata() for line in ax.get_lines()]
    borders = [band for band in made.bands if 0 < band.low * band.chunk < n]
    assert len(stairs) == len(borders) == {"rope": 0, "dca": 2}.get(strategy, 1)
    for line, band in zip(stairs, borders):
        corners = dict((int(q), int(k)) for k, q in line)
        for m in range(band.low * band.chunk, n, max(band.chunk, 1)):
            keys = [k for k in range(m + 1) if m // band.chunk - k // band.chunk >= band.low]
            assert corners[m] == len(keys)


def test_small_pictures_say_their_numbers() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    made = plan(length=12, train_length=12, shift=4, local=1)
    written = {text.get_text() for text in made.plot(12).texts}
    assert written == {str(d) for d in range(9)}  # 11 - 4 + 1
    assert not made.plot(25).texts
