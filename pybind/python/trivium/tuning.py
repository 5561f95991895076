"""Measure up to which length dense attention is the faster on this machine.

Below it every strategy attends densely and says so in its report. The measure does
not depend on what is attended to: selecting pays from the length on where it takes
at most half the time of dense attention, so that a density of one half breaks even.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable

import trivium
from trivium._engine import Engine
from trivium._files import cache_root
from trivium._tensor import empty

LENGTHS = (512, 1024, 2048, 4096, 8192)
DTYPES = ("float32", "bfloat16")
HEAD_DIMS = (64, 128)
REPEATS = 3
UNTUNED = {"dense", "custom", "oracle"}  # nothing to select, or a measure and no method

Progress = Callable[[int, int], None]


def default_path() -> Path:
    """Where the built-in plugin looks when it starts: ``~/.cache/trivium/crossover.json``."""
    return cache_root() / "crossover.json"


def tune(
    strategies: Sequence[str] | None = None,
    *,
    lengths: Sequence[int] = LENGTHS,
    heads: int = 4,
    path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure each strategy with its defaults, and keep the result for later processes.

    Parameters
    ----------
    strategies : sequence of str, optional
        Default: all that select.
    lengths : sequence of int
        Tried in rising order. Longer prompts are always left to the strategy.
    path : path, optional
        Default: where the built-in plugin looks.

    Returns
    -------
    dict
        ``backend`` and ``dense_up_to``: tokens by strategy, then ``dtype/head_dim``; 0: selecting always pays.
    """
    path = Path(path or default_path())
    path.unlink(missing_ok=True)  # a plugin that goes by it would have nothing to measure
    names = list(strategies or (info.name for info in trivium.list("attention") if info.name not in UNTUNED))
    steps = [(dtype, dim, n) for dtype in _dtypes() for dim in HEAD_DIMS for n in sorted(lengths)]
    pays: dict[tuple[str, str, int, int], bool] = {}
    backend = ""
    with Engine() as engine:
        for done, (dtype, dim, n) in enumerate(steps):
            tensors = _inputs(heads, n, dim, dtype)
            dense = min(_report(engine, tensors, "dense").times.attend_ms for _ in range(REPEATS))
            for name in names:
                reports = [_report(engine, tensors, name) for _ in range(REPEATS)]
                backend = reports[0].backend
                pays[name, dtype, dim, n] = min(r.times.select_ms for r in reports) <= dense / 2
            if progress:
                progress(done + 1, len(steps))
    table = {
        name: {f"{dtype}/{dim}": _limit(sorted(lengths), [pays[name, dtype, dim, n] for n in sorted(lengths)])
               for dtype in _dtypes() for dim in HEAD_DIMS}
        for name in names
    }  # fmt: skip
    result = {"backend": backend, "dense_up_to": table}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=1))
    unfinished.replace(path)
    return result


def _limit(lengths: Sequence[int], pays: Sequence[bool]) -> int:
    """The longest length at which selecting does not pay, though longer ones may."""
    return max((n for n, paid in zip(lengths, pays) if not paid), default=0)


def _report(engine: Engine, tensors: tuple[Any, Any, Any], strategy: str) -> trivium.Report:
    report: trivium.Report = trivium.attention(*tensors, strategy=strategy, return_report=True, engine=engine)[1]
    return report


def _inputs(heads: int, n: int, dim: int, dtype: str) -> tuple[Any, Any, Any]:
    import numpy as np

    random = np.random.default_rng(0)

    def make() -> Any:
        values = random.standard_normal((1, heads, n, dim), dtype=np.float32)
        if dtype == "float32":
            tensor = empty(values.shape)
            tensor[...] = values
            return tensor
        import torch

        return empty(values.shape, dtype, like="torch").copy_(torch.from_numpy(values))

    return make(), make(), make()


def _dtypes() -> list[str]:
    """Those that this environment can make: bfloat16 takes torch."""
    return [dtype for dtype in DTYPES if dtype == "float32" or find_spec("torch")]
