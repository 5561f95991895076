"""trivium.attention against attention spelled out pair by pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import reference
import trivium


def tensors(
    rng: np.random.Generator, batch: int = 1, q_heads: int = 4, kv_heads: int = 2, q_len: int = 200,
    k_len: int | None = None, dim: int = 32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def one(heads: int, length: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((batch, heads, length, dim), dtype=np.float32))

    return one(q_heads, q_len), one(kv_heads, k_len or q_len), one(kv_heads, k_len or q_len)


def check(out: Any, lse: Any, want: tuple[torch.Tensor, torch.Tensor], tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(torch.as_tensor(out).double(), want[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.as_tensor(lse).double(), want[1], rtol=tolerance, atol=tolerance)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "one kv head": ({"kv_heads": 1}, {}),
    "odd head_dim": ({"dim": 20}, {}),
    "not causal": ({"q_len": 60, "k_len": 130}, {"causal": False}),
    "scale": ({}, {"scale": 0.07}),
    "chunk": ({"q_len": 70, "k_len": 200}, {"q_offset": 130}),
    "offset a row": ({"batch": 2, "q_len": 50, "k_len": 200}, {"q_offset": [150, 20]}),
    "left padding": ({"batch": 2}, {"k_start": [0, 77]}),
    "right padding": ({"batch": 2}, {"k_end": [200, 123]}),
    "window": ({}, {"window": 33}),
    "softcap": ({}, {"softcap": 2.5}),
    "sinks": ({}, {"sinks": [0.5, -1.0, 2.0, 0.0]}),
    "packed": ({}, {"cu_seqlens": [0, 60, 61, 200]}),
    "decode": ({"q_len": 1, "k_len": 300}, {"q_offset": 299}),
}


@pytest.mark.parametrize("name", CASES)
def test_dense_is_exact(name: str, rng: np.random.Generator) -> None:
    shape, call = CASES[name]
    q, k, v = tensors(rng, **shape)
    out, lse = trivium.attention(q, k, v, strategy="dense", return_lse=True, **call)
    check(out, lse, reference.attention(q, k, v, **call))


@pytest.mark.parametrize(
    "chosen", [{"strategy": "dense", "precision": "high"}, {"strategy": trivium.attention("dense", precision="high")}], ids=["call", "strategy"]
)
def test_high_precision(chosen: dict[str, Any], rng: np.random.Generator) -> None:
    q, k, v = tensors(rng)
    out, lse, report = trivium.attention(q, k, v, return_lse=True, return_report=True, **chosen)
    assert report.precision == ("high" if report.backend == "cpu:amx" else "highest")
    check(out, lse, reference.attention(q, k, v), 6e-5 if report.precision == "high" else 1e-5)
    assert trivium.attention(q, k, v, strategy="dense", return_report=True)[1].precision == "highest"
    assert trivium.select(q, k, strategy=trivium.attention("streaming", precision="high")).density <= 1


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_dtypes(dtype: torch.dtype, tolerance: float, rng: np.random.Generator) -> None:
    q, k, v = (x.to(dtype) for x in tensors(rng))
    out, lse = trivium.attention(q, k, v, strategy="dense", return_lse=True)
    assert out.dtype == dtype and lse.dtype == torch.float32
    check(out, lse, reference.attention(q, k, v), tolerance)


def test_output_is_of_the_callers_type(rng: np.random.Generator) -> None:
    import pyarrow

    q, k, v = tensors(rng)
    want = reference.attention(q, k, v)[0]
    arrays = [x.numpy() for x in (q, k, v)]
    out = trivium.attention(*arrays, strategy="dense")
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    arrow = [pyarrow.FixedShapeTensorArray.from_numpy_ndarray(x) for x in arrays]
    out = trivium.attention(*arrow, strategy="dense")
    assert isinstance(out, pyarrow.FixedShapeTensorArray)
    np.testing.assert_allclose(out.to_numpy_ndarray(), want, rtol=1e-5, atol=1e-5)


def test_layout_and_strides_change_nothing(rng: np.random.Generator) -> None:
    q, k, v = tensors(rng, batch=2)
    want = trivium.attention(q, k, v, strategy="dense")
    seen = [x.transpose(1, 2) for x in (q, k, v)]
    out = trivium.attention(*seen, strategy="dense", layout="bnhd")
    assert out.shape == seen[0].shape
    assert torch.equal(out.transpose(1, 2), want)
    wide = [torch.cat([x, x], dim=2)[:, :, ::2].contiguous()[:, :, : x.shape[2]] for x in (q, k, v)]
    strided = [torch.stack([x, x], dim=3)[:, :, :, 0] for x in (q, k, v)]
    assert not strided[0].is_contiguous() and wide[0].shape == q.shape
    assert torch.equal(trivium.attention(*strided, strategy="dense"), want)


@pytest.mark.parametrize("strategy,params", [
    ("flexprefill", {"block_size": 16, "min_budget": 16, "gamma": 0.5}),
    ("flexprefill", {"block_size": 16, "min_budget": 16, "gamma": 0.5, "rule": "released"}),
    ("flexprefill", {"block_size": 16, "min_budget": 16, "gamma": 0.5, "rule": "paper"}),
    ("streaming", {"block_size": 16, "sink": 16, "recent": 32}),
])  # fmt: skip
def test_output_is_attention_over_the_kept_blocks(strategy: str, params: dict[str, Any], rng: np.random.Generator) -> None:
    q, k, v = tensors(rng, q_len=300)
    out, lse, report = trivium.attention(
        q, k, v, strategy=strategy, return_lse=True, return_report=True, return_mask=True, probe_rows=300, **params
    )
    assert 0 < report.density < 1
    kept = torch.from_numpy(report.mask.to_dense()[0])
    want = reference.attention(q, k, v, kept=kept, block_size=report.mask.block_size)
    check(out, lse, want)
    dense = reference.attention(q, k, v)[1]
    coverage = torch.exp(want[1] - dense)[0].mean(-1)
    np.testing.assert_allclose([h.coverage for h in report.heads], coverage, atol=1e-4)
    assert report.mask.density == pytest.approx(report.density)
    assert trivium.select(q, k, strategy=strategy, **params) == report.mask


def test_reports_say_how_their_bound_was_made(rng: np.random.Generator) -> None:
    q, k, v = tensors(rng, q_len=300)
    call: dict[str, Any] = {"strategy": "streaming", "block_size": 16, "sink": 16, "recent": 32, "return_report": True}
    normal = trivium.attention(q, k, v, probe_rows=100, **call)[1]
    assert {(h.bound, h.delta, h.coverage_lower_all) for h in normal.heads} == {("normal", 0.0, None)} and normal.proven is None
    every = trivium.attention(q, k, v, probe_rows=300, bound="proven", **call)[1]
    for h in every.heads:
        assert h.bound == "proven" and h.delta == 0.01
        assert h.coverage_lower == pytest.approx(h.coverage) == h.coverage_lower_all, "all rows prove their mean"
    some = trivium.attention(q, k, v, probe_rows=100, bound="proven", delta=1e-6, **call)[1]
    for h, all_rows in zip(some.heads, every.heads, strict=True):
        assert h.delta == 1e-6 and h.probe_rows == 100
        assert 0 < h.coverage_lower_all <= h.coverage_lower <= min(h.coverage, all_rows.coverage)
    assert some.proven == min(h.coverage_lower_all for h in some.heads)
    assert f"{some.proven:.4g}" in some._repr_html_() and "Proven" not in normal._repr_html_()
    assert {"bound", "delta", "coverage_lower_all"} <= set(some.to_rows()[0])
    dense = trivium.attention(q, k, v, strategy="dense", probe_rows=8, bound="proven", return_report=True)[1]
    assert dense.proven == 1, "nothing is lost, which needs no rows"
    assert trivium.attention(q, k, v, **call)[1].heads[0].bound is None, "nothing was bounded"
    q, k, v = tensors(rng, q_len=1500)
    promised = trivium.attention(q, k, v, strategy="probe", gamma=0.7, bound="proven", return_report=True)[1]
    assert all(h.bound == "proven" and h.coverage_lower == (1 if h.density == 1 else 0.7) for h in promised.heads)


@pytest.mark.parametrize("wanting", ["query", "key", "value"])
def test_a_gradient_does_not_end_here_silently(wanting: str) -> None:
    inputs = {name: torch.randn(1, 2, 32, 16) for name in ("query", "key", "value")}
    inputs[wanting].requires_grad_()
    with pytest.raises(trivium.InvalidArgument, match=f"{wanting} requires grad") as caught:
        trivium.attention(*inputs.values(), strategy="dense")
    assert "no_grad" in caught.value.hint
    with torch.no_grad():
        assert not trivium.attention(*inputs.values(), strategy="dense").requires_grad


def test_custom_mask_forms_agree(rng: np.random.Generator) -> None:
    q, k, v = tensors(rng, q_len=100)
    blocks = -(-100 // 16)
    dense = rng.random((4, blocks, blocks)) < 0.5
    dense[:, np.arange(blocks), np.arange(blocks)] = True
    out = trivium.attention(q, k, v, strategy="custom", mask=dense, block_size=16)
    lower = torch.from_numpy(dense & np.tril(np.ones((blocks, blocks), dtype=bool)))
    want = reference.attention(q, k, v, kept=lower, block_size=16)[0]
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    same, report = trivium.attention(
        q, k, v, strategy="custom", mask=dense[None], block_size=16, return_report=True, return_mask=True
    )
    assert torch.equal(same, out)
    assert torch.equal(trivium.attention(q, k, v, strategy="custom", mask=report.mask), out)
    np.testing.assert_array_equal(report.mask.to_dense()[0], lower)


@pytest.mark.parametrize("strategy", ["dense", "flexprefill", "streaming"])
def test_selecting_everything_is_the_mask_of_everything(strategy: str, rng: np.random.Generator) -> None:
    q, k, _ = tensors(rng, q_len=300)
    mask = trivium.select(q, k, strategy=strategy)
    assert mask.density == 1 and len(mask.blocks(0, 3)) == 6


def test_mask_survives_a_file(tmp_path: Any, rng: np.random.Generator) -> None:
    q, k, _ = tensors(rng, q_len=300)
    mask = trivium.select(q, k, strategy="flexprefill", block_size=16, min_budget=16, gamma=0.5)
    mask.save(tmp_path / "mask.npz")
    assert trivium.BlockMask.load(tmp_path / "mask.npz") == mask
    rows = [[mask.blocks(0, h)[mask.blocks(0, h)[:, 0] == i][:, 1].tolist() for i in range(19)] for h in range(4)]
    assert trivium.BlockMask.from_blocks(rows, block_size=16, key_blocks=19) == mask


def test_own_engine_ends_with_its_processes(rng: np.random.Generator) -> None:
    q, k, v = tensors(rng, q_len=40)
    with trivium.Engine() as engine:
        want = trivium.attention(q, k, v, strategy="dense", engine=engine)
        (process,) = engine.plugins()
    with pytest.raises(ProcessLookupError):
        import os

        os.kill(process.pid, 0)
    with pytest.raises(trivium.EngineClosed):
        trivium.attention(q, k, v, strategy="dense", engine=engine)
    assert torch.equal(trivium.attention(q, k, v, strategy="dense"), want)
