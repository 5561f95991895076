"""What the pictures show, checked in numbers; that they can be drawn, checked by drawing."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
import trivium
from trivium import _html, viz
from trivium.pma import Trajectory
from trivium.masks import BlockExtent, BlockMask
from trivium.positions import UNBOUNDED_HIGH, UNBOUNDED_LOW, Band, PositionPlan, Rule
from trivium.report import HeadReport, Report, Times

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def random_mask(blocks: int, seed: int = 0, first: int = 0) -> BlockMask:
    rng = np.random.default_rng(seed)
    rows = [
        [sorted(rng.choice(i + first + 1, size=rng.integers(1, i + first + 2), replace=False).tolist()) for i in range(blocks)]
        for _ in range(2)
    ]
    return BlockMask.from_blocks(rows, block_size=16, key_blocks=blocks + first, first_query_block=first)


def string_plan(shift: int, local: int) -> PositionPlan:
    bands = (
        Band(1, UNBOUNDED_LOW, shift, Rule(), Rule()),
        Band(1, shift, UNBOUNDED_HIGH, Rule(offset=local - shift), Rule()),
    )
    return PositionPlan("position.string", (1.0,), (1.0,), 1.0, bands)


@pytest.mark.parametrize("first", [0, 3])
def test_small_masks_are_drawn_tile_by_tile(first: int) -> None:
    mask = random_mask(9, first=first)
    cells = viz.mask_cells(mask, head=1)
    dense = mask.to_dense()[0, 1]
    future = np.arange(9)[:, None] + first < np.arange(9 + first)
    assert np.isnan(cells[future]).all()
    assert np.array_equal(cells[~future], dense[~future].astype(float))


@pytest.mark.parametrize("blocks", [30, 31, 97])
def test_binned_cells_add_up(blocks: int) -> None:
    """Share of kept tiles times visible tiles, over all bins, is the tiles kept."""
    mask = random_mask(blocks)
    cells = viz.mask_cells(mask, cells=10)
    whole = viz.mask_cells(BlockMask.from_blocks(
        [[list(range(i + 1)) for i in range(blocks)]], block_size=16, key_blocks=blocks), cells=10)
    assert cells.shape == (10, 10)
    assert np.nanmin(whole) == np.nanmax(whole) == 1.0
    bins = np.arange(blocks) * 10 // blocks
    visible = np.zeros((10, 10))
    for i in range(blocks):
        np.add.at(visible, (bins[i], bins[: i + 1]), 1)
    assert np.nansum(cells * visible) == pytest.approx(len(mask.blocks(0, 0)))


def test_a_hundred_thousand_tokens_are_drawn_in_bins() -> None:
    blocks = 100_000 // 16
    diagonal = BlockMask.from_blocks([[[i] for i in range(blocks)]], block_size=16, key_blocks=blocks)
    cells = viz.mask_cells(diagonal)
    assert cells.shape == (viz.CELLS, viz.CELLS)
    assert (np.diagonal(cells) > 0).all()
    assert np.nansum(np.tril(cells, -1)) == 0


def test_an_empty_sequence_is_refused() -> None:
    mask = BlockMask(16, 1, (BlockExtent(0, 0, 0),), np.zeros(1, np.int64), np.zeros(0, np.int32))
    with pytest.raises(trivium.InvalidArgument, match="no blocks"):
        viz.mask_cells(mask)


def test_plots_are_drawn() -> None:
    mask, plan = random_mask(20), string_plan(40, 8)
    heads = tuple(HeadReport(0, h, p, 1, 2, 0.5, 0.9) for h, p in enumerate(("query_aware", "vertical_slash")))
    report = Report("flexprefill", "cpu", 2, 0.5, Times(), heads=heads)
    assert "density" in mask.plot(head=1).get_title()
    ax = plan.plot()
    assert ax.get_xlim()[1] == 80, "twice the farthest border"
    shown = np.asarray(ax.images[0].get_array())
    assert np.nanmax(shown) == 79 - 40 + 8
    assert [t.get_text() for t in report.plot().get_legend().get_texts()] == ["query_aware (1)", "vertical_slash (1)"]


def test_a_report_without_coverage_says_how_to_get_it() -> None:
    report = Report("dense", "cpu", 2, 1.0, Times())
    with pytest.raises(trivium.InvalidArgument, match="coverage") as caught:
        viz.plot_report(report)
    assert "probe_rows" in caught.value.hint


def test_png_is_what_was_given() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    content = base64.b64decode(_html.png(image).partition(",")[2])
    shown = matplotlib.image.imread(io.BytesIO(content), format="png")
    assert np.array_equal((shown[:, :, :3] * 255).round().astype(np.uint8), image)


def test_html_escapes_and_cuts() -> None:
    text = _html.table(("a<b",), [("<script>",)] * (_html.MOST_ROWS + 5))
    assert "<script>" not in text and "a&lt;b" in text
    assert "and 5 more rows" in text


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule(), "i"),
        (Rule(offset=-2602), "i - 2602"),
        (Rule(scale=0.0, offset=64), "64"),
        (Rule(modulo=512), "(i mod 512)"),
        (Rule(group=8, offset=3), "floor(i / 8) + 3"),
        (Rule(limit=100), "min(i, 100)"),
    ],
)
def test_rules_read_as_formulas(rule: Rule, text: str) -> None:
    assert _html._rule(rule) == text


def test_results_show_themselves_in_notebooks() -> None:
    mask, plan = random_mask(8), string_plan(40, 8)
    report = Report("flexprefill", "cpu", 2, 0.5, Times(), notes=("copied",), coverage=math.pi / 4)
    assert mask._repr_html_().count("<img") == 2
    assert "i - 32" in plan._repr_html_()
    assert "Note: copied" in report._repr_html_() and "0.7854" in report._repr_html_()


def test_a_column_of_one_tile_is_seen_among_a_hundred_thousand_tokens() -> None:
    """As drawn, not as counted: its colour is well away from that of dropped tiles."""
    blocks = 100_000 // 16
    column = BlockMask.from_blocks([[sorted({i, min(i, 3000)}) for i in range(blocks)]], block_size=16, key_blocks=blocks)
    ax = column.plot()
    image = ax.images[0]
    colours = image.to_rgba(image.get_array())[..., :3]
    kept, dropped = colours[250, 3000 * viz.CELLS // blocks], colours[250, 50]
    assert np.abs(kept - dropped).max() > 0.2
    ax.figure.canvas.draw()
    assert "80k" in [t.get_text() for t in ax.get_xticklabels()]


def test_a_trajectory_keeps_distances() -> None:
    """Weights that lie in a plane are drawn at their distances, and the merge in their middle."""
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.standard_normal((50, 2)))[0]
    weights = rng.standard_normal(50) + np.cumsum(rng.standard_normal((6, 2)), axis=0) @ plane.T
    path = Trajectory.from_gram(weights @ weights.T, tuple(range(0, 600, 100)))
    assert path.shown == pytest.approx(1)
    far = np.linalg.norm(weights[:, None] - weights, axis=-1)
    assert np.allclose(np.linalg.norm(path.points[:, None] - path.points, axis=-1), far)
    assert np.allclose(path.mean, 0, atol=1e-6)
    assert path.plot().get_title() == "6 checkpoints, 100% of their spread"
    assert "500" in path._repr_html_()


def test_a_trajectory_of_one_checkpoint() -> None:
    assert Trajectory.from_gram(np.ones((1, 1)), (7,)).plot() is not None
