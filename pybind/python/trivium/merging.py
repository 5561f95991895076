"""Merging checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import Any

from trivium import _bridge, _remote
from trivium._engine import Engine, default_engine
from trivium._errors import InvalidArgument, Unsupported
from trivium._params import plain


@dataclass(frozen=True)
class MergeReport:
    """What was merged and how.

    Attributes
    ----------
    weights : tuple of float
        One for each source, oldest first; empty for methods that are not linear.
    tensors : int
        How many were merged.
    copied : tuple of str
        Integers and buffers, taken from the newest source.
    recipe : str
        Hash of all that the result depends on.
    resumed : int
        Tensors that an earlier, killed run had finished.
    downloaded, uploaded : int
        Bytes that were copied from and to URLs; ``warnings`` says where they were staged.
    """

    method: str
    sources: tuple[str, ...]
    out: str
    recipe: str
    tensors: int
    bytes_read: int
    bytes_written: int
    seconds: float
    disk_need: int
    disk_free: int
    weights: tuple[float, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    non_finite: tuple[dict[str, Any], ...] = ()
    resumed: int = 0
    backend: str = ""
    warnings: tuple[str, ...] = ()
    dry_run: bool = False
    downloaded: int = 0
    uploaded: int = 0

    def _repr_html_(self) -> str:
        from trivium._html import merge_html

        return merge_html(self)


def merge(
    sources: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    method: str = "sma",
    weights: Sequence[float] | None = None,
    steps: Sequence[float] | None = None,
    base: str | PathLike[str] | None = None,
    model_key: str | None = None,
    config_from: str | PathLike[str] | None = None,
    dtype: str | None = None,
    float64: bool = False,
    allow_non_finite: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    durable: bool = True,
    dry_run: bool = False,
    shard_bytes: int | None = None,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
    timeout: float | None = None,
    ray: str | bool = False,
    cache_dir: str | PathLike[str] | None = None,
    engine: Engine | None = None,
    **params: Any,
) -> MergeReport:
    """Merge checkpoints into one.

    The numbers go from file to file through the plugin's mapped pages; none enters
    this process. Nothing is visible in ``out`` before all of it is there.

    Parameters
    ----------
    sources : sequence of paths
        Checkpoints, oldest first: Hugging Face folders, or single files, of safetensors or
        of what ``torch.save`` writes, or folders of ``torch.distributed.checkpoint``
        (their pickles are read and never run). Also URLs of fsspec (``s3://``, ``gs://``,
        ``hf://``, ..; ``pip install 'trivium[remote]'``): their files are copied to
        ``cache_dir`` first, and kept there.
    out : path or URL
        Folder to be made. For a URL it is made in ``cache_dir`` and uploaded, the entry point
        last; after a broken upload the same merge with ``resume`` goes on.
    method : str
        ``trivium.list("merge")`` shows what there is and ``trivium.info(name)`` the
        parameters that ``**params`` takes.
    weights : sequence of float, optional
        One for each source, for a linear method; default: the method's own.
    steps : sequence of float, optional
        Training step of each source.
    base : path, optional
        For methods that work on differences.
    model_key : str, optional
        Which dictionary has the weights in sources of PyTorch that hold more, dotted, as
        ``"app.model"``. Default: ``state_dict``, ``model_state_dict``, ``model`` or ``module``
        at the root; else the tensors at the root; else such a dictionary in the only one at
        the root that has one. What is left out, as an optimizer's state, is in ``warnings``.
    config_from : path, optional
        Folder that configuration and tokenizer are copied from; default: the newest source.
        A distributed checkpoint often has none: then name one, or ``"none"`` for weights alone.
    dtype : str, optional
        Of the merged tensors; default: the sources', which must agree.
    float64 : bool
        Accumulate in float64 instead of float32. Inputs are never rounded first.
    allow_non_finite : bool
        Count NaN and infinities instead of refusing them.
    overwrite : bool
        Replace a checkpoint, or an unfinished one, that is in ``out``.
    resume : bool
        Go on with a killed merge of the same recipe, to the same bytes, and keep what is
        done if this one is stopped. Without it, unfinished work in ``out`` is an error.
    durable : bool
        Wait until the disk has everything. Without it the result is as safe from a
        killed process, but not from a power cut, and a slow disk does not slow the merge.
    dry_run : bool
        Check and plan, write nothing. The report tells the disk space needed and free.
    progress : callable, optional
        Called with bytes written and bytes to write; with URLs also while files are copied.
    ray : bool or str
        Fill the shards of the output as tasks on a Ray cluster: True for the one that is
        there (or a local one), or its address. Every machine must see the same files under
        the same paths, so with URLs a ``cache_dir`` that all of them share. The bytes are those
        of a local merge; a worker that dies is replaced.
    cache_dir : path, optional
        Where files behind URLs are staged; default: ``trivium/staged`` in the user's cache.

    Raises
    ------
    CheckpointError
        Naming file and tensor: truncated, overlapping, missing, extra, other shape
        or dtype, NaN, no space, output exists.
    """
    if isinstance(sources, (str, PathLike)):
        raise InvalidArgument("sources is one path: want a list of checkpoint folders, oldest first")
    request: dict[str, Any] = {
        "engine": (engine or default_engine()).handle,
        "method": method,
        "sources": [fspath(s) for s in sources],
        "base": fspath(base) if base is not None else "",
        **reading(model_key, config_from),
        "out": fspath(out),
        "weights": None if weights is None else [float(w) for w in weights],
        "steps": None if steps is None else [float(s) for s in steps],
        "params": plain(params),
        "dtype": dtype or "",
        "float64": float64,
        "allow_non_finite": allow_non_finite,
        "overwrite": overwrite,
        "resume": resume,
        "volatile": not durable,
        "dry_run": dry_run,
        "shard_bytes": int(shard_bytes or 0),
        "threads": threads,
    }
    for key in ("out", "base", "config_from"):
        request[key] = _remote.local(request[key])
    request["sources"] = [_remote.local(s) for s in request["sources"]]
    if any(_remote.is_url(p) for p in (*request["sources"], request["out"], request["base"], request["config_from"])):
        return _merge_remote(request, ray, timeout, progress, cache_dir)
    return _merge_here(request, ray, timeout, progress)


def reading(model_key: str | None, config_from: str | PathLike[str] | None) -> dict[str, str]:
    """Give how sources are read, as requests say it."""
    return {"model_key": model_key or "", "config_from": fspath(config_from) if config_from is not None else ""}


def _merge_here(request: dict[str, Any], ray: str | bool, timeout: float | None, progress: Callable[[int, int], None] | None) -> MergeReport:
    if ray is not False and not request["dry_run"]:
        from trivium._ray import merge_on_ray

        result = merge_on_ray(request, ray if isinstance(ray, str) else "", timeout, progress)
    else:
        result = _bridge.run("merge", request, timeout, progress=progress)
    if progress is not None:
        progress(result["bytes_written"], result["bytes_written"])
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in result.items()}
    return MergeReport(**fields)


def _merge_remote(
    request: dict[str, Any], ray: str | bool, timeout: float | None, progress: Callable[[int, int], None] | None, cache_dir: str | PathLike[str] | None
) -> MergeReport:
    """Stage what is behind URLs, merge here, and upload if the output is behind one."""
    if ray is not False and cache_dir is None:
        raise Unsupported(
            "URLs are staged in a folder, and every machine of the cluster must see it under the same path",
            hint="name a cache_dir on storage that all of them share",
        )
    sources, out, dry_run = tuple(request["sources"]), request["out"], request["dry_run"]
    urls = [p for p in (*sources, request["base"]) if _remote.is_url(p)]
    side = [request["config_from"]] if _remote.is_url(request["config_from"]) else []
    upload = None
    if _remote.is_url(out):
        upload = _remote.Upload(out, folder=cache_dir, overwrite=request["overwrite"], resume=request["resume"], dry_run=dry_run)
        request["out"] = str(upload.here)
    if not dry_run:
        return _merge_staged(request, sources, out, upload, _remote.stage(urls, side=side, folder=cache_dir, progress=progress), ray, timeout, progress)
    with _remote.likenesses(urls, side=side, folder=cache_dir, model_key=request["model_key"]) as staged:
        report = _merge_staged(request, sources, out, upload, staged, ray, timeout, progress)
        if not staged.likenesses:
            return report
        # The recipe is that of files with times, which a merge would have yet to copy.
        return replace(report, recipe="", warnings=tuple(staged.said(w) for w in report.warnings))


def _merge_staged(
    request: dict[str, Any], sources: tuple[str, ...], out: str, upload: _remote.Upload | None, staged: _remote.Staged, ray: str | bool,
    timeout: float | None, progress: Callable[[int, int], None] | None,
) -> MergeReport:  # fmt: skip
    dry_run = request["dry_run"]
    request["sources"] = [staged.paths.get(s, s) for s in sources]
    for key in ("base", "config_from"):
        request[key] = staged.paths.get(request[key], request[key])
    if upload is not None and upload.taken:
        planned = _merge_here({**request, "dry_run": True, "resume": False}, ray, timeout, None)
        if upload.holds(planned.recipe):
            return replace(planned, sources=sources, out=out, resumed=planned.tensors + len(planned.copied), dry_run=dry_run, downloaded=staged.downloaded)
    report = _merge_here(request, ray, timeout, progress)
    notes, uploaded = staged.notes, 0
    if upload is not None and not dry_run:
        uploaded = upload.run(progress)
        notes = [*notes, f"{out}: merged in {upload.here}, {uploaded:,} bytes uploaded, removed there"]
    return replace(report, sources=sources, out=out, warnings=(*report.warnings, *notes), downloaded=staged.downloaded, uploaded=uploaded)
