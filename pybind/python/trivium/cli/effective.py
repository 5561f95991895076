"""``trivium effective-length``: how long a context a model uses, and which positions make it longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from trivium._errors import InvalidArgument
from trivium.cli._console import Output, OutputOption, err, out, print_json

if TYPE_CHECKING:
    from trivium.effective import Choice, Study, Target
    from trivium.eval.bootstrap import Interval


def effective_length(
    model: Annotated[str, typer.Argument(help="a Hugging Face folder, or smollm2", show_default=False)],
    lengths: Annotated[Optional[str], typer.Option(help="tokens, comma-separated; default: 1/2, 1 and 3/2 of the trained length")] = None,
    samples: Annotated[int, typer.Option(help="prompts at each length, the same for every strategy")] = 32,
    text_samples: Annotated[int, typer.Option(help="windows of plain text at each length; 0: no likelihood of text")] = 8,
    position: Annotated[Optional[list[str]], typer.Option(help="id or id:param=value,..; may be repeated; the first is the baseline")] = None,
    attention: Annotated[str, typer.Option(help="attention strategy under all of them")] = "dense",
    task: Annotated[Optional[str], typer.Option(help="passkey, needle, or copy, which needs no tokenizer")] = None,
    text: Annotated[Optional[str], typer.Option(help="UTF-8 file, or safetensors of tokens")] = None,
    threshold: Annotated[float, typer.Option(help="share retrieved that counts as using a length")] = 0.85,
    search: Annotated[bool, typer.Option(help="find S and W for STRING and add it to the table")] = True,
    save: Annotated[bool, typer.Option(help="keep them beside the model, for position='string'")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    to: Annotated[Path, typer.Option("--out", help="folder of records and results; a run that was stopped goes on")] = Path("effective-length"),
    output: OutputOption = Output.text,
) -> None:
    """Measure retrieval by depth and length for each position strategy, and find STRING's S and W."""
    from trivium import effective, saved_positions
    from trivium.effective import search as searching, study as studies
    from trivium.effective.arms import DEFAULTS, arms as arms_of, string_arms

    with _bar(output is Output.text) as (say, start, step):
        target = effective.open_target(model, text=text, device=device, dtype=dtype, say=say)
        wanted = _integers(lengths) or studies._default_lengths(target.train_length)
        arms = arms_of(position or DEFAULTS, target.train_length, attention)
        choice, path = None, None
        if search:
            points = searching.grid(target.train_length)
            start("searching S and W", studies.cells(1 + len(points), len(wanted), samples, min(text_samples, 4)))
            choice = effective.choose(
                target, wanted, samples=samples, text_samples=max(1, min(text_samples, 4)), task=task, attention=attention,
                out=to / "search", step=step,
            )  # fmt: skip
            arms = (*arms, *(arm for arm in string_arms([(choice.shift, choice.local)], attention) if arm.name not in {a.name for a in arms}))
        start("position strategies", studies.cells(len(arms), len(wanted), samples, text_samples))
        study = effective.measure(
            target, wanted, arms=arms, samples=samples, text_samples=text_samples, task=task, threshold=threshold,
            out=to / "study", step=step,
        )  # fmt: skip
        say("drawing")
        picture = _draw(study, to)
    if choice is not None and save:
        if target.folder is None:
            raise InvalidArgument(f"{model}: not a folder: nowhere to save S and W", hint="use --no-save")
        path = saved_positions.save(target.folder, choice.saved())
    if output is Output.json:
        print_json({"study": study.as_dict(), "search": choice, "saved": path, "picture": picture})
        return
    _print(study, target, choice, path, picture)


@contextmanager
def _bar(shown: bool) -> Iterator[tuple[Callable[[str], None], Callable[[str, int], None], Callable[[], None]]]:
    """Say what is done, start counting to a total, step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=err, disable=not shown)
    task = bar.add_task("", total=None)
    with bar:
        yield (
            lambda what: bar.update(task, description=what),
            lambda what, total: bar.reset(task, description=what, total=total),
            lambda: bar.advance(task),
        )


def _integers(text: Optional[str]) -> Optional[tuple[int, ...]]:
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise InvalidArgument(f"--lengths {text}: want whole numbers separated by commas") from error


def _draw(study: Study, to: Path) -> Optional[Path]:
    """The heat map; None where matplotlib is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    path = to / "heatmap.png"
    figure = study.plot()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _print(study: Study, target: Target, choice: Optional[Choice], path: Optional[Path], picture: Optional[Path]) -> None:
    out.print(f"{study.model}: trained for {study.train_length:,} tokens; {study.task}, {study.samples} samples a length, 95 % intervals; NLL: of plain text", soft_wrap=True)
    for length in study.lengths:
        out.print(_at_length(study, length))
    reached = ", ".join(f"{arm} {study.effective_length(arm):,}" for arm in study.arms)
    out.print(f"effective length (retrieved >= {study.threshold:g} there and at every shorter one): {reached}", soft_wrap=True)
    if choice is not None:
        _print_choice(choice)
    if path is not None:
        out.print(f"kept in {path}: position='string' uses it for this model", soft_wrap=True)
    if picture is not None:
        out.print(f"heat maps: {picture}", soft_wrap=True)


def _at_length(study: Study, length: int) -> Table:
    """One length as a table that fits 80 columns; the first strategy's NLL is in the title, the others' are differences from it."""
    nll = study.row(study.arms[0], length).nll
    title = f"{length:,} tokens" + ("" if nll is None else f", NLL of {study.arms[0]} {nll.mean:.3f}")
    table = Table("positions", "retrieved", "difference", "NLL", title=title, title_justify="left", box=None, pad_edge=False)
    for arm in study.arms:
        row = study.row(arm, length)
        table.add_row(
            arm, _show(row.exact), _show(row.difference, signed=True), "" if row.nll_difference is None else _show(row.nll_difference, signed=True)
        )
    return table


def _print_choice(choice: Choice) -> None:
    table = Table("S", "W", "retrieved", "NLL over rope", title="search, on other prompts", box=None, pad_edge=False)
    for tried in choice.tried:
        table.add_row(str(tried.shift), str(tried.local), _show(tried.exact), _show(tried.text_rise, 3, signed=True))
    out.print(table)
    verdict = "a gain" if choice.helps else "no gain here"
    out.print(f"S {choice.shift}, W {choice.local}: {verdict}, {_show(choice.gain, signed=True)} over rope's {choice.rope.mean:.2f}", soft_wrap=True)


def _show(found: Interval, digits: int = 2, signed: bool = False) -> str:
    mean, low, high = (_short(value, digits, signed) for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def _short(value: float, digits: int = 2, signed: bool = False) -> str:
    """Without the zero before the point: columns are few."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text
