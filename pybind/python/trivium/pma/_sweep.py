"""Many merges of a series in one pass over its files, ranked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from trivium import _bridge, _remote
from trivium._engine import Engine, default_engine
from trivium._errors import InvalidArgument
from trivium._params import plain
from trivium.merging import reading
from trivium.pma._losses import Array, Evaluate, interval, measure
from trivium.pma._series import Series, series, staged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Union[str, "tuple[str, Mapping[str, Any]]"]


@dataclass(frozen=True)
class Candidate:
    """One merge of a sweep, or one checkpoint it is compared with.

    Attributes
    ----------
    weights : tuple of float
        One for each source of the sweep; empty for a reference.
    path : str
        Where it was written; "" when only its weights were wanted, or it is gone.
    losses : array or None
        Of each held-out sequence.
    gain : (float, float, float) or None
        By how much its loss is below that of the newest checkpoint, with the 95 % interval
        of a paired bootstrap over sequences.
    behind : (float, float, float) or None
        By how much its loss is above that of the best merge, likewise.
    """

    name: str
    method: str
    n: int
    interval: int
    params: Mapping[str, Any]
    weights: tuple[float, ...]
    path: str = ""
    losses: Array | None = None
    gain: tuple[float, float, float] | None = None
    behind: tuple[float, float, float] | None = None

    @property
    def loss(self) -> float | None:
        """Mean over the sequences."""
        return None if self.losses is None else float(self.losses.mean())


@dataclass(frozen=True)
class Sweep:
    """What a sweep made, best first if it was evaluated.

    Attributes
    ----------
    references : tuple of Candidate
        The newest checkpoint ("last") and what else was named; with ``individuals``, each source.
    seconds : float
        Of the one pass that merged.
    """

    candidates: tuple[Candidate, ...]
    references: tuple[Candidate, ...]
    sources: Series
    bytes_read: int
    bytes_written: int
    seconds: float

    @property
    def best(self) -> Candidate:
        """The merge with the lowest loss."""
        if self.candidates[0].losses is None:
            raise InvalidArgument("the sweep was not evaluated: pass evaluate=")
        return self.candidates[0]

    def to_rows(self) -> list[dict[str, Any]]:
        """A plain row for each candidate and reference."""
        return [
            {
                "name": c.name, "method": c.method, "n": c.n, "interval": c.interval, "loss": c.loss,
                "gain": c.gain and c.gain[0], "gain_low": c.gain and c.gain[1], "gain_high": c.gain and c.gain[2],
                "behind": c.behind and c.behind[0], "behind_low": c.behind and c.behind[1], "behind_high": c.behind and c.behind[2],
                "path": c.path,
            }
            for c in (*self.candidates, *self.references)
        ]  # fmt: skip

    def _repr_html_(self) -> str:
        from trivium._html import table

        def span(x: tuple[float, float, float] | None) -> str | None:
            return x and f"{x[0]:.4f} [{x[1]:.4f}, {x[2]:.4f}]"

        rows = [
            (c.name, c.method.removeprefix("merge."), c.n or None, c.interval or None, c.loss, span(c.gain), span(c.behind))
            for c in (*self.candidates, *self.references)
        ]
        return table(("candidate", "method", "N", "V", "loss", "below the newest", "above the best"), rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw loss over N, a line for each method and interval, and the references."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(6, 4))[1]
        lines: dict[str, list[Candidate]] = {}
        for c in self.candidates:
            lines.setdefault(c.name.split(" n=")[0] + (f", V={c.interval}" if c.interval else ""), []).append(c)
        for label, line in lines.items():
            points = sorted((c.n, c.loss) for c in line if c.loss is not None)
            ax.plot([n for n, _ in points], [loss for _, loss in points], marker="o", label=label)
        for shade, c in enumerate(r for r in self.references if r.losses is not None):
            ax.axhline(float(c.loss or 0), linestyle="--", linewidth=1, color=str(0.2 + 0.6 * shade / len(self.references)), label=c.name)
        ax.set_xlabel("N, checkpoints merged")
        ax.set_ylabel("loss, nats a token")
        ax.legend(fontsize="small")
        return ax


def sweep(
    sources: Series | str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str] | None = None,
    *,
    n: Iterable[int] = (3, 6, 10),
    interval: Iterable[int | None] = (None,),
    method: Iterable[Method] = ("sma", "wma", "ema"),
    evaluate: Evaluate | None = None,
    references: Mapping[str, str | PathLike[str]] | None = None,
    individuals: bool = False,
    write: bool | None = None,
    end: int | None = None,
    pattern: str | None = None,
    model_key: str | None = None,
    config_from: str | PathLike[str] | None = None,
    dtype: str | None = None,
    float64: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    durable: bool = True,
    threads: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    cache_dir: str | PathLike[str] | None = None,
    engine: Engine | None = None,
) -> Sweep:
    """Merge N checkpoints V apart by each method, all in one pass over the files, and rank them.

    Parameters
    ----------
    sources : Series, or folders to look for one
        See :func:`trivium.series`. All candidates end at its newest checkpoint.
    out : path, optional
        Each candidate becomes a folder in it. Without it, candidates are written to a
        temporary folder to be evaluated, and removed.
    n, interval, method : iterables
        The grid. A method is a name, or a name and its parameters: ``("ema", {"alpha": 0.1})``.
        A combination that the series is too short for is an error.
    evaluate : callable or str, optional
        Gets the path of a checkpoint, gives its loss or one loss for each held-out sequence
        (see :class:`trivium.pma.Losses`). A string is a command; ``{}`` in it, or else its end,
        becomes the path, and the last line it prints is the loss, or a JSON list.
    references : mapping of str to path, optional
        Further checkpoints to evaluate, such as an annealed one.
    individuals : bool
        Evaluate each source too.
    write : bool, optional
        Whether to write candidates; default: when there is an ``out`` or an evaluation.
    model_key, config_from, cache_dir
        As for :func:`trivium.merge`. Sources may be URLs, ``out`` and ``config_from`` not.
    seed : int
        Of the bootstrap.
    """
    _remote.refuse("a sweep writes many candidates in place: copy the best one out", out)
    _remote.refuse("only sources of a sweep are staged", config_from)
    found = sources if isinstance(sources, Series) else series(*([sources] if isinstance(sources, (str, PathLike)) else sources), pattern=pattern)
    grid, used = _grid(found, list(n), list(interval), list(method), end)
    used, read = staged(used, cache_dir, progress), reading(model_key, config_from)
    writes = (out is not None or evaluate is not None) if write is None else write
    if (writes or evaluate) and out is None:
        with tempfile.TemporaryDirectory(prefix="sweep-of-checkpoints-") as folder:
            made = _run(grid, used, Path(folder), read, dtype, float64, False, False, False, threads, progress, engine)
            return _without_paths(_rank(made, used, evaluate, references, individuals, seed))
    folder_or_none = Path(fspath(out)) if writes and out is not None else None
    made = _run(grid, used, folder_or_none, read, dtype, float64, overwrite, resume, durable, threads, progress, engine)
    return _rank(made, used, evaluate, references, individuals, seed)


def _grid(
    found: Series, ns: list[int], intervals: list[int | None], methods: list[Method], end: int | None
) -> tuple[list[dict[str, Any]], Series]:
    picks = {(k, v): found.select(k, v, end).paths for v in intervals for k in ns}
    wanted = {path for paths in picks.values() for path in paths}
    used = Series(tuple(c for c in found if c.path in wanted), found.roots, found.pattern, found.tokens_per_step)
    index = {c.path: i for i, c in enumerate(used)}
    rows = []
    for m in methods:
        name, params = (m, {}) if isinstance(m, str) else (m[0], dict(m[1]))
        label = name + "".join(f" {k}={v}" for k, v in params.items())
        for (k, v), paths in picks.items():
            rows.append({
                "name": f"{label} n={k}" + (f" v={v}" if v else ""), "method": name, "params": plain(params),
                "sources": [index[p] for p in paths], "n": k, "interval": v or 0,
            })  # fmt: skip
    if len({r["name"] for r in rows}) < len(rows):
        raise InvalidArgument("the grid has the same candidate twice")
    return rows, used


def _run(
    grid: list[dict[str, Any]], used: Series, folder: Path | None, read: dict[str, str], dtype: str | None, float64: bool,
    overwrite: bool, resume: bool, durable: bool, threads: int, progress: Callable[[int, int], None] | None, engine: Engine | None,
) -> Sweep:  # fmt: skip
    rows = [
        {
            "name": r["name"], "method": r["method"], "params": r["params"], "sources": r["sources"], "dtype": dtype or "",
            "out": str(folder / r["name"].replace(" ", ",")) if folder else "",
        }
        for r in grid
    ]  # fmt: skip
    request = {
        "engine": (engine or default_engine()).handle, "sources": used.paths, "steps": [float(s) for s in used.steps],
        "candidates": rows, **read, "float64": float64, "overwrite": overwrite, "resume": resume, "volatile": not durable, "threads": threads,
    }  # fmt: skip
    result = _bridge.run("sweep", request, None, progress=progress)
    candidates = tuple(
        Candidate(r["name"], c["method"], r["n"], r["interval"], c.get("params") or {}, tuple(c["weights"]), row["out"])
        for r, row, c in zip(grid, rows, result["candidates"])
    )
    return Sweep(candidates, (), used, result["bytes_read"], result["bytes_written"], result["seconds"])


def _rank(
    made: Sweep, used: Series, evaluate: Evaluate | None, references: Mapping[str, Any] | None, individuals: bool, seed: int
) -> Sweep:
    if evaluate is None:
        return made
    names = {"last": used[-1].path, **{k: fspath(v) for k, v in (references or {}).items()}}
    if individuals:
        names.update({f"step {c.step}": c.path for c in used[:-1]})
    losses = {c.name: measure(evaluate, c.path) for c in made.candidates}
    named = {name: measure(evaluate, path) for name, path in names.items()}
    best = min(made.candidates, key=lambda c: float(losses[c.name].mean())).name

    def rated(c: Candidate, own: Array) -> Candidate:
        return Candidate(
            c.name, c.method, c.n, c.interval, c.params, c.weights, c.path, own,
            _paired(named["last"] - own, seed), _paired(own - losses[best], seed),
        )  # fmt: skip

    ranked = sorted((rated(c, losses[c.name]) for c in made.candidates), key=lambda c: c.loss or 0.0)
    others = tuple(rated(Candidate(k, "", 0, 0, {}, (), path), named[k]) for k, path in names.items())
    return Sweep(tuple(ranked), others, used, made.bytes_read, made.bytes_written, made.seconds)


def _paired(differences: Array, seed: int) -> tuple[float, float, float]:
    low, high = interval(differences, seed=seed)
    return float(np.mean(differences)), low, high


def _without_paths(made: Sweep) -> Sweep:
    return replace(made, candidates=tuple(replace(c, path="") for c in made.candidates))
