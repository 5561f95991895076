"""Attention spelled out pair by pair: the oracle of the Python tests.

Nothing here is fast or clever. Scores are an explicit [q_len, k_len] matrix in
float64, each pair is rotated to the positions its band gives it, and what a
query may see is a boolean matrix. The semantics are those of
``core.AttentionRequest`` and ``core.PositionPlan``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import torch

Shift = Callable[[torch.Tensor], torch.Tensor]


def identity(position: torch.Tensor) -> torch.Tensor:
    return position


@dataclass(frozen=True)
class Band:
    """Distances in [low, high) and the positions that hold there."""

    low: float
    high: float
    query: Shift = identity
    key: Shift = identity


PLAIN = (Band(-math.inf, math.inf),)


def string_bands(train_length: int, shift: int, local: int) -> tuple[Band, ...]:
    """STRING: true positions below distance S, queries at i - S + W from there on.

    ``train_length`` is taken so that the call reads as the user's does.
    """
    del train_length
    far = Band(shift, math.inf, query=lambda i: i - shift + local)
    return (Band(-math.inf, shift), far)


def rotate(x: torch.Tensor, position: torch.Tensor, inv_freq: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Rotate ``x`` [..., n, d] by ``position`` [n], pairs (i, i + rotary_dim/2), or (2i, 2i + 1)."""
    half = inv_freq.numel()
    if interleaved:
        order = [*range(0, 2 * half, 2), *range(1, 2 * half, 2), *range(2 * half, x.shape[-1])]
        back = torch.argsort(torch.tensor(order))
        return rotate(x[..., order], position, inv_freq)[..., back]
    angle = position.to(x.dtype)[:, None] * inv_freq.to(x.dtype)
    cos, sin = angle.cos(), angle.sin()
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def visible_pairs(
    q_index: torch.Tensor,
    k_len: int,
    start: int,
    end: int,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """What each query may see: bool [q_len, k_len]."""
    key = torch.arange(k_len)
    distance = q_index[:, None] - key
    seen = ((key >= start) & (key < end)).expand_as(distance).clone()
    if causal:
        seen &= distance >= 0
        seen &= ((q_index >= start) & (q_index < end))[:, None]
    if window is not None:
        seen &= distance < window
    return seen


def tiles_to_pairs(kept: torch.Tensor, block_size: int, q_position: torch.Tensor, k_position: torch.Tensor) -> torch.Tensor:
    """Spread ``kept`` [q_blocks, k_blocks] over pairs of positions."""
    rows = (q_position // block_size - int(q_position[0]) // block_size).clamp(0, kept.shape[0] - 1)
    columns = (k_position // block_size).clamp(0, kept.shape[1] - 1)
    return kept[rows][:, columns]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    q_offset: int | Sequence[int] = 0,
    k_start: Sequence[int] | None = None,
    k_end: Sequence[int] | None = None,
    cu_seqlens: Sequence[int] | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Sequence[float] | None = None,
    bands: Sequence[Band] = PLAIN,
    inv_freq: Sequence[float] | None = None,
    interleaved: bool = False,
    kept: torch.Tensor | None = None,
    block_size: int = 128,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [batch, q_heads, q_len, head_dim] and lse [batch, q_heads, q_len], float64.

    q [batch, q_heads, q_len, head_dim]; k, v [batch, kv_heads, k_len, head_dim];
    kept: bool [q_heads, q_blocks, k_blocks].
    """
    if cu_seqlens is not None:
        return _packed(q, k, v, list(cu_seqlens), causal=causal, scale=scale, window=window, softcap=softcap,
                       sinks=sinks, bands=bands, inv_freq=inv_freq)
    batch, q_heads, q_len, head_dim = q.shape
    group = q_heads // k.shape[1]
    offsets = [int(q_offset)] * batch if isinstance(q_offset, int) else [int(o) for o in q_offset]
    out = torch.zeros(batch, q_heads, q_len, v.shape[-1], dtype=torch.float64)
    lse = torch.full((batch, q_heads, q_len), -math.inf, dtype=torch.float64)
    for b in range(batch):
        start = int(k_start[b]) if k_start is not None else 0
        end = int(k_end[b]) if k_end is not None else k.shape[2]
        q_index = torch.arange(q_len) + offsets[b]
        seen = visible_pairs(q_index, k.shape[2], start, end, causal, window)
        m, n = q_index - start, torch.arange(k.shape[2]) - start
        for h in range(q_heads):
            pairs = seen
            if kept is not None:
                pairs = seen & tiles_to_pairs(kept[h], block_size, m, n)
            score = _scores(q[b, h].double(), k[b, h // group].double(), m, n, bands, inv_freq, interleaved)
            score = score * (scale if scale is not None else head_dim**-0.5)
            if softcap:
                score = softcap * torch.tanh(score / softcap)
            score = score.masked_fill(~pairs, -math.inf)
            sink = None if sinks is None else float(sinks[h])
            out[b, h], lse[b, h] = _softmax(score, v[b, h // group].double(), sink)
    return out, lse


def _scores(q: torch.Tensor, k: torch.Tensor, m: torch.Tensor, n: torch.Tensor, bands: Sequence[Band],
            inv_freq: Sequence[float] | None, interleaved: bool) -> torch.Tensor:
    """Raw scores [q_len, k_len] of rotated q and k, each pair in its band."""
    if inv_freq is None:
        return q @ k.T
    freq = torch.tensor(list(inv_freq), dtype=torch.float64)
    distance = m[:, None] - n
    score = torch.zeros(distance.shape, dtype=torch.float64)
    for band in bands:
        extra_q = band.query(m.double()) - m
        extra_k = band.key(n.double()) - n
        here = rotate(q, extra_q, freq, interleaved) @ rotate(k, extra_k, freq, interleaved).T
        score = torch.where((distance >= band.low) & (distance < band.high), here, score)
    return score


def _softmax(score: torch.Tensor, v: torch.Tensor, sink: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    lse = torch.logsumexp(score, dim=-1)
    if sink is not None:
        lse = torch.where(lse == -math.inf, lse, torch.logaddexp(lse, torch.tensor(sink, dtype=lse.dtype)))
    weight = torch.exp(score - lse[:, None])
    return torch.nan_to_num(weight, nan=0.0) @ v, lse


def _packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: list[int], **rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [
        attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], **rest)  # type: ignore[arg-type]
        for a, b in zip(cu, cu[1:])
    ]
    return torch.cat([o for o, _ in parts], dim=2), torch.cat([s for _, s in parts], dim=2)
