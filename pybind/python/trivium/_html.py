"""HTML of results for notebooks: tables, and small pictures that need no matplotlib."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from trivium.catalog import Info
    from trivium.masks import BlockMask
    from trivium.merging import MergeReport
    from trivium.positions import PositionPlan
    from trivium.report import Report

MOST_ROWS = 60
THUMBNAILS = 8  # heads drawn of a mask
KEPT, DROPPED, UNSEEN = (0, 114, 178), (228, 231, 234), (255, 255, 255)


def cell(value: Any) -> str:
    """A value as a reader wants it: four digits, a dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; long ones are cut, and say so."""
    all_rows = list(rows)
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in all_rows[:MOST_ROWS])
    more = len(all_rows) - MOST_ROWS
    note = f"<p>and {more} more rows</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def png(image: npt.NDArray[np.uint8]) -> str:
    """A data URI of an image [height, width, 3]."""
    height, width, _ = image.shape
    lines = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")
    return data_uri(b"\x89PNG\r\n\x1a\n" + chunks, "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that a page can carry in itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def mask_picture(mask: BlockMask, batch: int, head: int, cells: int = 96) -> str:
    """An ``<img>`` of one head's kept tiles, binned to at most ``cells`` a side."""
    from trivium.viz import EMPHASIS, mask_cells

    share = mask_cells(mask, batch, head, cells)[:, :, None] ** EMPHASIS  # thin columns stay visible
    colour = np.array(DROPPED) + share * (np.array(KEPT) - np.array(DROPPED))
    image = np.where(np.isnan(share), np.array(UNSEEN), colour).astype(np.uint8)
    style = "width:110px;height:110px;image-rendering:pixelated;border:1px solid #ccc"
    return f'<img src="{png(image)}" style="{style}" alt="kept tiles of head {head}">'


def mask_html(mask: BlockMask) -> str:
    """Density and a thumbnail of the first heads of the first sequence."""
    heads = range(min(mask.heads, THUMBNAILS)) if mask.sequences else range(0)
    pictures = "".join(
        f'<figure style="display:inline-block;margin:4px">{mask_picture(mask, 0, h)}'
        f"<figcaption>head {h}: {mask.head_density(0, h):.2f}</figcaption></figure>"
        for h in heads
    )
    return f"<p>{escape(repr(mask))}</p><div>{pictures}</div>"


def report_html(report: Report) -> str:
    """What a call did, and a row for each head."""
    t = report.times
    summary = table(
        ("strategy", "position", "backend", "threads", "density", "coverage", "select ms", "attend ms", "transport ms", "copy ms"),
        [(report.strategy, report.position or None, report.backend, report.threads, report.density, report.coverage,
          t.select_ms, t.attend_ms, t.transport_ms, t.copy_ms)],
    )
    rows = report.to_rows()
    heads = table(tuple(rows[0]), [tuple(row.values()) for row in rows]) if rows else ""
    proven = ""
    if report.proven is not None:
        proven = f"<p>Proven: each head keeps at least {report.proven:.4g}, all heads at once but with probability {report.heads[0].delta:g}.</p>"
    return summary + proven + "".join(f"<p>Note: {escape(note)}</p>" for note in report.notes) + heads


def plan_html(plan: PositionPlan) -> str:
    """The bands of a plan."""
    rows = [
        (index, band.chunk, _edge(band.low), _edge(band.high), _rule(band.query), _rule(band.key))
        for index, band in enumerate(plan.bands)
    ]
    title = f"<p>{escape(plan.strategy)}: {len(plan.inv_freq)} frequencies, attention scale {plan.attention_scale:.4g}</p>"
    return title + table(("band", "chunk", "from distance", "below distance", "query at", "key at"), rows)


def info_html(info: Info) -> str:
    """A strategy and its parameters."""
    paper = f" ({escape(info.paper)})" if info.paper else ""
    rows = [(p.name, p.type, p.default, p.range or " | ".join(p.choices), p.unit, p.doc) for p in info.parameters]
    title = f"<p><b>{escape(info.id)}</b>: {escape(info.summary)}{paper}</p>"
    return title + table(("parameter", "type", "default", "range", "unit", "what it does"), rows)


def merge_html(report: MergeReport) -> str:
    """What was merged with which weights."""
    weights = report.weights or (None,) * len(report.sources)
    title = (
        f"<p>{escape(report.method)}: {report.tensors} tensors to {escape(report.out)}, "
        f"{report.bytes_read / 2**20:.1f} MiB read, {report.seconds:.2f} s</p>"
    )
    warnings = "".join(f"<p>Note: {escape(w)}</p>" for w in report.warnings)
    return title + warnings + table(("source", "weight"), zip(report.sources, weights))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _edge(distance: int) -> str:
    return "unbounded" if abs(distance) > 2**62 else f"{distance:,}"


def _rule(rule: Any) -> str:
    """A rule as the formula that a reader would write."""
    text = "i" if not rule.modulo else f"(i mod {rule.modulo})"
    if rule.group > 1:
        text = f"floor({text} / {rule.group})"
    if rule.scale == 0:
        text = ""
    elif rule.scale != 1:
        text = f"{rule.scale:g} {text}"
    if rule.offset or not text:
        text += f" {'-' if rule.offset < 0 else '+'} {abs(rule.offset):g}" if text else f"{rule.offset:g}"
    return f"min({text}, {rule.limit:g})" if rule.limit else text
