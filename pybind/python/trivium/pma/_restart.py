"""Starting from a merge: continued training, and recovery from a loss spike."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from trivium import _remote
from trivium._errors import InvalidArgument
from trivium.merging import MergeReport, merge
from trivium.pma._series import Series, series

# What trainers keep beside the weights; scheduler and random state are never averaged.
TRAINER_FILES = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "trainer_state.json", "rng_state*.pth", "training_args.bin")
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")


def init(
    sources: Series | str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    n: int | None = None,
    interval: int | None = None,
    end: int | None = None,
    pattern: str | None = None,
    optimizer: str = "reset",
    **options: Any,
) -> MergeReport:
    """Merge checkpoints into one to start continued training or fine-tuning from (PMA-init).

    Start with the schedule that was planned: the paper found no need to tune it again.

    Parameters
    ----------
    sources, n, interval, end, pattern
        Which checkpoints; see :func:`trivium.series`.
    optimizer : str
        reset: none is written, training starts with a fresh one. newest: optimizer,
        scheduler and random state are those of the newest source. averaged: the same, but
        the optimizer's moments are the weighted mean of the sources' (linear methods only).
    **options
        As for :func:`trivium.merge`; ``method`` is "sma" unless given.
    """
    if optimizer not in ("reset", "newest", "averaged"):
        raise InvalidArgument(f"optimizer {optimizer!r}: want reset, newest or averaged")
    picked = _find(sources, pattern).select(n, interval, end)
    if optimizer != "reset":
        _remote.refuse("an optimizer's state is only copied from and to paths: use optimizer='reset'", *picked.paths, out)
        _optimizer_of(picked.paths[-1])
    held = [] if _remote.is_url(fspath(out)) else _trainer_files(Path(fspath(out)))
    if held and optimizer == "reset" and options.get("resume") and not options.get("overwrite"):
        raise InvalidArgument(
            f"{fspath(out)} holds {held[0].name}, which optimizer='reset' does not write", hint="resume with optimizer='newest' or 'averaged', or overwrite"
        )
    report = merge(picked.paths, out, steps=[float(s) for s in picked.steps], **options)
    if options.get("dry_run"):
        return report
    for path in held:
        path.unlink()  # of the weights that were there before
    if optimizer == "reset":
        return report
    if optimizer == "averaged" and not report.weights:
        raise InvalidArgument(f"{report.method} has no weights to average optimizers with: use optimizer='newest'")
    _copy_trainer(Path(picked.paths[-1]), Path(fspath(out)))
    if optimizer == "averaged":
        _average_optimizers(picked.paths, report.weights, Path(fspath(out)))
    return report


def recover(
    sources: Series | str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    before: int,
    n: int = 3,
    pattern: str | None = None,
    **options: Any,
) -> MergeReport:
    """Merge the last ``n`` checkpoints from before a loss spike, to resume training from.

    Parameters
    ----------
    before : int
        The step at which the spike began; only checkpoints of earlier steps are used.
    **options
        As for :func:`init`.
    """
    found = _find(sources, pattern)
    earlier = [c.step for c in found if c.step < before]
    if len(earlier) < n:
        raise InvalidArgument(f"{len(earlier)} checkpoints from before step {before}, want {n}: there are {found.steps}")
    return init(found, out, n=n, end=earlier[-1], **options)


def _find(sources: Any, pattern: str | None) -> Series:
    if isinstance(sources, Series):
        return sources
    return series(*([sources] if isinstance(sources, (str, PathLike)) else sources), pattern=pattern)


def _optimizer_of(folder: str) -> Path:
    for name in OPTIMIZER_FILES:
        if (path := Path(folder) / name).exists():
            return path
    raise InvalidArgument(f"{folder} holds no {' or '.join(OPTIMIZER_FILES)}: use optimizer='reset'")


def _trainer_files(folder: Path) -> list[Path]:
    return [path for pattern in TRAINER_FILES for path in sorted(folder.glob(pattern))]


def _copy_trainer(source: Path, out: Path) -> None:
    for path in _trainer_files(source):
        shutil.copyfile(path, out / path.name)


def _average_optimizers(folders: Sequence[str], weights: Sequence[float], out: Path) -> None:
    import torch

    total: Any = None
    for folder, weight in zip(folders, weights):
        state = torch.load(_optimizer_of(folder), map_location="cpu", weights_only=True)
        total = _add(total, state, weight)
    torch.save(total, out / _optimizer_of(folders[-1]).name)


def _add(total: Any, state: Any, weight: float) -> Any:
    """``total + weight * state`` for moments; everything else is the newest's."""
    import torch

    if isinstance(state, dict):
        return {k: _add(total.get(k) if total else None, v, weight) for k, v in state.items()}
    if isinstance(state, torch.Tensor) and state.is_floating_point() and state.ndim > 0:
        added = state.float() * weight
        return added if total is None else total + added
    return state
