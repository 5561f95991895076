"""Strategies in Python: what they are given, that the kernel follows them, and that the checks find what is wrong."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import trivium
import trivium.hf
from trivium import conformance
from trivium.strategy import grid, pool

from tiny_models import build, tokens


class Nearest(trivium.Strategy):
    """The nearest tiles, and the first one.

    It looks at no score.
    """

    def select(self, q: Any, k: Any, *, recent: int = 2, block_size: int = 32) -> Any:
        """Choose.

        Parameters
        ----------
        recent : int
            nearest tiles that a query sees
        """
        rows, columns = grid(q, k, block_size)
        return (columns == 0) | (rows - columns < recent)


class TopBlocks(trivium.Strategy):
    """The tiles with the highest score of block means."""

    block_size = 16
    chunk_rule = ""  # the first block of a chunk is a mean over other queries

    def select(self, q: Any, k: Any, *, keep: int = 3) -> Any:
        rows, columns = grid(q, k, self.block_size)
        keys = np.repeat(pool(k, self.block_size), q.shape[0] // k.shape[0], axis=0)
        score = np.einsum("hid,hjd->hij", pool(q, self.block_size), keys)
        score = np.where(columns > rows, -np.inf, score) + np.where(columns == rows, np.inf, 0)
        kept = np.zeros(score.shape, dtype=bool)
        np.put_along_axis(kept, np.argsort(-score, axis=-1, kind="stable")[:, :, :keep], True, axis=-1)
        return kept


class Everything(trivium.Strategy):
    """All of it."""

    def select(self, q: Any, k: Any) -> Any:
        return None


class InTorch(trivium.Strategy):
    """The diagonal, from torch, as a block mask."""

    tensors = "torch"

    def select(self, q: Any, k: Any, *, block_size: int = 32) -> Any:
        assert isinstance(q, torch.Tensor) and q.dtype is k.dtype
        rows, columns = grid(q, k, block_size)
        return torch.from_numpy(rows == columns).expand(q.shape[0], -1, -1)


def tensors(rng: np.random.Generator, batch: int = 1, length: int = 200) -> list[Any]:
    return [rng.standard_normal((batch, heads, length, 16), dtype=np.float32) for heads in (4, 2, 2)]


# Held to what plugins are held to


@pytest.mark.parametrize("strategy", [Nearest(recent=1), TopBlocks(), Everything(), InTorch()], ids=repr)
def test_python_strategies_conform(strategy: trivium.Strategy) -> None:
    conformance.check(strategy).raise_for_failures()


@pytest.mark.parametrize("strategy", [
    "dense",
    trivium.attention("streaming", sink=16, recent=32, block_size=16),
    trivium.attention("flexprefill", gamma=0.5, min_budget=0, block_size=16),
], ids=lambda s: getattr(s, "strategy", s))  # fmt: skip
def test_built_in_strategies_pass_the_same_checks(strategy: Any) -> None:
    conformance.check(strategy).raise_for_failures()


def planted(name: str, select: Any, **attributes: Any) -> trivium.Strategy:
    return type(name, (trivium.Strategy,), {"select": select, "block_size": 32, **attributes})()


state = {"calls": 0}


def moody(self: Any, q: Any, k: Any) -> Any:
    state["calls"] += 1
    rows, columns = grid(q, k, 32)
    return (columns == rows) | (columns == state["calls"] % 3)


def empty_rows(self: Any, q: Any, k: Any) -> Any:
    rows, columns = grid(q, k, 32)
    return (columns == rows) & (rows != 2)


def by_length(self: Any, q: Any, k: Any) -> Any:
    rows, columns = grid(q, k, 32)
    return (columns == rows) | (columns == 0) & (k.shape[1] > 150)


def shape(self: Any, q: Any, k: Any) -> Any:
    return np.ones((1, 9, 9), dtype=bool)


def raises(self: Any, q: Any, k: Any) -> Any:
    raise ZeroDivisionError("inside")


@pytest.mark.parametrize("select,check,says", [
    (moody, "determinism", "other tiles"),
    (empty_rows, "shapes", "sees no key"),
    (empty_rows, "mask", "keep no tile"),
    (empty_rows, "weights", "sum"),
    (by_length, "chunks", "chunk_rule"),
    (shape, "weights", "query blocks"),
    (raises, "layouts", "ZeroDivisionError"),
])  # fmt: skip
def test_the_checks_find_what_is_wrong(select: Any, check: str, says: str) -> None:
    found = conformance.check(planted(select.__name__, select))
    failures = {o.check: o.failure for o in found.outcomes}
    assert says in failures[check] and not found.passed
    assert "FAILED" in str(found) and check in found._repr_html_()
    with pytest.raises(trivium.InvalidArgument, match="checks failed"):
        found.raise_for_failures()


# Used like any other


def test_by_object_by_name_and_with_other_parameters(rng: np.random.Generator) -> None:
    q, k, v = tensors(rng)
    by_object, report = trivium.attention(q, k, v, strategy=Nearest(recent=1), return_report=True)
    by_name = trivium.attention(q, k, v, strategy="python.nearest", recent=1)
    attention = trivium.attention(q, k, v, strategy=trivium.attention("python.nearest", recent=1))
    other = trivium.attention(q, k, v, strategy=Nearest(recent=5), recent=1)
    assert all(np.array_equal(by_object, x) for x in (by_name, attention, other))
    assert report.strategy == "python.nearest" and {h.pattern for h in report.heads} == {"nearest"}
    assert report.times.select_ms > 0
    assert report.density == pytest.approx(trivium.select(q, k, strategy=Nearest(recent=1)).density)


def test_block_size_of_the_call(rng: np.random.Generator) -> None:
    q, k, _ = tensors(rng)
    assert trivium.select(q, k, strategy=Nearest(), block_size=16).block_size == 16
    assert trivium.select(q, k, strategy=Nearest(block_size=48)).block_size == 48


def test_under_a_model(rng: np.random.Generator) -> None:
    model, ids = build("llama"), tokens(2, 100)
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    with torch.no_grad(), trivium.patch(model, attention={-1: TopBlocks(keep=2), 0: "dense"}), trivium.trace() as trace:
        model(input_ids=ids, attention_mask=mask)
    assert [c.report.strategy for c in trace.calls] == ["attention.dense", "python.top_blocks", "python.top_blocks"]
    assert trace.calls[1].report.density < 0.8
    model, whole = build("llama"), dict(keep=1000)
    with torch.no_grad():
        want = model(input_ids=ids).logits
        with trivium.patch(model, attention=TopBlocks(**whole)):
            torch.testing.assert_close(model(input_ids=ids).logits, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("choice", [TopBlocks(keep=2), {"strategy": "python.top_blocks", "keep": 2}], ids=["object", "configuration"])
def test_as_an_arm_of_an_evaluation(choice: Any) -> None:
    from trivium.eval.arms import Arm, attending

    model = build("llama")
    with torch.no_grad(), attending(model, Arm.parse({"attention": choice})), trivium.trace() as trace:
        model(input_ids=tokens(1, 100))
    assert {c.report.strategy for c in trace.calls} == {"python.top_blocks"}


def test_positions_compose(rng: np.random.Generator) -> None:
    q, k, v = tensors(rng)
    position = trivium.position("string", shift=100, local=16, train_length=150)
    want = trivium.attention(q, k, v, strategy="dense", position=position, rope_theta=1e4)
    got = trivium.attention(q, k, v, strategy=Everything(), position=position, rope_theta=1e4)
    assert np.allclose(got, want, atol=1e-6)


def test_keys_that_come_later_are_not_shown(rng: np.random.Generator) -> None:
    seen = []

    class Looks(trivium.Strategy):
        """Notes what it got."""

        def select(self, q: Any, k: Any, *, block_size: int = 32) -> Any:
            seen.append((q.shape, k.shape))
            rows, columns = grid(q, k, block_size)
            return columns == rows

    q, k, v = tensors(rng)
    trivium.attention(q[:, :, 70:100], k, v, strategy=Looks(), q_offset=70)
    assert seen == [((4, 30 + 70 % 32, 16), (2, 100, 16))]


def test_pool_is_the_mean_of_each_block(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 37, 3), dtype=np.float32)
    want = np.stack([x[:, i : i + 16].mean(axis=1) for i in (0, 16, 32)], axis=1)
    assert np.allclose(pool(x, 16), want, atol=1e-6)


def test_info_is_derived() -> None:
    info = trivium.info("python.nearest")
    assert info.id == "python.nearest" and info.summary == "The nearest tiles, and the first one."
    assert [(p.name, p.type, p.default) for p in info.parameters] == [("recent", "int", 2), ("block_size", "int", 32)]
    assert info.parameters[0].doc == "nearest tiles that a query sees"


def test_a_class_can_be_written_again() -> None:
    """As the cell of a notebook that is run twice."""
    first = planted("Again", moody)
    second = planted("Again", shape)
    assert trivium.strategy.lookup("python.again") is type(second) is not type(first)


def test_copies() -> None:
    strategy = Nearest(recent=3)
    for other in (copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))):
        assert other == strategy and type(other) is Nearest and repr(other) == "Nearest(recent=3)"


Q, K = np.ones((1, 4, 40, 16), np.float32), np.ones((1, 2, 40, 16), np.float32)


@pytest.mark.parametrize("mistake,kind,says", [
    (lambda: Nearest(recnt=1), trivium.InvalidArgument, 'did you mean "recent"'),
    (lambda: Nearest(recent="two"), trivium.InvalidArgument, "want a int"),
    (lambda: Nearest(recent=float("nan")), trivium.InvalidArgument, "finite"),
    (lambda: trivium.attention(Q, K, K, strategy="python.neerest"), trivium.UnknownStrategy, 'did you mean "python.nearest"'),
    (lambda: trivium.info("python.x"), trivium.UnknownStrategy, "subclass of trivium.Strategy"),
    (lambda: trivium.attention(Q[0], K, K, strategy=Nearest()), trivium.InvalidArgument, "4 axes"),
    (lambda: trivium.attention(Q[:, :3], K, K, strategy=Nearest()), trivium.InvalidArgument, "multiple"),
    (lambda: trivium.attention(Q, K, K, strategy=Nearest(), block_size=20), trivium.InvalidArgument, "multiple of 16"),
    (lambda: trivium.attention(Q, K, K, strategy=planted("s", shape)), trivium.InvalidArgument, "trivium.strategy.grid"),
    (lambda: trivium.attention(Q, K, K, strategy=Nearest(), mask=np.ones((4, 1, 1), bool), block_size=64), trivium.InvalidArgument, "either"),
    (lambda: planted("needs", lambda self, q, k, x: None), trivium.InvalidArgument, "no default"),
])  # fmt: skip
def test_mistakes(mistake: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says.replace("(", "\\(")) as caught:
        mistake()
    assert says in str(caught.value)
