"""The report of a run: one HTML file that carries its pictures in itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trivium._files import replace
from trivium.eval import charts
from trivium.eval.bootstrap import Interval
from trivium.eval.metrics import FEWEST, METRICS, verdict
from trivium.eval.plan import Cell, Plan
from trivium.eval.subject import Subject
from trivium.eval.summary import Records, Row

__all__ = ["METRICS", "REPORT", "render", "write_page"]

REPORT = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #1b1f23; background: #fff; }
h1 { margin-bottom: .2em; } h2 { margin-top: 2em; border-bottom: 1px solid #d8dee4; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .25em .7em; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap; }
th { background: #f3f5f7; } td.name, th.name { text-align: left; }
td.worse { background: #fbe6da; } td.better { background: #dcebf7; }
tr.base td { font-weight: 600; } small { color: #57606a; }
.wide { overflow-x: auto; } p.note, .legend { color: #57606a; } summary { cursor: pointer; color: #57606a; }
svg { max-width: 100%; height: auto; font-family: system-ui, sans-serif; }
"""


def write_page(folder: Path, plan: Plan, subject: Subject, records: Records, rows: Sequence[Row]) -> Path:
    """Write ``report.html`` into ``folder``."""
    path = folder / REPORT
    replace(path, render(plan, subject, records, rows))
    return path


def render(plan: Plan, subject: Subject, records: Records, rows: Sequence[Row]) -> str:
    """The page as text."""
    body = [
        "<h1>Trivium evaluation</h1>",
        _opening(plan, subject),
        "<h2>At a glance</h2>",
        _glance(plan, rows),
        *(_task(plan, records, task, [row for row in rows if row.task == task]) for task in plan.tasks),
        "<h2>What was run</h2>",
        _run(plan, subject, records),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Trivium evaluation</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _opening(plan: Plan, subject: Subject) -> str:
    lengths = ", ".join(f"{length:,}" for length in plan.lengths)
    few = f" With fewer than {FEWEST} samples no difference is called one." if plan.samples < FEWEST else ""
    return (
        f"<p>{escape(subject.model)} in {subject.dtype} on {escape(subject.device)}; {len(plan.arms)} arms on {len(plan.tasks)} tasks at "
        f"{lengths} tokens, {plan.samples} samples each. Every arm saw the same prompts, so differences from <b>{escape(plan.baseline.name)}</b> "
        f"are paired; brackets are 95 % bootstrap intervals over prompts.{few}</p>"
    )


def _glance(plan: Plan, rows: Sequence[Row]) -> str:
    """At the longest length: each arm's cost, and its difference on each task."""
    length = max(plan.lengths)
    at = {(row.task, row.arm): row for row in rows if row.length == length}
    leading = {task: next(iter(at[task, plan.baseline.name].metrics)) for task in plan.tasks}
    head = ["#", "arm", "density", "coverage", "first token", *(f"{task}: {METRICS[leading[task]].short}" for task in plan.tasks)]
    lines = []
    for number, arm in enumerate(plan.arms, 1):
        own = [at[task, arm.name] for task in plan.tasks]
        coverage = [row.coverage for row in own if row.coverage is not None]
        cells = [
            _td(str(number)), _td(escape(arm.name), "name"), _td(f"{_mean(r.density for r in own):.3f}"),
            _td(f"{_mean(coverage):.3f}" if coverage else "–"), _td(f"{_mean(r.ttft_s for r in own):.2f} s"),
        ]  # fmt: skip
        for task, row in zip(plan.tasks, own):
            metric = leading[task]
            base = arm.name == plan.baseline.name
            cells.append(_td(f"{row.metrics[metric].mean:.3f}") if base else _change(metric, row.differences[metric]))
        lines.append(_tr(cells, "base" if arm.name == plan.baseline.name else ""))
    note = (
        f'<p class="note">At {length:,} tokens; density, coverage and time are means over the tasks. The first line has the figures of the baseline, '
        "the others their differences from it. Shaded: the interval leaves zero out, ▼ to the worse, ▲ to the better. "
        "Lower is better for NLL and KL.</p>"
    )
    return f'<div class="wide">{_table(head, lines)}</div>{note}'


def _task(plan: Plan, records: Records, task: str, rows: Sequence[Row]) -> str:
    metrics = list(rows[0].metrics)
    parts = [f"<h2>{escape(task)}</h2>"]
    for metric in metrics:
        parts.append(f'<p class="note">{escape(METRICS[metric].short)}: {escape(METRICS[metric].long)}.</p>')
        if len(plan.arms) > 1:
            parts.append(f'<p class="legend">{charts.legend(plan)}</p><div class="wide">{charts.differences(plan, rows, metric)}</div>')
    if "depth" in records[Cell(task, plan.lengths[0], 0, plan.baseline.name)]["about"]:
        scored = next((m for m in ("exact", "score") if m in metrics), None)
        if scored:
            parts.append("<h3>By depth of the needle and length</h3>")
            parts.append(f'<div class="wide">{charts.depths(plan, records, task, scored)}</div>')
    if rows[0].curves and len(plan.arms) > 1:
        parts.append(f'<h3>By position in the window</h3><p class="legend">Difference from {escape(plan.baseline.name)}: {charts.length_legend(plan)}</p>')
        parts.append(f'<div class="wide">{charts.positions(plan, rows, next(iter(rows[0].curves)))}</div>')
    parts.append("<h3>Quality against density</h3>")
    parts.append(f'<div class="wide">{charts.cost(plan, rows, metrics[0])}</div>')
    parts.append(f'<details open><summary>Figures</summary><div class="wide">{_figures(plan, rows, metrics)}</div></details>')
    return "".join(parts)


def _figures(plan: Plan, rows: Sequence[Row], metrics: Sequence[str]) -> str:
    head = ["length", "arm", "density", "coverage", "first token", "attention",
            *(column for m in metrics for column in (METRICS[m].short, "difference"))]  # fmt: skip
    lines = []
    for row in rows:
        base = row.arm == plan.baseline.name
        coverage = "–" if row.coverage is None else f"{row.coverage:.3f}"
        cells = [_td(f"{row.length:,}"), _td(escape(row.arm), "name"), _td(f"{row.density:.3f}"), _td(coverage),
                 _td(f"{row.ttft_s:.2f} s"), _td(f"{row.attention_s:.2f} s")]  # fmt: skip
        for metric in metrics:
            mean = row.metrics[metric]
            cells.append(_td(f"{mean.mean:.3f}<br><small>[{mean.low:.3f}, {mean.high:.3f}]</small>"))
            cells.append(_td("") if base else _change(metric, row.differences[metric]))
        lines.append(_tr(cells, "base" if base else ""))
    return _table(head, lines)


def _run(plan: Plan, subject: Subject, records: Records) -> str:
    from trivium.demo.machine import environment

    prompts = {(cell.task, cell.length, cell.index): found["prompt"] for cell, found in records.items()}
    notes = dict.fromkeys(f"{cell.arm}: {note}" for cell, found in records.items() for note in found["notes"])
    facts: dict[str, Any] = {
        "model": subject.model, "text": subject.text, "device": subject.device, "dtype": subject.dtype, "seed": plan.seed,
        "samples": f"{plan.samples} for each task and length, {len(prompts)} prompts in all",
        "processes": ", ".join(map(str, sorted({found["processes"] for found in records.values()}))) + " shared the machine while times were taken",
        "chat template": "for RULER" if any(found["chat"] for found in records.values()) else "not used",
        "coverage": f"on {plan.probe_rows} random rows of each head" if plan.probe_rows else "not measured", **environment(),
    }  # fmt: skip
    lines = [_tr([_td(escape(str(k)), "name"), _td(escape(str(v)), "name")]) for k, v in facts.items()]
    times = "Times are wall clock, medians: of the whole prefill up to the first new token, and of attention in it; measuring coverage is not counted."
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f'{_table(["what", "value"], lines)}<p class="note">{times}</p><details><summary>Notes of the strategies</summary>{said}</details>'


def _change(metric: str, found: Interval) -> str:
    kind = verdict(metric, found)
    sign = {"worse": "▼ ", "better": "▲ "}.get(kind, "")
    return _td(f"{sign}{found.mean:+.3f}<br><small>[{found.low:+.3f}, {found.high:+.3f}]</small>", kind)


def _table(head: Sequence[str], lines: Iterable[str]) -> str:
    cells = "".join(f'<th{_class("name" if name in ("arm", "what", "value") else "")}>{escape(name)}</th>' for name in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _tr(cells: Iterable[str], kind: str = "") -> str:
    return f"<tr{_class(kind)}>{''.join(cells)}</tr>"


def _td(content: str, kind: str = "") -> str:
    return f"<td{_class(kind)}>{content}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
