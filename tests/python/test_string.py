"""STRING through the plugin against scores that are computed pair by pair, at the distances it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import trivium

TRAIN, S, W, THETA = 96, 32, 8, 1e4
N, DIM = 150, 16

Array = npt.NDArray[np.float64]


def rotate(x: Array, positions: Array, inv_freq: Array) -> Array:
    angle = positions[:, None] * inv_freq[None, :]
    a, b = x[..., : DIM // 2], x[..., DIM // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def scores(q: Array, k: Array, inv_freq: Array, relative: Array) -> Array:
    """Scores of every pair at explicit relative positions [n, n]."""
    angle = relative[:, :, None] * inv_freq
    half = DIM // 2
    q1, q2, k1, k2 = q[..., :half], q[..., half:], k[..., :half], k[..., half:]
    along = np.einsum("hif,hjf,ijf->hij", q1, k1, np.cos(angle)) + np.einsum("hif,hjf,ijf->hij", q2, k2, np.cos(angle))
    across = np.einsum("hif,hjf,ijf->hij", q1, k2, np.sin(angle)) - np.einsum("hif,hjf,ijf->hij", q2, k1, np.sin(angle))
    return (along + across) / np.sqrt(DIM)


DISTANCE = np.arange(N)[:, None] - np.arange(N)[None, :]


def expected(q: Array, k: Array, v: Array, inv_freq: Array, twice: bool = False) -> Array:
    """Softmax attention with an explicit n x n matrix of relative positions.

    With ``twice``, as the released code: a window that includes distance S, and the
    rest from S on, joined by their sums.
    """
    shifted = np.where(DISTANCE < S, DISTANCE, DISTANCE - S + W).astype(np.float64)
    weights = np.where(DISTANCE >= 0, np.exp(scores(q, k, inv_freq, shifted)), 0)
    if twice:
        weights += np.where(DISTANCE == S, np.exp(scores(q, k, inv_freq, DISTANCE.astype(np.float64))), 0)
    return (weights / weights.sum(-1, keepdims=True)) @ v


@pytest.fixture
def problem(rng: np.random.Generator) -> tuple[list[npt.NDArray[np.float32]], Array, Array]:
    raw = [rng.standard_normal((2, N, DIM)) for _ in range(3)]
    inv_freq = THETA ** (-np.arange(0, DIM, 2) / DIM)
    positions = np.arange(N, dtype=np.float64)
    rotated = [rotate(raw[0], positions, inv_freq), rotate(raw[1], positions, inv_freq), raw[2]]
    return [x[None].astype(np.float32) for x in rotated], expected(*raw, inv_freq), inv_freq


CALLS = {"prefill": [(0, N)], "chunks": [(0, 41), (41, 100), (100, N)], "decode": [(i, i + 1) for i in range(0, N, 7)]}


@pytest.mark.parametrize("name", CALLS)
def test_string_is_the_explicit_rule(name: str, problem: Any) -> None:
    (q, k, v), want, inv_freq = problem
    string = trivium.position("string", train_length=TRAIN, shift=S, local=W)
    for start, end in CALLS[name]:
        out = trivium.attention(
            q[:, :, start:end], k[:, :, :end], v[:, :, :end], strategy="dense", position=string, inv_freq=inv_freq,
            q_offset=start,
        )  # fmt: skip
        np.testing.assert_allclose(out[0], want[:, start:end], atol=1e-5)


def test_released_counts_distance_s_twice_in_prefill_and_once_in_decoding(rng: np.random.Generator) -> None:
    raw = [rng.standard_normal((2, N, DIM)) for _ in range(3)]
    inv_freq = THETA ** (-np.arange(0, DIM, 2) / DIM)
    positions = np.arange(N, dtype=np.float64)
    q, k, v = (x[None].astype(np.float32) for x in (rotate(raw[0], positions, inv_freq), rotate(raw[1], positions, inv_freq), raw[2]))
    released = trivium.position("string", train_length=TRAIN, shift=S, local=W, compat="released", attention_factor=1.0)
    call: dict[str, Any] = dict(strategy="dense", position=released, inv_freq=inv_freq)
    once, twice = expected(*raw, inv_freq), expected(*raw, inv_freq, twice=True)
    out = trivium.attention(q, k, v, **call)
    np.testing.assert_allclose(out[0], twice, atol=1e-5)
    assert np.abs(once - twice)[:, S:].max() > 1e-2, "counting twice must matter for this test to say anything"
    np.testing.assert_array_equal(out[:, :, :S], trivium.attention(q, k, v, strategy="dense")[:, :, :S])
    step = trivium.attention(q[:, :, -1:], k, v, q_offset=N - 1, **call)
    np.testing.assert_allclose(step[0], once[:, -1:], atol=1e-5)
    plan = released.plan(head_dim=DIM, length=N, inv_freq=inv_freq)
    assert plan.twice == S and trivium.position("string", shift=S, local=W).plan(head_dim=DIM, length=N, inv_freq=inv_freq).twice == 0


@pytest.mark.parametrize("strategy,params", [
    ("rope", {}), ("string", {"train_length": TRAIN, "shift": S, "local": W}), ("rerope", {}), ("selfextend", {}), ("dca", {}),
])  # fmt: skip
def test_every_pair_lies_in_one_band(strategy: str, params: dict[str, Any]) -> None:
    plan = trivium.position(strategy, **params).plan(head_dim=DIM, length=N, rope_theta=THETA, train_length=TRAIN)
    m, n = np.meshgrid(np.arange(N), np.arange(N), indexing="ij")
    inside = np.zeros((N, N), dtype=int)
    for band in plan.bands:
        d = m // band.chunk - n // band.chunk
        inside += (d >= band.low) & (d < band.high)
    np.testing.assert_array_equal(inside, 1)


def test_string_distances() -> None:
    plan = trivium.position("string", train_length=TRAIN, shift=S, local=W).plan(head_dim=DIM, length=N, rope_theta=THETA)
    relative = plan.relative_positions(N)
    d = np.arange(N)[:, None] - np.arange(N)[None, :]
    assert np.isnan(relative[d < 0]).all()
    np.testing.assert_array_equal(relative[(d >= 0) & (d < S)], d[(d >= 0) & (d < S)])
    np.testing.assert_array_equal(relative[d >= S], (d - S + W)[d >= S])
    assert np.nanmax(relative) == N - 1 - S + W


def test_a_plan_is_made_once_for_calls_that_are_alike() -> None:
    from trivium import _attention
    from trivium._engine import default_engine

    engine = default_engine()

    def make(position: Any, length: int = 300, theta: float | None = 1e4, inv_freq: Any = None) -> Any:
        return _attention._plan(position, 64, length, inv_freq, theta, engine)

    first = make(trivium.position("string", train_length=8192))
    assert make(trivium.position("string", train_length=8192)) is first
    frequencies = np.linspace(1, 0.1, 32)
    others = [
        make("linear"), make(trivium.position("string", train_length=4096)), make(trivium.position("string", train_length=8192), 301),
        make(trivium.position("string", train_length=8192), theta=1e5),
        make(trivium.position("string", train_length=8192), theta=None, inv_freq=frequencies),
        make(trivium.position("string", train_length=8192), theta=None, inv_freq=frequencies / 2),
    ]  # fmt: skip
    assert len({id(p) for p in (first, *others)}) == 1 + len(others)
    assert make(trivium.position("string", train_length=8192)) == first
    assert make(first) is first
