"""``trivium eval``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from trivium.cli._console import Output, OutputOption, err, out, print_json

if TYPE_CHECKING:
    from trivium.eval.bootstrap import Interval
    from trivium.eval.plan import Plan
    from trivium.eval.summary import Row

DEFAULTS: Mapping[str, Any] = {"arms": ["dense", "flexprefill"], "tasks": ["passkey", "perplexity"], "lengths": [4096]}

PlanFile = Annotated[Optional[Path], typer.Argument(help="a plan in YAML; options replace what it says", show_default=False)]
Arms = Annotated[Optional[list[str]], typer.Option("--arm", "-a", help="attention[:param=value,..][+position[:..]]; the first is the baseline")]
Tasks = Annotated[Optional[list[str]], typer.Option("--task", "-t", help="may be repeated; `ruler` is all 13 of them")]
Lengths = Annotated[Optional[list[int]], typer.Option("--length", "-l", help="tokens of a prompt; may be repeated")]


def eval_command(
    plan_file: PlanFile = None,
    to: Annotated[Path, typer.Option("--out", help="folder of records, results and report")] = Path("eval-report"),
    arm: Arms = None,
    task: Tasks = None,
    length: Lengths = None,
    samples: Annotated[Optional[int], typer.Option("--samples", "-n", help="of each task and length; default 20")] = None,
    seed: Annotated[Optional[int], typer.Option(help="other prompts")] = None,
    probe_rows: Annotated[Optional[int], typer.Option(help="random rows of each head on which coverage is measured; default 0: not at all")] = None,
    model: Annotated[Optional[str], typer.Option(help="a Hugging Face folder or a GGUF file; default: smollm2")] = None,
    text: Annotated[Optional[str], typer.Option(help="a file that prompts are cut from; default: emma")] = None,
    device: Annotated[Optional[str], typer.Option(help="cpu, cuda or cuda:N")] = None,
    dtype: Annotated[Optional[str], typer.Option(help="float32, bfloat16, float16 or auto")] = None,
    threads: Annotated[Optional[int], typer.Option(help="torch's; default: as torch is set")] = None,
    new_tokens: Annotated[Optional[int], typer.Option(help="most tokens of a generated answer; default: RULER's number for each task")] = None,
    chat: Annotated[Optional[bool], typer.Option("--chat/--no-chat", help="RULER in the chat template; default: if there is one")] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", help="processes that share the machine; the results are the same, times are not")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="spread arms and lengths over a Ray cluster")] = False,
    ray_workers: Annotated[Optional[int], typer.Option(help="tasks at a time on a cluster that is started here")] = None,
    ray_address: Annotated[Optional[str], typer.Option(help="of a running cluster")] = None,
    show_schema: Annotated[bool, typer.Option("--schema", help="print what a plan may hold, as JSON Schema, and run nothing")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Compare arms (attention x position) on tasks, with paired intervals.

    A run that was interrupted goes on when the same command is given again.
    """
    from trivium.eval.launch import evaluate
    from trivium.eval.schema import schema
    from trivium.eval.spread import Cluster

    if show_schema:
        print_json(schema())
        return
    given = {
        "arms": arm, "tasks": task, "lengths": length, "samples": samples, "seed": seed, "probe_rows": probe_rows, "model": model,
        "text": text, "device": device, "dtype": dtype, "threads": threads, "new_tokens": new_tokens, "chat": chat,
    }  # fmt: skip
    plan, subject = _plan(plan_file, {key: value for key, value in given.items() if value not in (None, [])})
    cluster = Cluster(ray_address, ray_workers) if ray or ray_workers or ray_address else None
    with _Bar(len(plan.order()), shown=output is Output.text) as bar:
        rows = evaluate(plan, subject, to, cluster=cluster, workers=workers, say=bar.say, step=bar.step)
    if output is Output.json:
        print_json(rows)
        return
    for name in plan.tasks:
        out.print(_table(plan, name, [row for row in rows if row.task == name]), highlight=False)
    out.print(f"figures of {plan.baseline.name}, and differences from them; ▼ worse, ▲ better: the interval leaves zero out")
    if (most := max(row.processes for row in rows)) > 1:
        out.print(f"times are those of {most} processes that shared the machine")
    out.print(f"the report is {to / 'report.html'}", soft_wrap=True, highlight=False)


def _plan(path: Optional[Path], given: dict[str, Any]) -> Any:
    from trivium.eval.plan import from_mapping, load_yaml

    data = load_yaml(path) if path else DEFAULTS
    return from_mapping({**data, **given}, str(path) if path else "options")


def _table(plan: Plan, task: str, rows: list[Row]) -> Table:
    """A line for each arm; intervals where the terminal is wide enough for them."""
    from trivium.eval.metrics import METRICS

    metrics = list(rows[0].metrics)
    wide = out.width >= 80 + 28 * len(metrics)
    table = Table(title=task, title_justify="left", box=None, pad_edge=False)
    table.add_column("length", justify="right")
    table.add_column("arm", min_width=18, overflow="fold")
    for name in ("density", "cover", "ttft", *(METRICS[metric].short for metric in metrics)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        coverage = "–" if row.coverage is None else f"{row.coverage:.3f}"
        base = row.arm == plan.baseline.name
        found = [f"{row.metrics[m].mean:.3f}" if base else _change(m, row.differences[m], wide) for m in metrics]
        table.add_row(f"{row.length:,}", row.arm, f"{row.density:.3f}", coverage, f"{row.ttft_s:.2f} s", *found)
    return table


def _change(metric: str, found: Interval, wide: bool) -> str:
    from trivium.eval.metrics import verdict

    sign = {"worse": "▼ ", "better": "▲ "}.get(verdict(metric, found), "")
    return f"{sign}{found.mean:+.3f}" + (f" [{found.low:+.3f}, {found.high:+.3f}]" if wide else "")


class _Bar:
    """Cells done, on stderr."""

    def __init__(self, cells: int, *, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=err, disable=not shown)
        self._task = self._progress.add_task("starting", total=cells)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, what: str) -> None:
        """Say what is being done."""
        self._progress.update(self._task, description=what)

    def step(self) -> None:
        """Count a cell."""
        self._progress.advance(self._task)
