"""Collect what each layer's attention reported during forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium._attention import Bound
    from trivium.masks import BlockMask
    from trivium.report import Report

_active: ContextVar["Trace | None"] = ContextVar("trivium_trace", default=None)


def active() -> "Trace | None":
    """The trace of the innermost ``with trivium.trace()`` of this context."""
    return _active.get()


@dataclass(frozen=True)
class Call:
    """One layer's attention in one forward pass."""

    layer: int
    q_len: int
    k_len: int
    seconds: float  # wall clock of the call, copies included, measuring coverage not
    report: Report

    @property
    def is_decode(self) -> bool:
        """A single query: attended to densely by rule."""
        return self.q_len == 1


@dataclass
class Trace:
    """Reports of attention calls, in the order they were made.

    Attributes
    ----------
    calls : list of Call
    masks : dict of int to BlockMask
        The blocks kept by the last prefill of the layers asked for.
    probe_rows : int
        Random rows of each head on which coverage is measured.
    bound, delta
        Of :func:`trivium.attention`.
    """

    mask_layers: frozenset[int] = frozenset()
    probe_rows: int = 0
    bound: Bound = "normal"
    delta: float | None = None
    calls: list[Call] = field(default_factory=list)
    masks: dict[int, BlockMask] = field(default_factory=dict)

    def add(self, layer: int, q_len: int, k_len: int, report: Report, seconds: float) -> None:
        """Record one call."""
        if report.mask is not None:
            self.masks[layer] = report.mask
        self.calls.append(Call(layer, q_len, k_len, seconds - report.times.measure_ms / 1e3, report))

    def wants_mask(self, layer: int, decode: bool) -> bool:
        """Whether the blocks that this call keeps are to be remembered."""
        return not decode and layer in self.mask_layers

    @property
    def prefill(self) -> list[Call]:
        """The calls with more than one query."""
        return [call for call in self.calls if not call.is_decode]

    @property
    def seconds(self) -> float:
        """Wall-clock time spent in attention."""
        return sum(call.seconds for call in self.calls)

    @property
    def measuring(self) -> float:
        """Wall-clock time that went into measuring coverage."""
        return sum(call.report.times.measure_ms for call in self.calls) / 1e3

    @property
    def density(self) -> float | None:
        """Mean density of the prefill calls; None before the first."""
        return _mean(call.report.density for call in self.prefill)

    @property
    def coverage(self) -> float | None:
        """Mean coverage of the prefill calls that measured it."""
        found = (call.report.coverage for call in self.prefill)
        return _mean(value for value in found if value is not None)

    @property
    def notes(self) -> list[str]:
        """What the reports of the prefill calls had to say, once each."""
        return list(dict.fromkeys(note for call in self.prefill for note in call.report.notes))

    def rows(self) -> list[dict[str, Any]]:
        """One row per call and head."""
        return [row for call in self.calls for row in _rows(call)]

    def table(self, backend: str | None = None) -> Any:
        """One row per call and head, as a data frame of pandas, polars or pyarrow.

        Parameters
        ----------
        backend : {"pandas", "polars", "pyarrow"}, optional
            Default: the first of these that is installed.
        """
        from trivium._table import frame

        return frame(self.rows(), backend)

    def _repr_html_(self) -> str:
        from trivium._html import table

        columns = ("layer", "q_len", "k_len", "strategy", "density", "coverage", "ms")
        return table(columns, [_summary(call) for call in self.calls])


@contextmanager
def trace(
    *, masks: Iterable[int] = (), probe_rows: int = 0, bound: Bound = "normal", delta: float | None = None
) -> Iterator[Trace]:
    """Collect reports while the block runs.

    Parameters
    ----------
    masks : iterable of int
        Layers whose kept blocks are to be remembered too.
    probe_rows : int
        Measure coverage on so many random rows of each head; it takes time.
    bound : {"normal", "proven"}
        How the lower bound of coverage is made: see :func:`trivium.attention`.
    delta : float, optional
        The probability that a head's proven bound does not hold, in one call; default 0.01.

    Examples
    --------
    >>> with trivium.patch(model, attention="flexprefill"), trivium.trace() as t:
    ...     model(input_ids)
    >>> t.density, t.coverage
    """
    collected = Trace(frozenset(masks), probe_rows, bound, delta)
    token = _active.set(collected)
    try:
        yield collected
    finally:
        _active.reset(token)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _summary(call: Call) -> tuple[Any, ...]:
    report = call.report
    return (call.layer, call.q_len, call.k_len, report.strategy, report.density, report.coverage, 1e3 * call.seconds)


def _rows(call: Call) -> list[dict[str, Any]]:
    shared = {"layer": call.layer, "q_len": call.q_len, "k_len": call.k_len, "strategy": call.report.strategy}
    return [{**shared, **head} for head in call.report.to_rows()]
