"""What every attention strategy keeps to, tried on one: a Python class or any identifier.

>>> trivium.conformance.check(Nearest(recent=2)).raise_for_failures()

The checks are those that plugins are held to: outputs are means of values, weights
are those of the softmax over the tiles that the mask names, no key of the future
counts, layouts agree, sequences do not see each other, chunks keep the chunk rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

import trivium
from trivium._attention import Attention
from trivium._engine import Engine, default_engine
from trivium._errors import InvalidArgument, TriviumError

Floats = npt.NDArray[np.floating[Any]]
TOLERANCE = 2e-4  # float32, values of size one
HEADS, KV_HEADS, WIDTH, LENGTH = 4, 2, 16, 200
CUTS = (0, 37, 101, 102, 160, LENGTH)  # chunks that end inside blocks


class Failure(AssertionError):
    """A check that a strategy does not pass."""


@dataclass(frozen=True)
class Outcome:
    """One check and, where it failed, what was seen."""

    check: str
    failure: str = ""


@dataclass(frozen=True)
class Conformance:
    """What a strategy was tried for."""

    strategy: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether every check was passed."""
        return not any(outcome.failure for outcome in self.outcomes)

    def raise_for_failures(self) -> None:
        """Raise what failed.

        Raises
        ------
        InvalidArgument
            With the failed checks, a line each.
        """
        failed = [f"{o.check}: {o.failure}" for o in self.outcomes if o.failure]
        if failed:
            raise InvalidArgument(
                f"{len(failed)} of {len(self.outcomes)} checks failed\n" + "\n".join(failed), strategy=self.strategy
            )

    def __str__(self) -> str:
        lines = [f"  {'FAILED' if o.failure else 'passed'}  {o.check}{': ' + o.failure if o.failure else ''}" for o in self.outcomes]
        return "\n".join([f"{self.strategy}: {'passed' if self.passed else 'FAILED'}", *lines])

    def _repr_html_(self) -> str:
        from trivium._html import table

        return f"<p>{self.strategy}</p>" + table(("check", "failure"), [(o.check, o.failure or "passed") for o in self.outcomes])


def check(strategy: str | Attention, *, seed: int = 0, engine: Engine | None = None) -> Conformance:
    """Try an attention strategy.

    Parameters
    ----------
    strategy : str or Attention
        With parameters that make it sparse at 200 tokens, or little is tried.
    engine : Engine, optional
        One that has the strategy's plugin; default: the shared one.
    """
    trial = _Trial(strategy if isinstance(strategy, Attention) else Attention(strategy), seed, engine or default_engine())
    return Conformance(trial.strategy.strategy, tuple(_outcome(name, run, trial) for name, run in CHECKS.items()))


def _outcome(name: str, run: Callable[[_Trial], None], trial: _Trial) -> Outcome:
    try:
        run(trial)
    except Failure as failure:
        return Outcome(name, str(failure))
    except Exception as error:  # of the strategy's own code, too: the other checks go on
        return Outcome(name, f"{type(error).__name__}: {error}")
    return Outcome(name)


class _Trial:
    """A strategy and the tensors it is tried on."""

    def __init__(self, strategy: Attention, seed: int, engine: Engine) -> None:
        self.strategy, self.engine = strategy, engine
        self.info = trivium.info(strategy.strategy, engine=engine)
        rng = np.random.default_rng(seed)
        self.q, self.k, self.v = (
            rng.standard_normal((1, heads, LENGTH, WIDTH), dtype=np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)
        )

    def attend(self, q: Floats, k: Floats, v: Floats, **call: Any) -> tuple[Floats, Floats, Any]:
        """Output, lse and report with the mask; a strategy that chose everything reports none."""
        out, lse, report = trivium.attention(
            q, k, v, strategy=self.strategy, engine=self.engine,
            return_lse=True, return_report=True, return_mask=True, **call,
        )
        if report.mask is None:
            call.pop("threads", None)
            report = replace(report, mask=trivium.select(q, k, strategy=self.strategy, engine=self.engine, **call))
        return out, lse, report


def _demand(fine: bool, failure: str) -> None:
    if not fine:
        raise Failure(failure)


def _close(got: Floats, want: Floats, what: str) -> None:
    far = float(np.max(np.abs(got - want), initial=0.0))
    _demand(far <= TOLERANCE, f"{what} differs by {far:.2g}: want at most {TOLERANCE:g}")


def _shapes(trial: _Trial) -> None:
    for length in (1, 17, 64, 127, LENGTH):
        q, k, v = (x[:, :, :length] for x in (trial.q, trial.k, trial.v))
        out, lse, report = trial.attend(q, k, v)
        inside = (out >= v.min() - TOLERANCE) & (out <= v.max() + TOLERANCE)
        _demand(bool(inside.all()), f"at {length} tokens an output is no mean of values")
        _demand(bool(np.isfinite(lse).all()), f"at {length} tokens a query sees no key: every query block needs its own tile")
        _demand(0 < report.density <= 1, f"at {length} tokens density is {report.density}: want a share in (0, 1]")


def _mask_is_valid(trial: _Trial) -> None:
    _, _, report = trial.attend(trial.q, trial.k, trial.v)
    mask = report.mask
    rows = np.diff(mask.row_ptr)
    _demand(bool((rows > 0).all()), f"{int((rows == 0).sum())} rows of blocks keep no tile")
    pairs = np.concatenate([mask.blocks(0, head) for head in range(mask.heads)])
    _demand(bool((pairs[:, 1] <= pairs[:, 0]).all()), "a tile of the future is kept")


def _weights(trial: _Trial) -> None:
    """Values that are unit vectors give the weights themselves."""
    weights = np.zeros((HEADS, LENGTH, LENGTH), dtype=np.float32)
    for first in range(0, LENGTH, WIDTH):
        v = np.zeros_like(trial.v)
        keys = np.arange(first, min(first + WIDTH, LENGTH))
        v[:, :, keys, keys - first] = 1
        out, lse, report = trial.attend(trial.q, trial.k, v)
        weights[:, :, keys] = out[0, :, :, : len(keys)]
    later = np.triu(np.ones((LENGTH, LENGTH), dtype=bool), 1)
    _demand(not weights[:, later].any(), "a key that comes after the query has a weight")
    _close(weights.sum(-1), np.ones((HEADS, LENGTH), np.float32), "the sum of a query's weights")
    scores = np.einsum("hid,hjd->hij", trial.q[0], np.repeat(trial.k[0], HEADS // KV_HEADS, 0)) / math.sqrt(WIDTH)
    want = np.where(_pairs(report.mask), np.exp(scores - lse[0][:, :, None]), 0)
    _close(weights, want, "a weight, from exp(score - lse) on the kept tiles and 0 elsewhere,")


def _pairs(mask: Any) -> npt.NDArray[np.bool_]:
    """Pairs of tokens that the tiles of a mask let through: [heads, queries, keys]."""
    blocks = np.arange(LENGTH) // mask.block_size
    spread: npt.NDArray[np.bool_] = mask.to_dense()[0][:, blocks][:, :, blocks] & np.tri(LENGTH, dtype=bool)
    return spread


def _layouts(trial: _Trial) -> None:
    plain, _, _ = trial.attend(trial.q, trial.k, trial.v)
    q, k, v = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (trial.q, trial.k, trial.v))
    other, _, _ = trial.attend(q, k, v, layout="bnhd")
    _close(other.swapaxes(1, 2), plain, 'the output of layout="bnhd"')


def _future_values(trial: _Trial) -> None:
    before, _, _ = trial.attend(trial.q, trial.k, trial.v)
    v = trial.v.copy()
    v[:, :, 120:] += 1e4
    after, _, _ = trial.attend(trial.q, trial.k, v)
    _close(after[:, :, :120], before[:, :, :120], "an output before the changed values")


def _determinism(trial: _Trial) -> None:
    first, _, one = trial.attend(trial.q, trial.k, trial.v, threads=1)
    for threads in (1, 2, 4):
        again, _, other = trial.attend(trial.q, trial.k, trial.v, threads=threads)
        _demand(one.mask == other.mask, "the same call chose other tiles")
        _demand(bool((first == again).all()), f"the same call gave something else with {threads} threads")


def _batches(trial: _Trial) -> None:
    """A sequence keeps the same tiles alone, beside another, padded and packed."""
    cut = 77
    alone = [trial.attend(*(x[:, :, a:b] for x in (trial.q, trial.k, trial.v)))[0] for a, b in ((0, cut), (cut, LENGTH))]
    packed, _, _ = trial.attend(trial.q, trial.k, trial.v, cu_seqlens=[0, cut, LENGTH])
    _close(packed, np.concatenate(alone, axis=2), "the output of packed sequences")
    rest = LENGTH - cut
    left = [np.concatenate([np.zeros_like(x[:, :, : rest - cut]), x[:, :, :cut]], axis=2) for x in (trial.q, trial.k, trial.v)]
    rows = [np.concatenate([a, b[:, :, cut:]]) for a, b in zip(left, (trial.q, trial.k, trial.v))]
    both, _, _ = trial.attend(*rows, k_start=[rest - cut, 0], k_end=[rest, rest])
    _close(both[:1, :, rest - cut :], alone[0], "the output of a row padded on the left")
    _close(both[1:], alone[1], "the output of the row beside it")


def _chunks(trial: _Trial) -> None:
    rule = trial.info.capabilities.get("chunk_rule", "")
    whole, whole_lse, _ = trial.attend(trial.q, trial.k, trial.v)
    parts, lses = [], []
    for start, stop in zip(CUTS, CUTS[1:]):
        part, lse, _ = trial.attend(
            trial.q[:, :, start:stop], trial.k[:, :, :stop], trial.v[:, :, :stop], q_offset=start
        )
        parts.append(part)
        lses.append(lse)
    lse = np.concatenate(lses, axis=2)
    if rule == "same":
        _close(np.concatenate(parts, axis=2), whole, 'chunk_rule is "same", and the output of chunks')
    elif rule == "superset":
        missing = float(np.max(whole_lse - lse))
        _demand(missing <= TOLERANCE, f'chunk_rule is "superset", and chunks miss keys: lse is lower by {missing:.2g}')
    else:
        _demand(bool(np.isfinite(lse).all()), "a query of a chunk sees no key")


def _half_precision(trial: _Trial) -> None:
    """float16 inputs differ by their rounding, or by the tiles that it tips."""
    half = [x.astype(np.float16) for x in (trial.q, trial.k, trial.v)]
    out, _, report = trial.attend(*half)
    want, _, exact = trial.attend(*(x.astype(np.float32) for x in half))
    if report.mask == exact.mask:
        far = float(np.max(np.abs(out.astype(np.float32) - want)))
        _demand(far <= 4e-3, f"the output in float16 differs by {far:.2g}: want at most 4e-3")


def _mistakes(trial: _Trial) -> None:
    """Unknown parameters are typed errors, and the next call works."""
    try:
        trivium.attention(trial.q, trial.k, trial.v, strategy=trial.strategy, engine=trial.engine, no_such_parameter=1)
    except TriviumError as error:
        _demand("no_such_parameter" in str(error), f"the error names no parameter: {error}")
    else:
        raise Failure("an unknown parameter is no error")
    trial.attend(trial.q, trial.k, trial.v)


CHECKS: dict[str, Callable[[_Trial], None]] = {
    "shapes": _shapes,
    "mask": _mask_is_valid,
    "weights": _weights,
    "layouts": _layouts,
    "future values": _future_values,
    "determinism": _determinism,
    "batched, padded and packed": _batches,
    "chunks": _chunks,
    "half precision": _half_precision,
    "mistakes": _mistakes,
}
