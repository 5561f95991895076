"""The strategy: a sliding window in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NAME = "numpy-window"

INFO = {
    "name": NAME,
    "kind": "attention",
    "summary": "a sliding window, in numpy",
    "license": "Apache-2.0",
    "version": "0.1.0",
    "parameters": [
        {
            "name": "recent", "type": "int", "default": 64, "unit": "tokens", "min": 1,
            "doc": "nearest tokens that a query sees",
        },
    ],
    "capabilities": {
        "dtypes": ["float32", "float16"], "devices": ["cpu"], "gqa": True, "chunked": True, "deterministic": True,
        "attends": True, "chunk_rule": "same",
    },
}  # fmt: skip

ROWS = 64  # at a time, between two looks at whether the call was cancelled
TILE = 128  # in which density is counted


def attend(q, k, v, out, lse, *, offset, recent, scale, causal, window, softcap, sinks, check: Callable[[], None]) -> float:
    """Write the output and lse of one batch row; give its density."""
    heads, queries, _ = q.shape
    keys = np.arange(k.shape[1])
    kept = tiles = 0
    for h in range(heads):
        key, value = (x[h * k.shape[0] // heads].astype(np.float32) for x in (k, v))
        for first in range(0, queries, ROWS):
            check()
            rows = offset + np.arange(first, min(first + ROWS, queries))
            distance = rows[:, None] - keys[None, :]
            visible = distance >= 0 if causal else np.ones_like(distance, bool)
            if window:
                visible &= distance < window
            seen = visible & (distance < recent)
            kept, tiles = kept + _tiles(seen), tiles + _tiles(visible)
            scores = q[h, first : first + ROWS].astype(np.float32) @ key.T * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            scores[~seen] = -np.inf
            most = scores.max(axis=1, initial=-np.inf if sinks is None else sinks[h])
            base = np.where(np.isfinite(most), most, 0)[:, None]
            weights = np.exp(scores - base)
            total = weights.sum(axis=1) + (0 if sinks is None else np.exp(sinks[h] - base[:, 0]))
            # A key that no query of these rows sees may hold NaN: zero times it is not zero.
            used = seen.any(axis=0)
            result = np.zeros((len(rows), value.shape[1]), np.float32)
            for i in range(len(rows)):
                columns = np.flatnonzero(seen[i] & used)
                if total[i] > 0:
                    result[i] = weights[i, columns] @ value[columns] / total[i]
            out[h, first : first + ROWS] = result
            if lse is not None:
                with np.errstate(divide="ignore"):
                    lse[h, first : first + ROWS] = np.where(total > 0, base[:, 0] + np.log(total), -np.inf)
    return kept / max(tiles, 1)


def _tiles(mask: np.ndarray) -> int:
    """Count the tiles of keys that hold a pair; the rows lie in one or two tiles of queries."""
    return sum(bool(mask[:, j : j + TILE].any()) for j in range(0, mask.shape[1], TILE))
