"""A rolling merge of a run that is still training."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from trivium import _bridge, _remote
from trivium._engine import Engine, default_engine
from trivium._errors import CheckpointError, InvalidArgument
from trivium.merging import reading
from trivium.pma._series import Checkpoint, series

STATE = ".trivium-watch"


@dataclass(frozen=True)
class Rolling:
    """A merge that :func:`watch` has made.

    Attributes
    ----------
    step : int
        Of the newest checkpoint in it.
    steps : tuple of int
        Of all checkpoints in it; for an EMA of the one that was added.
    path : str
        Its folder; ``latest`` beside it points to the newest.
    anchored : bool
        It was computed from all its checkpoints, not from the one before.
    bytes_read : int
    """

    step: int
    steps: tuple[int, ...]
    path: str
    anchored: bool
    bytes_read: int
    seconds: float


def watch(
    root: str | PathLike[str],
    out: str | PathLike[str],
    *,
    method: str = "sma",
    n: int = 10,
    alpha: float = 0.2,
    pattern: str | None = None,
    model_key: str | None = None,
    config_from: str | PathLike[str] | None = None,
    every: float = 10.0,
    settle: float = 5.0,
    anchor: int = 16,
    keep: int = 2,
    durable: bool = True,
    once: bool = False,
    on_merge: Callable[[Rolling], None] | None = None,
    threads: int = 0,
    engine: Engine | None = None,
) -> list[Rolling]:
    """Follow a run's folder and keep a merge of its latest checkpoints.

    ``out/latest`` always points to a whole checkpoint. Between merges there is a sum in
    float64, so that a new checkpoint costs one reading of it, of the sum, and (sma) of the
    checkpoint that leaves the window. It goes on where it was after a restart, if it is
    asked for the same merge of the same run; a checkpoint of the window that was written
    again since is read again.

    Parameters
    ----------
    method : str
        sma: the mean of the last ``n``. ema: A = alpha M + (1 - alpha) A, over all.
        Any other linear method is computed anew from the last ``n`` each time.
    model_key, config_from
        As for :func:`trivium.merge`.
    every : float
        Seconds between looks at the folder.
    settle : float
        Seconds for which a checkpoint's files must not have changed.
    anchor : int
        After so many rolls an sma is computed anew from all its checkpoints.
    keep : int
        Merges to keep.
    once : bool
        Merge what is there and return; otherwise it runs until Ctrl-C.

    Raises
    ------
    InvalidArgument
        When ``out`` holds a merge of another run, or one that was begun with another
        ``method``, ``n``, ``alpha``, ``pattern``, ``model_key`` or ``config_from``.
    """
    if n < 1 or keep < 1 or anchor < 1 or every <= 0 or settle < 0:
        raise InvalidArgument(f"n {n}, keep {keep}, anchor {anchor}, every {every}, settle {settle}: want positive numbers")
    _remote.refuse("watching looks at the times of files and keeps sums in place: run it where the storage is mounted", root, out, config_from)
    made: list[Rolling] = []
    folder = Path(fspath(out))
    with _alone(folder):
        read = reading(model_key, config_from)
        about = {
            "root": os.path.realpath(root), "method": method, "n": n, "alpha": alpha, "pattern": pattern or "", "model_key": read["model_key"],
            "config_from": read["config_from"] if read["config_from"] in ("", "none") else os.path.realpath(read["config_from"]),
        }  # fmt: skip
        roll = _Roll(folder, method, n, alpha, read, about, anchor, keep, durable, threads, engine)
        while True:
            for checkpoint in _fresh(root, pattern, roll.step, settle):
                try:
                    merged = roll.add(checkpoint)
                except CheckpointError:
                    if not _changing(checkpoint, settle):
                        raise
                    break  # the trainer was still writing it: at the next look
                made.append(merged)
                if on_merge is not None:
                    on_merge(merged)
            if once:
                return made
            time.sleep(every)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: one watcher for each."""
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with (folder / STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidArgument(f"another process keeps the merge in {folder}", hint="stop it, or use another folder") from error
        yield


def _fresh(root: str | PathLike[str], pattern: str | None, after: int, settle: float) -> list[Checkpoint]:
    """Give the checkpoints later than a step, up to the first that is still being written."""
    try:
        found = [c for c in series(root, pattern=pattern) if c.step > after]
    except CheckpointError:
        if any(Path(root).iterdir()):
            raise
        return []
    fresh = []
    for checkpoint in found:
        if _changing(checkpoint, settle):
            break
        fresh.append(checkpoint)
    return fresh


def _changing(checkpoint: Checkpoint, settle: float) -> bool:
    latest = max((p.stat().st_mtime for p in Path(checkpoint.path).iterdir()), default=0.0)
    return time.time() - latest < settle


def _files(path: str, model_key: str) -> list[list[Any]]:
    """List path, size and time of the files that hold a checkpoint's weights."""
    paths = _bridge.run("checkpoint.files", {"dir": os.path.abspath(path), "model_key": model_key}, None)["files"]
    return [[p, (stat := os.stat(p)).st_size, stat.st_mtime_ns] for p in paths]


def _written_again(files: list[list[Any]]) -> bool:
    """Whether files are there and are not those that were merged."""
    for path, size, modified in files:
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            continue
        if (stat.st_size, stat.st_mtime_ns) != (size, modified):
            return True
    return False


class _Roll:
    """The merge as it is, in memory and in ``state.json``."""

    def __init__(
        self, out: Path, method: str, n: int, alpha: float, read: dict[str, str], about: dict[str, Any], anchor: int, keep: int, durable: bool,
        threads: int, engine: Engine | None,
    ) -> None:  # fmt: skip
        self.out, self.method, self.n, self.alpha, self.read = out, method, n, alpha, read
        self.anchor, self.keep, self.durable, self.threads, self.engine = anchor, keep, durable, threads, engine
        self.settings = about  # all that the sum means
        self.file = out / STATE / "state.json"
        self.window: list[dict[str, Any]] = []  # path, step and files of each checkpoint in the sum, oldest first
        self.rolls = 0
        self.step = -1
        self.merges: list[str] = []  # names of the folders made here, oldest first
        self.begun = ""  # the one that is being made
        self._load()

    def _load(self) -> None:
        if not self.file.exists():
            return
        state = json.loads(self.file.read_text())
        if state["settings"] != self.settings:
            self._refuse(state["settings"])
        self.window, self.rolls, self.step = state["window"], state["rolls"], state["step"]
        self.merges, self.begun = state["merges"], state["begun"]

    def _refuse(self, held: dict[str, Any]) -> None:
        """Refuse to go on with a sum that means something else."""
        if unsaid := self.settings.keys() - held.keys():
            raise InvalidArgument(
                f"{self.out} holds a merge of an earlier version, which does not say its {', '.join(sorted(unsaid))}",
                hint="use another folder, or remove this one",
            )
        other = ", ".join(f"{k} {held[k]!r}, not {wanted!r}" for k, wanted in self.settings.items() if held[k] != wanted)
        options = {"--method": "method", "-n": "n", "--alpha": "alpha", "--pattern": "pattern", "--model-key": "model_key", "--config-from": "config_from"}
        said = [word for option, k in options.items() if held[k] != "" for word in (option, str(held[k]))]
        command = shlex.join(["trivium", "merge", "watch", held["root"], "--out", str(self.out), *said])
        raise InvalidArgument(f"{self.out} holds a merge with {other}", hint=f"go on with it: {command}; or name another folder")

    def _save(self) -> None:
        text = json.dumps({
            "settings": self.settings, "window": self.window, "rolls": self.rolls, "step": self.step, "merges": self.merges, "begun": self.begun,
        })  # fmt: skip
        new = self.file.with_suffix(".new")
        with new.open("w") as file:
            file.write(text)
            file.flush()
            if self.durable:
                os.fsync(file.fileno())
        os.replace(new, self.file)

    def _sum(self, step: int) -> Path:
        return self.out / STATE / f"sum-{step}"

    def add(self, new: Checkpoint) -> Rolling:
        """Take up a checkpoint: merge, point latest to it, remember, tidy up."""
        entry = {"path": os.path.abspath(new.path), "step": new.step, "files": _files(new.path, self.read["model_key"])}
        window = [*self.window, entry][-self.n :]
        plan = {"sma": self._mean, "ema": self._ema}.get(self.method, self._anew)
        sources, candidates, anchored = plan(window, len(self.window) == self.n)
        name = f"step-{new.step}"
        for c in candidates:
            c.setdefault("out", str(self.out / name))
        request = {
            "engine": (self.engine or default_engine()).handle, "sources": sources, "candidates": candidates, "any_dtypes": True, **self.read,
            "float64": True, "resume": True, "volatile": not self.durable, "threads": self.threads,
        }  # fmt: skip
        result = self._run(name, request)
        self._point(name)
        before = self.step
        self.window, self.step, self.rolls = window, new.step, 0 if anchored else self.rolls + 1
        self.merges, self.begun = [*self.merges, name], ""
        self._save()
        self._tidy(before)
        steps = (new.step,) if self.method == "ema" else tuple(e["step"] for e in window)
        return Rolling(new.step, steps, str(self.out / name), anchored, result["bytes_read"], result["seconds"])

    def _run(self, name: str, request: dict[str, Any]) -> Any:
        """Merge; what a killed watcher has left of another plan for this step is begun anew."""
        left = self.begun == name
        self.begun = name
        self._save()
        try:
            return _bridge.run("sweep", request, None)
        except CheckpointError:
            if not left:
                raise
        return _bridge.run("sweep", {**request, "resume": False, "overwrite": True}, None)

    def _mean(self, window: list[dict[str, Any]], full: bool) -> tuple[list[str], list[dict[str, Any]], bool]:
        """The sum of the window: the one before, without the oldest, with the newest."""
        again = [e["path"] for e in self.window if _written_again(e["files"])]
        due = self.rolls + 1 >= self.anchor or not self._sum(self.step).exists() or bool(again)
        if due:
            missing = [e["path"] for e in window if not os.path.isdir(e["path"])]
            if missing and again:
                raise CheckpointError(
                    f"{again[0]} was written again after it was merged, and {missing[0]}, without which the sum cannot be made anew, is gone",
                    hint="begin anew in another folder",
                )
            if missing and self._sum(self.step).exists() and (not full or os.path.isdir(self.window[0]["path"])):
                due = False  # older ones are gone from the disk, the sum still has them
        size = len(window)
        if due:
            return (*self._both([e["path"] for e in window], [1.0] * size, size, window[-1]["step"]), True)
        gone = [self.window[0]["path"]] if full else []
        sources = [str(self._sum(self.step)), *gone, window[-1]["path"]]
        return (*self._both(sources, [1.0, *([-1.0] if full else []), 1.0], size, window[-1]["step"]), False)

    def _ema(self, window: list[dict[str, Any]], full: bool) -> tuple[list[str], list[dict[str, Any]], bool]:
        newest = window[-1]
        if self.step < 0:
            return (*self._both([newest["path"]], [1.0], 1, newest["step"]), True)
        return (*self._both([str(self._sum(self.step)), newest["path"]], [1 - self.alpha, self.alpha], 1, newest["step"]), False)

    def _both(self, sources: list[str], weights: list[float], divisor: int, step: int) -> tuple[list[str], list[dict[str, Any]]]:
        """The new sum in float64, and the merge in the checkpoints' own dtypes."""
        total = {"name": "sum", "method": "linear", "weights": weights, "dtype": "float64", "out": str(self._sum(step))}
        merged = {"name": "merge", "method": "linear", "weights": [w / divisor for w in weights]}
        return sources, [total, merged]

    def _anew(self, window: list[dict[str, Any]], full: bool) -> tuple[list[str], list[dict[str, Any]], bool]:
        return [e["path"] for e in window], [{"name": "merge", "method": self.method}], True

    def _point(self, name: str) -> None:
        """Swap the link in one step."""
        new = self.out / STATE / "latest.new"
        new.unlink(missing_ok=True)
        new.symlink_to(name)
        os.replace(new, self.out / "latest")

    def _tidy(self, before: int) -> None:
        if before != self.step:
            shutil.rmtree(self._sum(before), ignore_errors=True)
        for old in self.merges[: -self.keep]:
            shutil.rmtree(self.out / old, ignore_errors=True)
        self.merges = self.merges[-self.keep :]
