"""The checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import Union, overload

from trivium import _bridge, _remote
from trivium._errors import InvalidArgument

Path = Union[str, "PathLike[str]"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and the training step it was saved at."""

    path: str
    step: int

    def __fspath__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Series(Sequence[Checkpoint]):
    """Checkpoints of one run, oldest first.

    Attributes
    ----------
    ignored : tuple of str
        Checkpoint folders whose step is not known.
    """

    checkpoints: tuple[Checkpoint, ...]
    roots: tuple[str, ...]
    pattern: str = ""
    tokens_per_step: int | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def steps(self) -> list[int]:
        """The training steps."""
        return [c.step for c in self.checkpoints]

    @property
    def paths(self) -> list[str]:
        """The folders."""
        return [c.path for c in self.checkpoints]

    def select(self, n: int | None = None, interval: int | None = None, end: int | None = None) -> Series:
        """Pick ``n`` checkpoints ``interval`` apart, the newest at ``end``; see :func:`series`."""
        found = series(*self.roots, n=n, interval=interval, end=end, pattern=self.pattern, tokens_per_step=self.tokens_per_step)
        known = set(self.paths)
        if strangers := [c.path for c in found if c.path not in known]:
            raise InvalidArgument(f"{strangers[0]} is not in this series: select from the whole one")
        return found

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Checkpoint, ...]: ...
    def __getitem__(self, index: int | slice) -> Checkpoint | tuple[Checkpoint, ...]:
        return self.checkpoints[index]

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def _repr_html_(self) -> str:
        from trivium._html import table

        return table(("step", "checkpoint"), [(c.step, c.path) for c in self])


def series(
    *roots: Path,
    n: int | None = None,
    interval: int | None = None,
    end: int | None = None,
    pattern: str | None = None,
    tokens_per_step: int | None = None,
) -> Series:
    r"""Find the checkpoints of a run.

    Parameters
    ----------
    *roots : paths or URLs
        Folders that hold checkpoint folders, or checkpoints themselves. Of URLs only the names
        are listed; what is picked is copied when it is merged.
    n : int, optional
        How many; default: as many as there are.
    interval : int, optional
        Steps from one to the next (V in the paper); default: neighbours.
    end : int, optional
        Step of the newest; default: the last there is.
    pattern : str, optional
        Regular expression on the folder's name whose first group is the step, such as
        ``r"annealed-(\d+)"``. Default: ``global_step`` of ``trainer_state.json``, else the
        usual names (step-1000, checkpoint-1000, global_step1000, iter_0001000).
    tokens_per_step : int, optional
        Then ``interval`` and ``end`` are in tokens.

    Raises
    ------
    CheckpointError
        When there are not as many, with the steps that there are.
    """
    if not roots:
        raise InvalidArgument("no folder to look in")
    with _remote.outlines([fspath(r) for r in roots]) as (searched, urls):
        found = _bridge.run(
            "series",
            {
                "roots": searched,
                "pattern": pattern or "",
                "n": n or 0,
                "interval": _steps("interval", interval, tokens_per_step),
                "end": _steps("end", end, tokens_per_step),
            },
            None,
        )
    return Series(
        tuple(Checkpoint(urls.get(s["dir"], s["dir"]), s["step"]) for s in found["steps"]),
        tuple(fspath(r) for r in roots),
        pattern or "",
        tokens_per_step,
        tuple(urls.get(folder, folder) for folder in found["ignored"] or ()),
    )


def staged(found: Series, cache_dir: Path | None, progress: Callable[[int, int], None] | None) -> Series:
    """Give the series with what is behind URLs copied here."""
    urls = [p for p in found.paths if _remote.is_url(p)]
    if not urls:
        return found
    here = _remote.stage(urls, folder=cache_dir, progress=progress).paths
    return replace(found, checkpoints=tuple(Checkpoint(here.get(c.path, c.path), c.step) for c in found))


def _steps(name: str, value: int | None, tokens_per_step: int | None) -> int:
    if not value:
        return 0
    if not tokens_per_step:
        return value
    steps, rest = divmod(value, tokens_per_step)
    if rest:
        raise InvalidArgument(f"{name} {value} tokens: want a multiple of the {tokens_per_step} tokens of a step")
    return steps
