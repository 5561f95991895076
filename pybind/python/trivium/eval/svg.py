"""Pictures of a report, as SVG text: no library, no network, and readable without colour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

# Okabe and Ito's colours, each with a shape of its own.
SERIES = (("circle", "#0072B2"), ("triangle", "#D55E00"), ("square", "#009E73"), ("diamond", "#CC79A7"), ("cross", "#56B4E9"))
INK, FAINT, GRID = "#1b1f23", "#57606a", "#d8dee4"
# Light to dark in one hue: told apart in grey, too.
LOW, HIGH = (247, 251, 255), (8, 69, 148)


def picture(width: float, height: float, parts: Iterable[str], title: str) -> str:
    """A whole picture, with its name for those who hear it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, content: str, *, anchor: str = "start", size: float = 12, colour: str = INK, weight: str = "normal") -> str:
    """A line of text; ``y`` is its middle."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" dominant-baseline="central" font-size="{size:g}" '
        f'font-weight="{weight}" fill="{colour}">{escape(content)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, *, colour: str = GRID, width: float = 1, dashed: bool = False) -> str:
    """A straight line."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"{dash}/>'


def path(points: Sequence[tuple[float, float]], *, colour: str, width: float = 2) -> str:
    """A line through points."""
    through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{through}" fill="none" stroke="{colour}" stroke-width="{width:g}" stroke-linejoin="round"/>'


def band(points: Sequence[tuple[float, float, float]], *, colour: str) -> str:
    """The area between two lines: points are (x, low, high)."""
    around = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in around)
    return f'<polygon points="{corners}" fill="{colour}" fill-opacity="0.18"/>'


def box(x: float, y: float, width: float, height: float, colour: str, hint: str = "") -> str:
    """A filled rectangle, with a hint for the mouse."""
    inside = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">{inside}</rect>'


def mark(x: float, y: float, series: int, hint: str = "", *, size: float = 5, hollow: bool = False) -> str:
    """A point of a series: its shape and its colour."""
    shape, colour = SERIES[series % len(SERIES)]
    s = size
    outlines = {
        "triangle": [(0, -1.2 * s), (1.1 * s, 0.8 * s), (-1.1 * s, 0.8 * s)],
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "diamond": [(0, -1.3 * s), (1.3 * s, 0), (0, 1.3 * s), (-1.3 * s, 0)],
        "cross": [(-s, -s / 3), (-s / 3, -s / 3), (-s / 3, -s), (s / 3, -s), (s / 3, -s / 3), (s, -s / 3), (s, s / 3), (s / 3, s / 3),
                  (s / 3, s), (-s / 3, s), (-s / 3, s / 3), (-s, s / 3)],
    }  # fmt: skip
    look = f'fill="{"#ffffff" if hollow else colour}" stroke="{colour if hollow else "#ffffff"}" stroke-width="{2 if hollow else 1:g}"'
    inside = f"<title>{escape(hint)}</title>" if hint else ""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:g}" {look}>{inside}</circle>'
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outlines[shape])
    return f'<polygon points="{corners}" {look}>{inside}</polygon>'


def shade(share: float) -> str:
    """A colour for a share from 0 to 1, light to dark."""
    return "#" + "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(LOW, HIGH))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within a range, about ``count`` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


class Scale:
    """From values to pixels."""

    def __init__(self, values: Iterable[float], start: float, end: float, *, margin: float = 0.06) -> None:
        found = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(found), max(found)
        span = (high - low) or max(abs(high), 1e-3)
        self.low, self.high = low - margin * span, high + margin * span
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self, count: int = 4) -> list[float]:
        """Round values on this scale."""
        return ticks(self.low, self.high, count)
