"""``trivium merge``: one merge, or the tools around a series of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table
from typer.core import TyperGroup

import trivium
from trivium._errors import InvalidArgument
from trivium.cli._console import Output, OutputOption, ProgressBar, err, numbers, out, parameters, print_json

# What `trivium merge A B --out D` means when its first word is no subcommand.
DEFAULT = "checkpoints"


class _Group(TyperGroup):
    """Subcommands, and a merge when the first word is none of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = _with_address(args)
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


def _with_address(args: list[str]) -> list[str]:
    """Give ``--ray`` without an address the word for it."""
    full = []
    for i, word in enumerate(args):
        full.append(word)
        following = args[i + 1] if i + 1 < len(args) else "-"
        address = following in ("auto", "local", "here") or (":" in following and "://" not in following and not Path(following).exists())
        if word == "--ray" and not address:
            full.append("here")
    return full


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="Merge checkpoints: `trivium merge A B --out D`, or one of the commands below.",
)

# Text, not Path, where a URL may stand: a Path would make s3:/ of s3://.
Root = Annotated[list[str], typer.Argument(help="folders that hold checkpoints, or checkpoints; paths or URLs", show_default=False)]
Out = Annotated[str, typer.Option("--out", help="folder to be made; a path or a URL")]
CacheDir = Annotated[Optional[Path], typer.Option(help="where files behind URLs are staged; default: trivium/staged in the user's cache")]
Method = Annotated[str, typer.Option(help="see `trivium list merge`")]
Param = Annotated[Optional[list[str]], typer.Option("--param", "-p", help="name=value, may be repeated")]
Pattern = Annotated[Optional[str], typer.Option(help="regular expression on folder names; its first group is the step")]
Number = Annotated[Optional[int], typer.Option("-n", help="how many; default: all")]
Interval = Annotated[Optional[int], typer.Option("-v", "--interval", help="steps from one to the next; default: neighbours")]
End = Annotated[Optional[int], typer.Option(help="step of the newest; default: the last there is")]
PerStep = Annotated[Optional[int], typer.Option(help="then the interval and the end are in tokens")]
ModelKey = Annotated[Optional[str], typer.Option(help="dictionary of the weights in PyTorch checkpoints that hold more, as app.model; default: the usual ones")]
ConfigFrom = Annotated[Optional[str], typer.Option(help="folder to copy configuration and tokenizer from, or none; default: the newest source")]
Dtype = Annotated[Optional[str], typer.Option(help="of the merged tensors, default as in the sources")]
Float64 = Annotated[bool, typer.Option("--float64", help="accumulate in float64")]
NonFinite = Annotated[bool, typer.Option("--allow-non-finite", help="count NaN and infinities instead of refusing them")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a checkpoint, or an unfinished one, that is there")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with a killed merge of the same recipe")]
Durable = Annotated[bool, typer.Option(help="wait until the disk has everything")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check and plan, write nothing")]


@app.command(DEFAULT)
def merge(
    to: Out,
    sources: Annotated[Optional[list[str]], typer.Argument(help="checkpoint folders, oldest first; paths or URLs", show_default=False)] = None,
    config: Annotated[Optional[Path], typer.Option(help="a mergekit configuration, instead of sources and method")] = None,
    method: Method = "sma",
    param: Param = None,
    weights: Annotated[Optional[str], typer.Option(help="comma-separated, one for each source")] = None,
    base: Annotated[Optional[str], typer.Option(help="for methods that work on differences")] = None,
    model_key: ModelKey = None,
    config_from: ConfigFrom = None,
    cache_dir: CacheDir = None,
    dtype: Dtype = None,
    float64: Float64 = False,
    allow_non_finite: NonFinite = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    durable: Durable = True,
    dry_run: DryRun = False,
    ray: Annotated[Optional[str], typer.Option(metavar="[ADDRESS]", help="fill shards on a Ray cluster: the one at this address, or that is there, or a local one")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Merge checkpoints into one (what `trivium merge A B --out D` does)."""
    if (config is None) == (not sources):
        raise InvalidArgument("want checkpoint folders, or --config with a mergekit configuration")
    if config is not None:
        _merge_config(config, to, output, model_key=model_key, config_from=config_from, cache_dir=cache_dir, float64=float64, allow_non_finite=allow_non_finite, overwrite=overwrite,
                      resume=resume, durable=durable, dry_run=dry_run, ray=_cluster(ray))  # fmt: skip
        return
    with ProgressBar("merging", shown=output is Output.text and not dry_run) as progress:
        report = trivium.merge(
            sources or [], to, method=method, weights=numbers("--weights", weights), base=base, model_key=model_key,
            config_from=config_from, cache_dir=cache_dir, dtype=dtype, float64=float64,
            allow_non_finite=allow_non_finite, overwrite=overwrite, resume=resume, durable=durable, dry_run=dry_run,
            ray=_cluster(ray), progress=progress, **parameters(param or []),
        )  # fmt: skip
    _print_merge(report, output)


def _cluster(address: Optional[str]) -> str | bool:
    return False if address is None else True if address == "here" else address


def _merge_config(config: Path, to: str, output: Output, **options: Any) -> None:
    from trivium.mergekit import load

    recipe = load(config)
    if output is Output.text:
        for difference in recipe.differences:
            out.print(f"[yellow]unlike mergekit:[/] {difference}", soft_wrap=True)
    with ProgressBar("merging", shown=output is Output.text and not options["dry_run"]) as progress:
        report = recipe.run(to, progress=progress, **options)
    _print_merge(report, output)


def _print_merge(report: trivium.MergeReport, output: Output) -> None:
    if output is Output.json:
        print_json(report)
        return
    for warning in report.warnings:
        out.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
    if report.dry_run:
        out.print(
            f"would merge {report.tensors} tensors of {len(report.sources)} checkpoints into {report.out}: "
            f"needs {report.disk_need / 1e6:,.1f} MB, {report.disk_free / 1e6:,.1f} MB are free"
        )
        return
    size = report.bytes_written / 1e6
    resumed = f" ({report.resumed} tensors were there already)" if report.resumed else ""
    out.print(
        f"merged {report.tensors} tensors of {len(report.sources)} checkpoints into {report.out}{resumed}: "
        f"{size:,.1f} MB in {report.seconds:.1f} s on {report.backend or 'nothing'}"
    )


@app.command("series")
def series_command(
    roots: Root,
    to: Annotated[Optional[str], typer.Option("--out", help="merge them into this folder; default: only list them")] = None,
    n: Number = None,
    interval: Interval = None,
    end: End = None,
    pattern: Pattern = None,
    tokens_per_step: PerStep = None,
    method: Method = "sma",
    param: Param = None,
    model_key: ModelKey = None,
    config_from: ConfigFrom = None,
    cache_dir: CacheDir = None,
    dtype: Dtype = None,
    float64: Float64 = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    durable: Durable = True,
    dry_run: DryRun = False,
    output: OutputOption = Output.text,
) -> None:
    """Find a run's checkpoints, pick some by number and interval, and merge them."""
    found = trivium.series(*roots, n=n, interval=interval, end=end, pattern=pattern, tokens_per_step=tokens_per_step)
    if to is None:
        _print_series(found, output)
        return
    with ProgressBar("merging", shown=output is Output.text and not dry_run) as progress:
        report = trivium.merge(
            found.paths, to, method=method, steps=[float(s) for s in found.steps], model_key=model_key, config_from=config_from, cache_dir=cache_dir, dtype=dtype, float64=float64,
            overwrite=overwrite, resume=resume, durable=durable, dry_run=dry_run, progress=progress, **parameters(param or []),
        )  # fmt: skip
    _print_merge(report, output)


def _print_series(found: Any, output: Output) -> None:
    if output is Output.json:
        print_json({"checkpoints": found.checkpoints, "ignored": found.ignored})
        return
    table = Table("step", "checkpoint", box=None, pad_edge=False)
    for checkpoint in found:
        table.add_row(str(checkpoint.step), checkpoint.path)
    out.print(table)
    for folder in found.ignored:
        out.print(f"[yellow]ignored:[/] {folder}: its step is not known", soft_wrap=True)


@app.command("sweep")
def sweep_command(
    roots: Root,
    to: Annotated[Optional[str], typer.Option("--out", help="keep the candidates in this folder")] = None,
    n: Annotated[str, typer.Option("-n", help="comma-separated")] = "3,6,10",
    interval: Annotated[Optional[str], typer.Option("-v", "--interval", help="steps, comma-separated; default: neighbours")] = None,
    method: Annotated[Optional[list[str]], typer.Option(help="name, or name:param=value,..; may be repeated")] = None,
    end: End = None,
    pattern: Pattern = None,
    model_key: ModelKey = None,
    config_from: ConfigFrom = None,
    cache_dir: CacheDir = None,
    text: Annotated[Optional[Path], typer.Option(help="rank by loss on this text file")] = None,
    command: Annotated[Optional[str], typer.Option(help="rank by the loss that this command prints; {} becomes the path")] = None,
    length: Annotated[int, typer.Option(help="tokens of a sequence of the text")] = 512,
    limit: Annotated[Optional[int], typer.Option(help="sequences of the text to use")] = None,
    reference: Annotated[Optional[list[str]], typer.Option(help="name=path of a checkpoint to compare with")] = None,
    individuals: Annotated[bool, typer.Option("--individuals", help="evaluate each source too")] = False,
    plot: Annotated[Optional[Path], typer.Option(help="picture to draw")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    durable: Durable = True,
    output: OutputOption = Output.text,
) -> None:
    """Merge many ways in one pass over the files, and rank the results by loss."""
    if text and command:
        raise InvalidArgument("--text and --command: want one of them")
    evaluate: Any = command
    if text:
        from trivium.pma import Losses

        evaluate = Losses(text=text, length=length, limit=limit)
    with ProgressBar("merging", shown=output is Output.text) as progress:
        result = trivium.sweep(
            trivium.series(*roots, pattern=pattern), to, n=_integers("-n", n), interval=_integers("-v", interval) or [None],
            method=[_method(m) for m in method or ["sma", "wma", "ema"]], evaluate=evaluate,
            references=dict(_pair("--reference", r) for r in reference or []), individuals=individuals, end=end, model_key=model_key, config_from=config_from, cache_dir=cache_dir,
            overwrite=overwrite, resume=resume, durable=durable, progress=progress,
        )  # fmt: skip
    if plot:
        _save(result.plot(), plot)
    if output is Output.json:
        print_json({"rows": result.to_rows(), "bytes_read": result.bytes_read, "seconds": result.seconds})
        return
    table = Table("candidate", "loss", "below the newest", "above the best", box=None, pad_edge=False)
    for c in (*result.candidates, *result.references):
        loss = "" if c.loss is None else f"{c.loss:.4f}"
        table.add_row(c.name, loss, _span(c.gain), _span(c.behind))
    out.print(table)
    out.print(f"{result.bytes_read / 1e6:,.1f} MB read and {result.bytes_written / 1e6:,.1f} MB written in {result.seconds:.1f} s")


def _save(ax: Any, path: Path) -> None:
    ax.figure.savefig(path, dpi=150, bbox_inches="tight")


def _span(x: Optional[tuple[float, float, float]]) -> str:
    return "" if x is None else f"{x[0]:+.4f} ({x[1]:+.4f} to {x[2]:+.4f})"


def _integers(option: str, text: Optional[str]) -> list[Any]:
    return [int(x) for x in numbers(option, text) or []]


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgument(f"{option} {text}: want name=path")
    return name, value


def _method(text: str) -> Any:
    name, colon, params = text.partition(":")
    return (name, parameters(params.split(","))) if colon else name


@app.command("watch")
def watch_command(
    root: Annotated[str, typer.Argument(help="folder that a training run writes its checkpoints to", show_default=False)],
    to: Annotated[str, typer.Option("--out", help="folder of the merges; `latest` in it is the newest")],
    method: Method = "sma",
    n: Annotated[int, typer.Option("-n", help="checkpoints in the merge")] = 10,
    alpha: Annotated[float, typer.Option(help="of ema: weight of the newest")] = 0.2,
    pattern: Pattern = None,
    model_key: ModelKey = None,
    config_from: ConfigFrom = None,
    every: Annotated[float, typer.Option(help="seconds between looks")] = 10.0,
    settle: Annotated[float, typer.Option(help="seconds for which files must not have changed")] = 5.0,
    anchor: Annotated[int, typer.Option(help="compute anew after so many rolls")] = 16,
    keep: Annotated[int, typer.Option(help="merges to keep")] = 2,
    durable: Durable = True,
    once: Annotated[bool, typer.Option("--once", help="merge what is there and return")] = False,
) -> None:
    """Follow a training run and keep a merge of its latest checkpoints."""

    def say(merged: Any) -> None:
        how = "from all its checkpoints" if merged.anchored else "rolled on"
        out.print(f"step {merged.step}: {len(merged.steps)} checkpoints, {how}, {merged.bytes_read / 1e6:,.1f} MB read in {merged.seconds:.1f} s")

    made = trivium.watch(
        root, to, method=method, n=n, alpha=alpha, pattern=pattern, model_key=model_key, config_from=config_from, every=every, settle=settle, anchor=anchor, keep=keep,
        durable=durable, once=once, on_merge=say,
    )  # fmt: skip
    if not made:
        err.print("no new checkpoint")


@app.command("init")
def init_command(
    roots: Root,
    to: Out,
    n: Number = None,
    interval: Interval = None,
    end: End = None,
    pattern: Pattern = None,
    model_key: ModelKey = None,
    config_from: ConfigFrom = None,
    cache_dir: CacheDir = None,
    method: Method = "sma",
    optimizer: Annotated[str, typer.Option(help="reset, newest or averaged")] = "reset",
    overwrite: Overwrite = False,
    resume: Resume = False,
    durable: Durable = True,
    dry_run: DryRun = False,
    output: OutputOption = Output.text,
) -> None:
    """Prepare a merged checkpoint to start continued training or fine-tuning from."""
    from trivium.pma import init

    report = init(
        trivium.series(*roots, pattern=pattern), to, n=n, interval=interval, end=end, method=method, optimizer=optimizer,
        model_key=model_key, config_from=config_from, cache_dir=cache_dir, overwrite=overwrite, resume=resume, durable=durable, dry_run=dry_run,
    )  # fmt: skip
    _print_merge(report, output)


@app.command("recover")
def recover_command(
    roots: Root,
    to: Out,
    before: Annotated[int, typer.Option(help="step at which the spike began")],
    n: Annotated[int, typer.Option("-n", help="checkpoints from before it")] = 3,
    pattern: Pattern = None,
    model_key: ModelKey = None,
    config_from: ConfigFrom = None,
    cache_dir: CacheDir = None,
    optimizer: Annotated[str, typer.Option(help="reset, newest or averaged")] = "reset",
    overwrite: Overwrite = False,
    resume: Resume = False,
    durable: Durable = True,
    output: OutputOption = Output.text,
) -> None:
    """Merge checkpoints from before a loss spike, to resume training from."""
    from trivium.pma import recover

    report = recover(
        trivium.series(*roots, pattern=pattern), to, before=before, n=n, optimizer=optimizer, model_key=model_key,
        config_from=config_from, cache_dir=cache_dir, overwrite=overwrite, resume=resume, durable=durable,
    )  # fmt: skip
    _print_merge(report, output)


@app.command("similarity")
def similarity_command(
    roots: Root,
    n: Number = None,
    interval: Interval = None,
    end: End = None,
    pattern: Pattern = None,
    model_key: ModelKey = None,
    cache_dir: CacheDir = None,
    plot: Annotated[Optional[Path], typer.Option(help="heat map to draw")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Compare checkpoints pairwise, layer by layer."""
    found = trivium.similarity(trivium.series(*roots, n=n, interval=interval, end=end, pattern=pattern), model_key=model_key, cache_dir=cache_dir)
    if plot:
        _save(found.plot(), plot)
    if output is Output.json:
        print_json({
            "steps": found.steps, "cosine": found.cosine(), "centred": found.cosine(centred=True), "distance": found.distance(),
            "layers": {layer: {"cosine": found.cosine(layer), "distance": found.distance(layer)} for layer in found.layers},
        })  # fmt: skip
        return
    for title, values in (("cosine", found.cosine()), ("cosine of differences from the mean", found.cosine(centred=True))):
        table = Table("step", *map(str, found.steps), title=title, box=None, pad_edge=False)
        for step, row in zip(found.steps, values):
            table.add_row(str(step), *(f"{x:.4f}" for x in row))
        out.print(table)
