"""What a call did: patterns, density, coverage, times."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trivium.masks import BlockMask


@dataclass(frozen=True)
class HeadReport:
    """What happened to one query head of one sequence.

    Attributes
    ----------
    density : float
        Kept tiles over all (causal) tiles.
    coverage : float or None
        Attention mass kept: the dense softmax summed over the keys that were kept,
        mean over ``probe_rows`` rows. None: not measured.
    coverage_lower : float or None
        Lower confidence bound of the coverage over all rows.
    bound : {"normal", "proven"} or None
        How that bound was made: 3 standard errors below the mean, or by a proof that
        supposes nothing of the rows' coverage. None: there is no bound.
    delta : float
        The probability, over the draw of the rows, that a proven bound does not hold.
    coverage_lower_all : float or None
        A proven bound, too: those of all heads of the call hold at once, but with
        probability ``delta``.
    js_distance : float or None
        FlexPrefill's square root of the Jensen-Shannon divergence, natural log.
    """

    sequence: int
    head: int
    pattern: str
    kept_blocks: int
    blocks: int
    density: float
    coverage: float | None = None
    coverage_lower: float | None = None
    probe_rows: int = 0
    js_distance: float | None = None
    blocks_added: int = 0
    bound: str | None = None
    delta: float = 0.0
    coverage_lower_all: float | None = None


@dataclass(frozen=True)
class Times:
    """Wall-clock milliseconds of the parts of a call; ``measure_ms`` went into coverage on the probe rows."""

    select_ms: float = 0.0
    attend_ms: float = 0.0
    measure_ms: float = 0.0
    transport_ms: float = 0.0
    copy_ms: float = 0.0


@dataclass(frozen=True)
class Report:
    """What one attention call did.

    Attributes
    ----------
    density : float
        Kept tiles over all (causal) tiles, over all heads.
    coverage : float or None
        Attention mass kept, mean over heads; None: not measured (pass ``probe_rows=``).
    precision : str
        Of the products of float32 and float16 that were made: "highest" or "high", as
        ``precision=`` says; empty: not known, as on a GPU.
    heads : tuple of HeadReport
        By sequence and query head.
    notes : tuple of str
        Each fallback, copy and dropped capability of this call.
    """

    strategy: str
    backend: str
    threads: int
    density: float
    times: Times
    position: str = ""
    plugin: str = ""
    coverage: float | None = None
    heads: tuple[HeadReport, ...] = ()
    notes: tuple[str, ...] = ()
    mask: BlockMask | None = None
    precision: str = ""

    @property
    def proven(self) -> float | None:
        """The coverage that every head of the call keeps, but with probability ``delta``; None: it was not proven."""
        bounds = [h.coverage_lower_all for h in self.heads if h.blocks]
        found = [b for b in bounds if b is not None]
        return min(found) if found and len(found) == len(bounds) else None

    def to_rows(self) -> list[dict[str, Any]]:
        """Give the heads as dictionaries."""
        return [{f.name: getattr(h, f.name) for f in fields(h)} for h in self.heads]

    def table(self, backend: str | None = None) -> Any:
        """Give the heads as a data frame of pandas, polars or pyarrow, by default the first that is installed."""
        from trivium._table import frame

        return frame(self.to_rows(), backend)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw coverage against density, a dot for each head."""
        from trivium.viz import plot_report

        return plot_report(self, ax=ax)

    def _repr_html_(self) -> str:
        from trivium._html import report_html

        return report_html(self)

    @classmethod
    def _from_result(cls, result: dict[str, Any], mask: BlockMask | None) -> Report:
        return cls(
            strategy=result["strategy"],
            backend=result["backend"],
            threads=result["threads"],
            density=result["density"],
            times=Times(**result["times"]),
            position=result.get("position", ""),
            plugin=result.get("plugin", ""),
            coverage=result.get("coverage"),
            heads=tuple(HeadReport(**h) for h in result.get("heads", ())),
            notes=tuple(result.get("notes", ())),
            mask=mask,
            precision=result.get("precision", ""),
        )
