"""The demo's report: one HTML file that carries its pictures in itself."""

from __future__ import annotations

import io
import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium._files import replace
from trivium._html import data_uri, table
from trivium.viz import plot_mask, scatter_heads

if TYPE_CHECKING:
    from trivium.demo import Result
    from trivium.hf.tracing import Trace

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #1b1f23; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .3em .8em; border-bottom: 1px solid #d8dee4; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f3f5f7; }
img { max-width: 100%; }
p.note { color: #57606a; }
"""


def write_page(result: Result, trace: Trace, folder: Path) -> Path:
    """Write ``index.html`` and ``results.json`` into ``folder``.

    Parameters
    ----------
    trace : Trace
        Of the arm whose masks and coverage are drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "results.json", json.dumps(result.as_dict(), indent=2))
    page = folder / "index.html"
    replace(page, render(result, trace))
    return page


def render(result: Result, trace: Trace) -> str:
    """The page as text."""
    parts = [
        "<h1>Trivium demo</h1>",
        f"<p>{escape(result.model)}, a window of {result.length:,} tokens of <i>Emma</i> in {result.dtype} "
        f"that hides the pass key {escape(result.key)} at token {result.key_at:,}.</p>",
        "<h2>Attention</h2>",
        table(ARM_COLUMNS, arm_rows(result)),
        f"<p>Times are wall clock: of the whole prefill, and of attention (attn) in it. Density (dens) is the share of causal "
        f"tiles that are computed, coverage (cover) the attention mass they hold; ppl is the perplexity of the last tokens "
        f"of the book, ΔNLL its logarithm less that of the first arm.</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in result.notes),
        "<h2>What FlexPrefill keeps</h2>",
        "<p>Dark tiles are attended to, light ones are left out, white is the future.</p>",
        _masks(trace),
        "<h2>Coverage against density</h2>",
        f"<p>A dot for each head of each layer: the share of tiles kept, and the attention mass they hold, "
        f"measured on {trace.probe_rows} random rows of each head. The dashed line is the gamma that was asked for.</p>",
        _scatter(trace, result.gamma),
        "<h2>Merging checkpoints</h2>",
        _merge(result),
        "<h2>Machine</h2>",
        table(("what", "value"), result.environment.items()),
    ]
    title = "<title>Trivium demo</title>"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{title}<style>{STYLE}</style></head>'
    return f"{head}<body>{''.join(parts)}</body></html>\n"


ARM_COLUMNS = ("arm", "prefill", "attn", "dens", "cover", "ppl", "ΔNLL", "answer")


def arm_rows(result: Result) -> list[tuple[Any, ...]]:
    """The table of arms, cells ready to print."""
    dense = result.arms[0].nll
    return [
        (
            arm.arm,
            f"{arm.prefill_s:.1f} s",
            f"{arm.attention_s:.1f} s",
            f"{arm.density:.3f}",
            None if arm.coverage is None else f"{arm.coverage:.3f}",
            f"{arm.perplexity:.2f}",
            f"{arm.nll - dense:+.4f}",
            f"{_short(arm.answer)} {'✓' if arm.answer_is_right else '✗'}",
        )
        for arm in result.arms
    ]


def _short(answer: str) -> str:
    """The start of an answer: as long as a key is."""
    return answer.splitlines()[0][:5] if answer else ""


def _masks(trace: Trace) -> str:
    from matplotlib.figure import Figure

    layers = sorted(trace.masks)
    if not layers:
        return "<p>Every layer attended densely: the window is too short for a choice.</p>"
    heads = range(min(4, trace.masks[layers[0]].heads))
    figure = Figure(figsize=(2.6 * len(heads), 2.6 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), len(heads), squeeze=False)
    for row, layer in zip(grid, layers):
        for ax, head in zip(row, heads):
            plot_mask(trace.masks[layer], head=head, ax=ax)
            ax.set_title(f"layer {layer}, {ax.get_title()}", fontsize=8)
            ax.tick_params(labelsize=6)
            ax.label_outer()
    return _image(figure, "png", "kept tiles of some heads")


def _scatter(trace: Trace, gamma: float) -> str:
    from matplotlib.figure import Figure

    heads = [head for call in trace.prefill for head in call.report.heads if head.coverage is not None]
    if not heads:
        return "<p>No head measured its coverage.</p>"
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    scatter_heads(heads, ax)
    ax.axhline(gamma, color="#555555", linestyle="--", linewidth=1)
    return _image(figure, "svg", "coverage against density")


def _merge(result: Result) -> str:
    m = result.merge
    rows = [
        (f"{m.sources[-1]}, the last checkpoint", f"{m.last:.4f}"),
        (f"equal-weight merge of {m.sources[0]} to {m.sources[-1]}", f"{m.merged:.4f}"),
        ("annealed: 400 more training steps", f"{m.annealed:.4f}"),
    ]
    gain = (m.last - m.merged) / (m.last - m.annealed)
    return table(("weights", "held-out loss"), rows) + (
        f"<p>The merge took {m.merge_s:.2f} s and gives {gain:.0%} of what annealing gives, without a training step.</p>"
    )


def _image(figure: Any, kind: str, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f'<p><img src="{data_uri(buffer.getvalue(), mime)}" alt="{escape(alt)}"></p>'
