"""Position strategies and the plans they make."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trivium import _bridge
from trivium._engine import Engine, default_engine
from trivium._errors import InvalidArgument
from trivium._params import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trivium.model_positions import ModelPositions

UNBOUNDED_LOW = -(2**63)
UNBOUNDED_HIGH = 2**63 - 1

# An n x n matrix of float64 is 128 MiB at this n; beyond it tokens are sampled.
LARGEST_MATRIX = 4096
SAMPLED = 1024


@dataclass(frozen=True)
class Rule:
    """Maps position i to ``min(scale * floor((i mod modulo) / group) + offset, limit)``.

    ``modulo`` 0, ``group`` 0 or 1 and ``limit`` 0 mean none.
    """

    scale: float = 1.0
    offset: float = 0.0
    modulo: int = 0
    group: int = 0
    limit: float = 0.0

    def position(self, i: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Apply the rule to true positions."""
        if self.modulo:
            i = i % self.modulo
        if self.group > 1:
            i = i // self.group
        p = self.scale * i.astype(np.float64) + self.offset
        return np.minimum(p, self.limit) if self.limit else p


@dataclass(frozen=True)
class Band:
    """A region of relative distance, ``low <= floor(m / chunk) - floor(n / chunk) < high``.

    In it queries and keys are taken at the positions their rules give.
    """

    chunk: int
    low: int
    high: int
    query: Rule
    key: Rule


@dataclass(frozen=True)
class PositionPlan:
    """What a kernel needs to know of positions; every pair lies in exactly one band.

    Attributes
    ----------
    strategy : str
    inv_freq : tuple of float
        Rotary frequencies by which scores are computed, radians per token.
    applied_inv_freq : tuple of float
        Frequencies by which the query and key that come in are rotated already.
    attention_scale : float
        Factor of cosine and sine; scores get its square.
    bands : tuple of Band
    twice : int
        Distance whose pairs count once more, at their true positions, in calls of more
        than one query; 0: none. STRING's ``compat="released"`` has it.
    """

    strategy: str
    inv_freq: tuple[float, ...]
    applied_inv_freq: tuple[float, ...]
    attention_scale: float
    bands: tuple[Band, ...]
    interleaved: bool = False
    twice: int = 0
    _handle: int = field(default=0, repr=False, compare=False)

    def relative(
        self, m: npt.NDArray[np.int64] | Sequence[int], n: npt.NDArray[np.int64] | Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """Give the effective relative position of query positions ``m`` and key positions ``n``.

        Both broadcast against each other.
        """
        query, key = np.broadcast_arrays(np.asarray(m, dtype=np.int64), np.asarray(n, dtype=np.int64))
        out = np.full(query.shape, np.nan)
        for band in self.bands:
            distance = query // band.chunk - key // band.chunk
            inside = distance >= band.low
            if band.high != UNBOUNDED_HIGH:
                inside &= distance < band.high
            out[inside] = band.query.position(query[inside]) - band.key.position(key[inside])
        return out

    def relative_positions(self, n: int) -> npt.NDArray[np.float64]:
        """Give the matrix of effective relative positions of ``n`` tokens, NaN above the diagonal.

        Up to 4,096 tokens it is [n, n]. Of more, it is that of :func:`sampled` tokens,
        so that memory does not grow; ask :meth:`relative` for pairs of your own choice.
        """
        tokens = sampled(n)
        matrix = self.relative(tokens[:, None], tokens[None, :])
        matrix[tokens[:, None] < tokens[None, :]] = np.nan
        return matrix

    def plot(self, n: int | None = None, ax: Axes | None = None) -> Axes:
        """Draw the effective relative position over queries and keys, with the borders of bands.

        Up to 24 tokens each cell says its number, as the papers' pictures do; many
        tokens are sampled.
        """
        from trivium.viz import plot_plan

        return plot_plan(self, n=n, ax=ax)

    def _repr_html_(self) -> str:
        from trivium._html import plan_html

        return plan_html(self)


@dataclass(frozen=True)
class Position:
    """A position strategy with its parameters, as :func:`trivium.position` makes it."""

    strategy: str
    params: dict[str, Any] = field(default_factory=dict)

    def plan(
        self,
        *,
        head_dim: int,
        length: int,
        inv_freq: Sequence[float] | npt.NDArray[Any] | None = None,
        rope_theta: float | None = None,
        train_length: int | None = None,
        interleaved: bool = False,
        engine: Engine | None = None,
    ) -> PositionPlan:
        """Work out the positions for sequences of ``length`` tokens.

        Parameters
        ----------
        head_dim : int
        length : int
            Tokens of the longest sequence, cache included.
        inv_freq : float [rotary_dim / 2], optional
            Frequencies by which queries and keys are rotated, radians per token.
        rope_theta : float, optional
            Instead: ``inv_freq = theta ** (-2 i / head_dim)``.
        train_length : int, optional
            The length that the model was trained for, when it is not a parameter.
        interleaved : bool
            Rotary pairs are (0, 1), (2, 3), ... instead of (0, d/2), (1, d/2 + 1), ...
        """
        engine = engine or default_engine()
        result = _bridge.run(
            "plan",
            {
                "engine": engine.handle,
                "strategy": self.strategy,
                "head_dim": int(head_dim),
                "length": int(length),
                "inv_freq": frequencies(head_dim, inv_freq, rope_theta),
                "train_length": int(train_length or 0),
                "interleaved": interleaved,
                "params": plain(self.params),
            },
        )
        return _plan_from_result(result)

    def __repr__(self) -> str:
        params = "".join(f", {k}={v!r}" for k, v in self.params.items())
        return f"trivium.position({self.strategy!r}{params})"


def frequencies(
    head_dim: int,
    inv_freq: Sequence[float] | npt.NDArray[Any] | None,
    rope_theta: float | None,
) -> list[float]:
    """Give the rotary frequencies as a list, from themselves or from theta."""
    if inv_freq is not None:
        given: list[float] = np.asarray(inv_freq, dtype=np.float64).ravel().tolist()
        return given
    if rope_theta is None:
        raise InvalidArgument(
            "a position strategy needs to know how query and key were rotated",
            hint="pass inv_freq= (the model's rotary embedding has it) or rope_theta=",
        )
    if not (np.isfinite(rope_theta) and rope_theta > 0):
        raise InvalidArgument(f"rope_theta {rope_theta}: want a positive number")
    made: list[float] = (float(rope_theta) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).tolist()
    return made


def _plan_from_result(result: dict[str, Any]) -> PositionPlan:
    plan = result["plan"]
    made = PositionPlan(
        strategy=plan["strategy"],
        inv_freq=tuple(plan["inv_freq"]),
        applied_inv_freq=tuple(plan["applied_inv_freq"]),
        attention_scale=plan["attention_scale"],
        interleaved=plan.get("interleaved", False),
        twice=plan.get("twice", 0),
        bands=tuple(
            Band(b["chunk"], b["low"], b["high"], Rule(**b["query"]), Rule(**b["key"])) for b in plan["bands"]
        ),
        _handle=result["id"],
    )
    weakref.finalize(made, _bridge.release, "ForgetPlan", made._handle)
    return made


def sampled(n: int) -> npt.NDArray[np.int64]:
    """Give the tokens that pictures and matrices of ``n`` tokens are made of.

    All of them up to 4,096, else 1,024 spread evenly, the first and the last among them.
    """
    if n < 1:
        raise InvalidArgument(f"n {n}: want at least 1 token")
    if n <= LARGEST_MATRIX:
        return np.arange(n, dtype=np.int64)
    return np.linspace(0, n - 1, SAMPLED).round().astype(np.int64)


def frequency(lengths: Sequence[int] | npt.NDArray[Any] | Mapping[int, float]) -> npt.NDArray[np.float64]:
    """Give how often training sees each relative distance.

    A sequence of ``n`` tokens has ``n - i`` pairs at distance ``i``, so far distances
    are rare even where lengths are even: ``f(i) = sum over sequences of max(n - i, 0)``.

    Parameters
    ----------
    lengths : sequence of int, or mapping from int to float
        Lengths of the training sequences, or how many there are of each.

    Returns
    -------
    float64 [longest]
        f(0), f(1), ...; memory grows with the longest length, not with its square.

    Examples
    --------
    >>> trivium.position.frequency([2, 3]).tolist()
    [5.0, 3.0, 1.0]
    """
    given = lengths if isinstance(lengths, Mapping) else None
    values = np.asarray(list(given) if given is not None else lengths)
    weights = np.ones(len(values)) if given is None else np.asarray(list(given.values()), dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu" or values.min() < 1:
        raise InvalidArgument("lengths: want whole numbers of at least 1")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InvalidArgument("lengths: want counts of at least 0")
    count = np.bincount(values, weights=weights)[1:].astype(np.float64)
    longer = np.cumsum(count[::-1])[::-1]  # sequences of more than i tokens
    summed: npt.NDArray[np.float64] = np.cumsum(longer[::-1])[::-1]
    return summed


class _PositionNamespace:
    """Makes position strategies, and answers questions about positions."""

    frequency = staticmethod(frequency)

    @staticmethod
    def from_config(source: Any) -> ModelPositions:
        """Read what a model's ``config.json`` says of positions; see :func:`trivium.model_positions.from_config`."""
        from trivium.model_positions import from_config

        return from_config(source)

    def __call__(self, strategy: str, **params: Any) -> Position:
        """Name a position strategy and its parameters; ``trivium.list("position")`` shows them."""
        return Position(strategy, params)


position = _PositionNamespace()
