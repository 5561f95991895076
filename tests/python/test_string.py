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


def expected(q: Array, k: Array, v: Array, inv_freq: Array) -> Array:
    """Softmax attention with an explicit n x n matrix of relative positions."""
    d = np.arange(N)[:, None] - np.arange(N)[None, :]
    relative = np.where(d < S, d, d - S + W).astype(np.float64)
    angle = relative[:, :, None] * inv_freq
    half = DIM // 2
    q1, q2, k1, k2 = q[..., :half], q[..., half:], k[..., :half], k[..., half:]
    along = np.einsum("hif,hjf,ijf->hij", q1, k1, np.cos(angle)) + np.einsum("hif,hjf,ijf->hij", q2, k2, np.cos(angle))
    across = np.einsum("hif,hjf,ijf->hij", q1, k2, np.sin(angle)) - np.einsum("hif,hjf,ijf->hij", q2, k1, np.sin(angle))
    scores = np.where(d >= 0, (along + across) / np.sqrt(DIM), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
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
