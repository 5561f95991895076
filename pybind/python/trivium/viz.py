"""Pictures of masks, plans and reports, readable at 100,000 tokens.

Grids are binned to the size of the picture before they are drawn. Colours are
Okabe and Ito's, and cividis for quantities: told apart by colour-blind readers
and in print. Needs matplotlib (``pip install "trivium[viz]"``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trivium._errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trivium.masks import BlockMask
    from trivium.pma import Trajectory
    from trivium.positions import PositionPlan
    from trivium.report import HeadReport, Report

CELLS = 256  # at most this many bins a side: fewer than pixels, or thin columns would fall between them
EMPHASIS = 0.4  # exponent of a bin's share of kept tiles
NUMBERED = 24  # tokens of which every cell says its number
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#999999"
MARKERS = (("o", BLUE), ("^", ORANGE), ("s", GREEN), ("D", PURPLE), ("v", GREY))


def mask_cells(mask: BlockMask, batch: int = 0, head: int = 0, cells: int = CELLS) -> npt.NDArray[np.float64]:
    """Share of kept tiles in each bin of one head's grid.

    Returns
    -------
    float64 [rows, columns]
        At most ``cells`` a side; NaN where no tile can be seen.
    """
    extent = mask.sequences[batch]
    if extent.query_blocks == 0 or extent.key_blocks == 0:
        raise InvalidArgument(f"mask: sequence {batch} has no blocks: nothing to draw")
    row_bin = _bins(extent.query_blocks, cells)
    column_bin = _bins(extent.key_blocks, cells)
    shape = (int(row_bin[-1]) + 1, int(column_bin[-1]) + 1)
    pairs = mask.blocks(batch, head)
    kept = np.zeros(shape)
    np.add.at(kept, (row_bin[pairs[:, 0] - extent.first_query_block], column_bin[pairs[:, 1]]), 1)
    visible = np.zeros(shape)
    edges = np.searchsorted(column_bin, np.arange(shape[1] + 1))
    limit = np.arange(extent.query_blocks) + extent.first_query_block + 1 if mask.causal else np.full(extent.query_blocks, extent.key_blocks)
    np.add.at(visible, row_bin, np.diff(np.minimum(edges, limit[:, None]), axis=1))
    with np.errstate(invalid="ignore"):
        return np.where(visible > 0, kept / np.maximum(visible, 1), np.nan)


def plot_mask(mask: BlockMask, batch: int = 0, head: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the kept tiles of one head: dark is kept, light is dropped, white is the future.

    Where a bin holds many tiles, a few kept ones are drawn darker than their share, so
    that a column of one tile in a hundred thousand tokens is still seen.
    """
    from matplotlib.colors import PowerNorm

    ax = ax or _axes()
    extent = mask.sequences[batch]
    top = extent.first_query_block * mask.block_size
    bottom = top + extent.query_blocks * mask.block_size
    ax.imshow(
        mask_cells(mask, batch, head),
        cmap=_kept_colours(),
        norm=PowerNorm(EMPHASIS, 0, 1),
        extent=(0, extent.key_blocks * mask.block_size, bottom, top),
        interpolation="nearest",
        aspect="auto",
    )
    _label_tokens(ax, "key", "query")
    ax.set_title(f"head {head}: density {mask.head_density(batch, head):.2g}", fontsize=9)
    return ax


def plot_plan(plan: PositionPlan, n: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw the effective relative position of each query and key of ``n`` tokens.

    The default ``n`` shows every band. Lines are borders between bands; up to 24
    tokens each cell says its number.
    """
    ax = ax or _axes()
    n = n or _interesting_length(plan)
    tokens = np.unique(np.linspace(0, n - 1, min(n, CELLS)).astype(np.int64))
    relative = plan.relative(tokens[:, None], tokens[None, :])
    future = tokens[:, None] < tokens[None, :]
    relative[future] = np.nan
    image = ax.imshow(relative, cmap="cividis", extent=(0, n, n, 0), interpolation="nearest", aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="relative position used")
    _draw_borders(plan, n, ax)
    if n <= NUMBERED:
        _write_numbers(relative, ax)
    _label_tokens(ax, "key position", "query position")
    ax.set_title(f"{plan.strategy}, {n:,} tokens", fontsize=9)
    return ax


def _draw_borders(plan: PositionPlan, n: int, ax: Axes) -> None:
    """The stairs at which one band ends and the next begins: exact, whatever the picture samples."""
    for band in plan.bands:
        if not 0 < band.low * band.chunk < n:
            continue
        chunk = band.chunk
        first = band.low * chunk  # the first query that has a key in the band
        queries = np.arange(first, n + 1, max(chunk, -(-(n - first) // CELLS)))
        keys = (queries // chunk - band.low + 1) * chunk  # its keys are [0, key)
        ax.step(np.minimum(keys, n), queries, where="pre", color=ORANGE, linewidth=1)


def _write_numbers(relative: npt.NDArray[np.float64], ax: Axes) -> None:
    middle = np.nanmax(relative) / 2
    for (row, column), value in np.ndenumerate(relative):
        if not np.isnan(value):
            colour = "white" if value < middle else "black"
            ax.text(column + 0.5, row + 0.5, f"{value:g}", ha="center", va="center", fontsize=6, color=colour)


def plot_report(report: Report, ax: Axes | None = None) -> Axes:
    """Draw coverage against density, a dot for each head, a shape for each pattern."""
    ax = ax or _axes()
    scatter_heads(list(report.heads), ax)
    ax.set_title(f"{report.strategy}: density {report.density:.2f}", fontsize=9)
    return ax


def plot_trajectory(trajectory: Trajectory, ax: Axes | None = None) -> Axes:
    """Draw the path of a run in the plane in which it is widest, from light to dark, and the merge of it."""
    ax = ax or _axes()
    x, y = trajectory.points.T
    ax.plot(x, y, color=GREY, linewidth=1, zorder=1)
    dots = ax.scatter(x, y, c=trajectory.steps, cmap="cividis_r", s=28, zorder=2)
    middle = trajectory.mean
    ax.scatter(middle[0], middle[1], marker="X", s=70, color=ORANGE, edgecolors="black", linewidths=0.6, zorder=3, label="merge of all")
    ends = (0, len(trajectory.steps) - 1) if len(trajectory.steps) > 1 else (0,)
    for end in ends:
        ax.annotate(f"{trajectory.steps[end]:,}", (x[end], y[end]), xytext=(5, 5), textcoords="offset points", fontsize=8)
    ax.figure.colorbar(dots, ax=ax, label="step")
    ax.margins(0.14)
    ax.set_xlabel("distance of weights, widest direction")
    ax.set_ylabel("second direction")
    ax.set_title(f"{len(trajectory.steps)} checkpoints, {trajectory.shown:.0%} of their spread", fontsize=9)
    ax.legend(fontsize=8)
    return ax


def scatter_heads(heads: list[HeadReport], ax: Axes) -> None:
    """Draw coverage against density of heads that measured coverage."""
    measured = [head for head in heads if head.coverage is not None]
    if not measured:
        raise InvalidArgument("report: no head measured its coverage: nothing to draw", hint="pass probe_rows=64")
    patterns = sorted({head.pattern for head in measured})
    for index, pattern in enumerate(patterns):
        marker, colour = MARKERS[index % len(MARKERS)]
        chosen = [head for head in measured if head.pattern == pattern]
        ax.scatter(
            [head.density for head in chosen],
            [float(head.coverage or 0.0) for head in chosen],
            s=14, marker=marker, color=colour, alpha=0.7, linewidths=0, label=f"{pattern} ({len(chosen)})",
        )
    ax.set_xlabel("density (tiles kept)")
    ax.set_ylabel("coverage (attention mass kept)")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="lower right")


def _interesting_length(plan: PositionPlan) -> int:
    """Twice the farthest border between bands, so that each of them is seen."""
    borders = [abs(edge) * band.chunk for band in plan.bands for edge in (band.low, band.high) if abs(edge) < 2**62]
    return max(2 * max(borders, default=0), 64)


def _bins(count: int, cells: int) -> npt.NDArray[np.int64]:
    """The bin of each of ``count`` blocks; bins are as even as can be."""
    return np.arange(count) * min(count, cells) // count


def _label_tokens(ax: Axes, x: str, y: str) -> None:
    """Name the axes; ticks count tokens as 20k."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis, name in ((ax.xaxis, x), (ax.yaxis, y)):
        axis.set_label_text(name)
        axis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_major_formatter(FuncFormatter(_tokens))


def _tokens(count: float, _: int | None = None) -> str:
    return f"{count / 1000:g}k" if count >= 10_000 else f"{count:g}"


def _axes() -> Any:
    from matplotlib import pyplot

    _, ax = pyplot.subplots(figsize=(5, 4.2), layout="constrained")
    return ax


def _kept_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("kept", ["#E4E7EA", "#0072B2"]).with_extremes(bad="white")
