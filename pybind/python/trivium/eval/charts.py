"""The charts of a report: differences, depths, positions, cost."""

from __future__ import annotations

from collections.abc import Sequence

from trivium.eval import svg
from trivium.eval.bootstrap import Interval
from trivium.eval.metrics import METRICS
from trivium.eval.plan import Cell, Plan
from trivium.eval.summary import Records, Row

LABELS, PANEL, LINE, TOP, FOOT = 300, 250, 22, 34, 58
MOST_DEPTHS = 5
SHAPES = {"circle": "●", "triangle": "▲", "square": "■", "diamond": "◆", "cross": "✚"}


def series_of(plan: Plan) -> dict[str, int]:
    """A number for each arm: arms at the same positions share colour and shape."""
    kinds = list(dict.fromkeys(_position(plan, arm.name) for arm in plan.arms))
    return {arm.name: kinds.index(_position(plan, arm.name)) for arm in plan.arms}


def legend(plan: Plan) -> str:
    """What colours and shapes mean."""
    kinds = list(dict.fromkeys(_position(plan, arm.name) for arm in plan.arms))
    items = []
    for number, kind in enumerate(kinds):
        shape, colour = svg.SERIES[number % len(svg.SERIES)]
        items.append(f'<span style="color:{colour}">{SHAPES[shape]}</span> {kind}')
    return "positions: " + " &nbsp; ".join(items) if len(kinds) > 1 else ""


def differences(plan: Plan, rows: Sequence[Row], metric: str) -> str:
    """Paired differences from the baseline with their intervals: arms down, lengths across."""
    others = [arm.name for arm in plan.arms[1:]]
    found = {(row.arm, row.length): row.differences[metric] for row in rows}
    ends = [end for (arm, _), d in found.items() if arm in others for end in (d.low, d.high)]
    width, bottom = LABELS + PANEL * len(plan.lengths) + 12, TOP + LINE * len(others)
    parts = [svg.text(LABELS - 12, TOP + LINE * (n + 0.5), name, anchor="end") for n, name in enumerate(others)]
    series = series_of(plan)
    for column, length in enumerate(plan.lengths):
        left = LABELS + PANEL * column
        scale = svg.Scale([0.0, *ends], left + 14, left + PANEL - 14)
        parts.append(svg.text(left + PANEL / 2, TOP / 2, f"{length:,} tokens", anchor="middle", weight="600"))
        parts += _axis(scale, TOP, bottom)
        parts.append(svg.line(scale(0), TOP, scale(0), bottom, colour=svg.INK, width=1.2))
        for n, name in enumerate(others):
            parts += _whisker(scale, TOP + LINE * (n + 0.5), found[name, length], series[name], f"{name}, {length:,} tokens")
    side = "left" if METRICS[metric].lower_is_better else "right"
    title = f"{METRICS[metric].short}: difference from {plan.baseline.name}"
    middle = LABELS + PANEL * len(plan.lengths) / 2
    parts.append(svg.text(middle, bottom + 30, title, anchor="middle", colour=svg.FAINT))
    parts.append(svg.text(middle, bottom + 46, f"better to the {side}; hollow: zero is not left out", anchor="middle", size=11, colour=svg.FAINT))
    return svg.picture(width, bottom + FOOT, parts, title)


def depths(plan: Plan, records: Records, task: str, metric: str) -> str:
    """Share of right answers by depth of the needle and length: a small grid for each arm."""
    bins = min(MOST_DEPTHS, plan.samples)
    cell_w, cell_h, gap, left = 58, 24, 26, 46
    wide, high = max(left + cell_w * len(plan.lengths) + gap, 260), 30 + cell_h * bins + 24 + gap
    columns = max(1, min(len(plan.arms), 1050 // wide))
    parts: list[str] = []
    for n, arm in enumerate(plan.arms):
        x, y = (n % columns) * wide, (n // columns) * high
        parts.append(svg.text(x, y + 14, _short(f"{n + 1} {arm.name}", wide // 7), weight="600", size=11))
        for b in range(bins):
            parts.append(svg.text(x + left - 6, y + 30 + cell_h * (b + 0.5), f"{(b + 0.5) / bins:.0%}", anchor="end", size=10, colour=svg.FAINT))
            for c, length in enumerate(plan.lengths):
                parts += _depth_cell(plan, records, task, metric, arm.name, length, b, bins, x + left + cell_w * c, y + 30 + cell_h * b, cell_w, cell_h)
        for c, length in enumerate(plan.lengths):
            parts.append(svg.text(x + left + cell_w * (c + 0.5), y + 30 + cell_h * bins + 11, f"{length:,}", anchor="middle", size=10, colour=svg.FAINT))
    rows_of_arms = -(-len(plan.arms) // columns)
    return svg.picture(columns * wide, rows_of_arms * high, parts, f"{task}: {metric} by depth and length")


def _depth_cell(
    plan: Plan, records: Records, task: str, metric: str, arm: str, length: int, part: int, parts: int,
    x: float, y: float, width: float, height: float,
) -> list[str]:  # fmt: skip
    cells = [records[Cell(task, length, index, arm)] for index in range(plan.samples)]
    values = [c["scores"][metric] for c in cells if min(int(c["about"]["depth"] * parts), parts - 1) == part]
    if not values:
        return [svg.box(x + 1, y + 1, width - 2, height - 2, "#ffffff", "no sample")]
    share = sum(values) / len(values)
    hint = f"{arm}, {length:,} tokens, depth {part / parts:.0%} to {(part + 1) / parts:.0%}: {share:.2f} of {len(values)}"
    ink = "#ffffff" if share > 0.55 else svg.INK
    return [
        svg.box(x + 1, y + 1, width - 2, height - 2, svg.shade(share), hint),
        svg.text(x + width / 2, y + height / 2, f"{share:.2f}", anchor="middle", size=10, colour=ink),
    ]


def positions(plan: Plan, rows: Sequence[Row], metric: str) -> str:
    """Difference from the baseline along the window: a panel for each arm, a line for each length."""
    others = [row for row in rows if row.arm != plan.baseline.name]
    names = list(dict.fromkeys(row.arm for row in others))
    wide, high, left, top = 250, 150, 48, 24
    columns = max(1, min(len(names), 4))
    ends = [end for row in others for part in row.curve_differences[metric] for end in (part.low, part.high)]
    parts: list[str] = []
    for n, name in enumerate(names):
        x, y = (n % columns) * wide, (n // columns) * high
        scale = svg.Scale([0.0, *ends], y + high - 26, y + top)
        parts.append(svg.text(x + left, y + 10, _short(name, 32), weight="600", size=11))
        for tick in scale.ticks(3):
            parts.append(svg.line(x + left, scale(tick), x + wide - 10, scale(tick)))
            parts.append(svg.text(x + left - 5, scale(tick), f"{tick:+g}" if tick else "0", anchor="end", size=10, colour=svg.FAINT))
        parts.append(svg.line(x + left, scale(0), x + wide - 10, scale(0), colour=svg.INK))
        for number, row in enumerate(r for r in others if r.arm == name):
            parts += _curve(row.curve_differences[metric], scale, x + left, x + wide - 10, number, f"{name}, {row.length:,} tokens")
        parts.append(svg.text(x + left, y + high - 14, "start", size=10, colour=svg.FAINT))
        parts.append(svg.text(x + wide - 10, y + high - 14, "end of the window", anchor="end", size=10, colour=svg.FAINT))
    return svg.picture(columns * wide, -(-len(names) // columns) * high, parts, f"{metric} difference by position")


def length_legend(plan: Plan) -> str:
    """Which line is which length."""
    items = []
    for number, length in enumerate(plan.lengths):
        shape, colour = svg.SERIES[number % len(svg.SERIES)]
        items.append(f'<span style="color:{colour}">{SHAPES[shape]}</span> {length:,} tokens')
    return " &nbsp; ".join(items)


def cost(plan: Plan, rows: Sequence[Row], metric: str) -> str:
    """Quality against density: lengths across, arms by the numbers of the table."""
    wide, high, left, top = 330, 250, 58, 30
    numbers = {arm.name: n + 1 for n, arm in enumerate(plan.arms)}
    series = series_of(plan)
    parts: list[str] = []
    values = [row.metrics[metric].mean for row in rows]
    for column, length in enumerate(plan.lengths):
        x = column * wide
        across = svg.Scale([0.0, 1.0], x + left, x + wide - 40, margin=0.03)
        up = svg.Scale(values, high - 46, top)
        parts.append(svg.text(x + (left + wide) / 2, 12, f"{length:,} tokens", anchor="middle", weight="600"))
        for tick in (0, 0.25, 0.5, 0.75, 1):
            parts.append(svg.line(across(tick), top, across(tick), high - 46))
            parts.append(svg.text(across(tick), high - 34, f"{tick:g}", anchor="middle", size=10, colour=svg.FAINT))
        for tick in up.ticks(4):
            parts.append(svg.line(x + left, up(tick), x + wide - 40, up(tick)))
            parts.append(svg.text(x + left - 6, up(tick), f"{tick:g}", anchor="end", size=10, colour=svg.FAINT))
        places: dict[tuple[int, int], list[tuple[float, float, str]]] = {}
        for row in (r for r in rows if r.length == length):
            at_x, at_y = across(row.density), up(row.metrics[metric].mean)
            hint = f"{row.arm}: density {row.density:.3f}, {METRICS[metric].short} {row.metrics[metric].mean:.3f}, first token {row.ttft_s:.2f} s"
            parts.append(svg.mark(at_x, at_y, series[row.arm], hint))
            places.setdefault((round(at_x / 14), round(at_y / 12)), []).append((at_x, at_y, str(numbers[row.arm])))
        for close in places.values():  # arms at one place share a label
            parts.append(svg.text(close[0][0] + 8, close[0][1] - 8, ",".join(number for _, _, number in close), size=10))
        parts.append(svg.text(x + (left + wide) / 2, high - 16, f"{METRICS[metric].short} against density", anchor="middle", colour=svg.FAINT))
    return svg.picture(wide * len(plan.lengths), high, parts, f"{METRICS[metric].short} against density")


def _curve(parts: Sequence[Interval], scale: svg.Scale, left: float, right: float, number: int, hint: str) -> list[str]:
    colour = svg.SERIES[number % len(svg.SERIES)][1]
    xs = [left + (right - left) * (n + 0.5) / len(parts) for n in range(len(parts))]
    drawn = [
        svg.band([(x, scale(p.low), scale(p.high)) for x, p in zip(xs, parts)], colour=colour),
        svg.path([(x, scale(p.mean)) for x, p in zip(xs, parts)], colour=colour),
    ]
    return [*drawn, *(svg.mark(x, scale(p.mean), number, f"{hint}: {p.mean:+.4f} [{p.low:+.4f}, {p.high:+.4f}]", size=2.5) for x, p in zip(xs, parts))]


def _whisker(scale: svg.Scale, y: float, found: Interval, series: int, hint: str) -> list[str]:
    colour = svg.SERIES[series % len(svg.SERIES)][1]
    crosses = found.low <= 0 <= found.high
    says = f"{hint}: {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    return [
        svg.line(scale(found.low), y, scale(found.high), y, colour=colour, width=2),
        svg.mark(scale(found.mean), y, series, says, hollow=crosses),
    ]


def _axis(scale: svg.Scale, top: float, bottom: float) -> list[str]:
    parts = []
    for tick in scale.ticks(4):
        parts.append(svg.line(scale(tick), top, scale(tick), bottom))
        parts.append(svg.text(scale(tick), bottom + 12, f"{tick:+g}" if tick else "0", anchor="middle", size=10, colour=svg.FAINT))
    return parts


def _position(plan: Plan, name: str) -> str:
    choice = plan.arm(name).position
    if choice is None:
        return "rope"
    return str(choice.get("strategy")) if isinstance(choice, dict) else str(choice)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
