"""Which blocks are chosen for CUDA tensors, and what is reported of them, against the CPU. Skipped where there is no GPU."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

import trivium  # noqa: E402
from test_cuda import BUDGET, DEVICE, check, error, reference, structured, tensors  # noqa: E402

# How the reports tell who chose: the host, alone or by rows that the device measured; nothing is said of the device.
NOTES = {"host": "blocks were chosen on cpu", "both": "blocks were chosen on the host, by rows", "device": "blocks were chosen"}
GAMMAS = [0.8, 0.9, 0.95, 0.99, 0.85, 0.7, 0.6, 1.0]

# What the device has kernels for.
THERE: list[tuple[str, dict[str, Any]]] = [
    ("xattention", {}),
    ("xattention", {"threshold": 0.6, "stride": 8}),
    ("xattention", {"threshold": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.4, 0.3], "norm": 2.0}),
    ("flashprefill", {}),
    ("flashprefill", {"alpha": 0.6, "min_blocks": 3, "last_blocks": 0, "sink_blocks": 1, "window_blocks": 1}),
    ("flashprefill", {"alpha": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0]}),
    ("streaming", {"recent": 500}),
    ("streaming", {"sink": 0, "recent": 1, "last": 200}),
    ("streaming", {"sink": 129, "recent": 258, "last": 5000}),
    ("flexprefill", {"rule": "paper"}),
    ("flexprefill", {"rule": "paper", "gamma": 0.5, "min_budget": None, "tau": 0.0}),
    ("flexprefill", {"rule": "paper", "gamma": 0.6, "min_budget": 128, "max_budget": 300, "tau": 0.0}),
    ("flexprefill", {"rule": "paper", "tau": 1.0}),
    ("flexprefill", {"gamma": GAMMAS, "tau": [0.0, 0.1, 0.2, 0.3, 1.0, 1.0, 0.0, 0.1]}),
    ("flexprefill", {"gamma": 0.5, "min_budget": None}),
]  # fmt: skip
# What is chosen on the host.
ELSEWHERE: list[tuple[str, dict[str, Any]]] = [
    ("xattention", {"stride": 32}),
    ("xattention", {"block_size": 256}),
    ("flashprefill", {"block_size": 256}),
    ("streaming", {"block_size": 256, "recent": 300}),
    ("flexprefill", {"block_size": 256, "gamma": 0.7}),
    ("flexprefill", {"segment": 1024, "gamma": 0.7}),
    ("flexprefill", {"segment": 1024, "coverage": "enforce", "gamma": 0.7}),
    ("verticalslash", {"vertical": 300, "slash": 400}),
    ("minference", {}),
]
# What is chosen on the host by what the device measures.
BOTH: list[tuple[str, dict[str, Any]]] = [
    ("probe", {"gamma": 0.8}),
    ("probe", {"gamma": 0.8, "block_size": 256}),
    ("oracle", {"gamma": 0.7}),
    ("flexprefill", {"coverage": "enforce", "gamma": 0.8}),
    ("flexprefill", {"coverage": "enforce", "gamma": 0.8, "rule": "paper", "tau": 0.3}),
    ("xattention", {"coverage": "enforce", "threshold": 0.5, "gamma": [0.8, 0.7, 0.9, 0.8, 0.8, 0.95, 0.8, 0.8]}),
    ("flashprefill", {"coverage": "enforce", "alpha": 0.7, "gamma": 0.8}),
    ("streaming", {"coverage": "enforce", "recent": 200, "gamma": 0.7}),
]  # fmt: skip


# By columns and by tiles.
FLEX: list[tuple[str, dict[str, Any]]] = [
    ("flexprefill", {"gamma": 0.8, "tau": 0.0}),
    ("flexprefill", {"gamma": 0.7, "tau": 1.0}),
    ("flexprefill", {"gamma": 0.6, "tau": 0.0, "min_budget": 128, "rule": "paper"}),
    ("flexprefill", {"gamma": 0.7, "min_budget": None, "rule": "released"}),
]


def inputs(n: int, **more: Any) -> list[Any]:
    """Less sure of themselves than ``structured``: their sums do not hang on one key."""
    q, k, v = structured(n, **more)
    return [q * 0.4, k, v]


def who(strategy: str) -> str:
    return "both" if strategy == "probe" else "device"


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float((a & b).sum() / max((a | b).sum(), 1))


def on_cpu(*tensors: Any) -> list[Any]:
    return [x.cpu() for x in tensors]


def spread(mask: np.ndarray, block: int, offset: int, rows: int, keys: int) -> Any:
    """A mask of blocks as one of pairs: [.., rows, keys]."""
    pairs = torch.from_numpy(mask).to(DEVICE).repeat_interleave(block, -2).repeat_interleave(block, -1)
    first = offset % block
    return pairs[..., first : first + rows, :keys]


def same_reports(got: Any, want: Any) -> None:
    assert len(got.heads) == len(want.heads)
    assert abs(got.density - want.density) < 2e-3
    if want.coverage is not None:
        assert abs(got.coverage - want.coverage) < 2e-3
    for a, b in zip(got.heads, want.heads, strict=True):
        assert (a.sequence, a.head, a.pattern, a.blocks, a.probe_rows) == (b.sequence, b.head, b.pattern, b.blocks, b.probe_rows)
        assert abs(a.kept_blocks - b.kept_blocks) <= max(2, 0.005 * b.kept_blocks)
        # Of keys that a plan turns, the device takes the mean, where the CPU turns their mean: that is in the distance.
        for x, y, most in ((a.coverage, b.coverage, 5e-3), (a.coverage_lower, b.coverage_lower, 5e-3), (a.js_distance, b.js_distance, 1e-2)):
            assert (x is None) == (y is None)
            assert x is None or abs(x - y) < most, (a, b)
        assert abs(a.blocks_added - b.blocks_added) <= max(2, 0.005 * b.kept_blocks)


def compare(q: Any, k: Any, v: Any, strategy: str, params: dict[str, Any], who: str, **call: Any) -> Any:
    """Chosen, attended and reported on the device as on the CPU; the device's report."""
    options = {"strategy": strategy, **params, **call}
    # What a plan turns is rounded to the tensors' type again: in float32 `probe` keeps a block more or less now and then.
    own = who == "host" or (who == "both" and "position" in call)
    wide = on_cpu(q, k, v) if own else [x.float() for x in on_cpu(q, k, v)]
    wanted, want = trivium.attention(*wide, return_report=True, return_mask=True, probe_rows=40, seed=7, **options)
    out, lse, got = trivium.attention(q, k, v, return_lse=True, return_report=True, return_mask=True, probe_rows=40, seed=7, **options)
    said = {name for name, note in NOTES.items() if any(n.startswith(note) for n in got.notes)} - {"device"}
    assert said == {who} - {"device"}, got.notes
    a, b = got.mask, want.mask
    if a is None or b is None:  # everything
        assert min(got.density, want.density) > 0.999
    else:
        alike = [jaccard(x, y) for x, y in zip(a.to_dense()[0], b.to_dense()[0], strict=True)]
        assert jaccard(a.to_dense(), b.to_dense()) >= 0.999, alike
        assert np.array_equal(trivium.select(q, k, seed=7, **options).to_dense(), a.to_dense())
        assert trivium.attention(q, k, v, seed=7, **options).equal(out)
    same_reports(got, want)
    if not {"position", "window", "softcap"} & call.keys() and a is not None and q.shape[0] == 1:
        offset = call.get("q_offset", 0)
        keep = spread(a.to_dense(), a.block_size, offset, q.shape[2], k.shape[2])
        check(out, lse, reference(q, k, v, q_offset=offset, keep=keep), q.dtype)
    assert error(out, wanted.to(DEVICE)) < 2 * BUDGET[q.dtype] + (0.0 if a is None or jaccard(a.to_dense(), b.to_dense()) == 1 else 0.02)
    return got


@pytest.mark.parametrize("strategy, params", THERE, ids=str)
@pytest.mark.parametrize("n", [3072, 2500])
def test_there(n: int, strategy: str, params: dict[str, Any]) -> None:
    report = compare(*inputs(n, seed=n), strategy, params, "device")
    assert report.density < 0.95 or params.get("last") == 5000


@pytest.mark.parametrize("strategy, params", ELSEWHERE, ids=str)
def test_elsewhere(strategy: str, params: dict[str, Any]) -> None:
    q, k, v = inputs(2500, seed=3)
    report = compare(q, k, v, strategy, params, "host")
    copied = sum(x.numel() * 2 for x in (q, k))
    assert any(f"{copied} bytes" in n for n in report.notes)


@pytest.mark.parametrize("strategy, params", BOTH, ids=str)
@pytest.mark.parametrize("n", [2500, 3072])
def test_both(n: int, strategy: str, params: dict[str, Any]) -> None:
    report = compare(*inputs(n, seed=n), strategy, params, "both")
    assert report.density < 0.95


@pytest.mark.parametrize("offset", [1500, 1536])
@pytest.mark.parametrize("strategy, params", [*THERE[::3], ("probe", {"gamma": 0.8})], ids=str)
def test_chunks(strategy: str, params: dict[str, Any], offset: int) -> None:
    q, k, v = inputs(3072, seed=5)
    compare(q[:, :, offset:], k, v, strategy, params, who(strategy), q_offset=offset)


def test_chunks_that_flexprefill_chooses_for_elsewhere() -> None:
    q, k, v = inputs(3072, seed=6)
    compare(q[:, :, 2990:], k, v, "flexprefill", {"gamma": 0.6}, "host", q_offset=2990)
    compare(q[:, :, 1500:2000], k, v, "flexprefill", {"gamma": 0.6}, "host", q_offset=1500)


@pytest.mark.parametrize("strategy, params", [("xattention", {}), ("flexprefill", {"rule": "paper"}), ("streaming", {"recent": 300}), ("probe", {"gamma": 0.8})], ids=str)
@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
def test_padded_batches(strategy: str, params: dict[str, Any], layout: Any) -> None:
    """Sequences of their own: what each keeps, and the figures of each."""
    rows = [inputs(2048, seed=s) for s in (11, 12)]
    q, k, v = (torch.cat(x) for x in zip(*rows, strict=True))
    starts, ends = [0, 300], [1900, 2048]
    options: dict[str, Any] = {"strategy": strategy, **params, "k_start": starts, "k_end": ends, "probe_rows": 30, "seed": 2}
    want = trivium.attention(*(x.float() for x in on_cpu(q, k, v)), return_report=True, **options)
    if layout == "bnhd":
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    out, got = trivium.attention(q, k, v, layout=layout, return_report=True, **options)
    same_reports(got, want[1])
    assert error(out.transpose(1, 2) if layout == "bnhd" else out, want[0].to(DEVICE)) < 0.02


@pytest.mark.parametrize("extra", [{"window": 700}, {"softcap": 6.0}, {"window": 700, "softcap": 4.0}], ids=str)
@pytest.mark.parametrize("strategy, params", [*FLEX, ("xattention", {}), ("flashprefill", {"alpha": 0.5}), ("streaming", {"recent": 300}), ("probe", {"gamma": 0.8})], ids=str)
def test_window_and_softcap(strategy: str, params: dict[str, Any], extra: dict[str, Any]) -> None:
    compare(*inputs(2500, seed=8), strategy, params, who(strategy), **extra)


@pytest.mark.parametrize("name", ["string", "yarn"])
@pytest.mark.parametrize("strategy, params", [*FLEX, ("xattention", {}), ("flashprefill", {}), ("streaming", {"recent": 300}), ("probe", {"gamma": 0.8})], ids=str)
def test_positions(strategy: str, params: dict[str, Any], name: str) -> None:
    plan = {"string": {"train_length": 2048}, "yarn": {"factor": 2.0, "train_length": 2048}}[name]
    compare(*inputs(3072, seed=9), strategy, params, who(strategy), position=trivium.position(name, **plan), rope_theta=10000.0)


@pytest.mark.parametrize("strategy, params", FLEX, ids=str)
@pytest.mark.parametrize("offset", [1100, 2176])
def test_chunks_by_string(strategy: str, params: dict[str, Any], offset: int) -> None:
    q, k, v = inputs(3072, seed=14)
    position = trivium.position("string", train_length=1500)
    compare(q[:, :, offset:], k, v, strategy, params, "device", q_offset=offset, position=position, rope_theta=10000.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [64, 80])
def test_other_heads(dim: int, dtype: Any) -> None:
    q, k, v = (x[..., :dim].contiguous() for x in inputs(2304, heads=6, kv=3, dtype=dtype))
    for strategy, params in (("xattention", {}), ("flashprefill", {}), ("flexprefill", {"rule": "paper"}), ("streaming", {"recent": 200})):
        compare(q, k, v, strategy, params, "device")
    compare(q, k, v, "probe", {"gamma": 0.8}, "both")


def test_long_prompts_are_probed_as_on_the_cpu() -> None:
    """From 16384 keys on other rows rank and check."""
    q, k, v = inputs(17000, heads=4, kv=2, seed=20)
    compare(q, k, v, "probe", {"gamma": 0.8}, "both")


def test_without_causality() -> None:
    q, k, v = inputs(1500, seed=21)
    for strategy, params in (("streaming", {"recent": 300}), ("probe", {"gamma": 0.8})):
        got = trivium.attention(q, k, v, strategy=strategy, causal=False, return_report=True, probe_rows=20, **params)[1]
        want = trivium.attention(*(x.float() for x in on_cpu(q, k, v)), strategy=strategy, causal=False, return_report=True, probe_rows=20, **params)[1]
        same_reports(got, want)
    for strategy in ("xattention", "flashprefill", "flexprefill"):
        report = trivium.attention(q, k, v, strategy=strategy, causal=False, return_report=True)[1]
        assert report.density == 1 and any("causal attention only" in n for n in report.notes)


def test_coverage_of_the_rows_that_chose() -> None:
    q, k, v = inputs(3072, seed=10)
    want = trivium.attention(*(x.float() for x in on_cpu(q, k, v)), gamma=0.6, return_report=True)[1]
    got = trivium.attention(q, k, v, gamma=0.6, return_report=True)[1]
    same_reports(got, want)
    assert got.coverage < 1 and any("which chose the blocks" in n for n in got.notes)
    assert trivium.attention(q, k, v, strategy="dense", return_report=True, probe_rows=8)[1].coverage == 1


def test_a_promise_is_kept() -> None:
    """Enforced on the device: a bound of gamma for each head, by rows of their own and by all rows."""
    q, k, v = inputs(4096, seed=13)
    out, report = trivium.attention(q, k, v, strategy="custom", mask=np.eye(32, dtype=bool)[None], block_size=128, coverage="enforce", gamma=0.85, return_report=True)
    assert all(h.coverage_lower >= 0.85 and h.blocks_added > 0 for h in report.heads)
    every = trivium.attention(q, k, v, strategy="custom", mask=np.eye(32, dtype=bool)[None], block_size=128, coverage="enforce", gamma=0.85,
                              return_report=True, probe_rows=4096)[1]  # fmt: skip
    assert all(h.probe_rows == 4096 and h.coverage >= 0.85 for h in every.heads)
    assert error(out, reference(q, k, v)[0]) < 0.5


def test_proofs_are_those_of_the_cpu() -> None:
    q, k, v = inputs(4096, seed=13)
    wide = [x.float() for x in on_cpu(q, k, v)]
    for strategy, params in (("streaming", {"recent": 600}), ("probe", {"gamma": 0.8}), ("flexprefill", {"gamma": 0.7, "coverage": "enforce"})):
        for rows in (0, 256):
            if strategy == "streaming" and not rows:
                with pytest.raises(trivium.InvalidArgument, match="probe_rows"):
                    trivium.attention(q, k, v, strategy=strategy, bound="proven", return_report=True, **params)
                continue
            call: dict[str, Any] = {"strategy": strategy, "bound": "proven", "delta": 0.02, "probe_rows": rows, "return_report": True, **params}
            got, want = trivium.attention(q, k, v, **call)[1], trivium.attention(*wide, **call)[1]
            same_reports(got, want)
            for a, b in zip(got.heads, want.heads, strict=True):
                assert (a.bound, a.delta) == (b.bound, b.delta) == ("proven", 0.02)
                assert rows == 0 or abs(a.coverage_lower_all - b.coverage_lower_all) < 5e-3


def test_what_is_not_there_says_what_to_do() -> None:
    q, k, v = tensors(7, 1, 4, 2, 2000, 2000, 128, torch.bfloat16)
    with pytest.raises(trivium.Unsupported, match="block_size 64") as caught:
        trivium.attention(q, k, v, strategy="probe", block_size=64)
    assert "cpu" in caught.value.hint
    with pytest.raises(trivium.Unsupported, match="mean_correction"):
        trivium.attention(q, k, v, strategy="flashprefill", mean_correction=True)
    with pytest.raises(trivium.Unsupported, match="gqa_interleave"):
        trivium.attention(q, k, v, gqa_interleave=True)
    with pytest.raises(trivium.Unsupported, match="count twice"):
        trivium.attention(q, k, v, strategy="dense", position=trivium.position("string", train_length=1024, compat="released"), rope_theta=1e4)


transformers = pytest.importorskip("transformers")


@torch.no_grad()
@pytest.mark.parametrize("strategy, params", [("xattention", {}), ("flashprefill", {}), ("streaming", {"recent": 256}), ("flexprefill", {"rule": "paper"}), ("probe", {})], ids=str)
def test_patched_model(strategy: str, params: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=997, hidden_size=512, intermediate_size=768, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).to(DEVICE, torch.bfloat16).eval()
    prompt = torch.randint(2, 997, (1, 2048), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    host = copy.deepcopy(model).float().cpu()
    with trivium.patch(host, attention=strategy, **params):
        want = host(prompt.cpu()).logits.to(DEVICE)
    with trivium.patch(model, attention=strategy, **params), trivium.trace(probe_rows=16) as traced:
        got = model(prompt).logits
    assert error(got, want) < 3e-2
    assert len(traced.rows()) == 2 * 8 and 0 < traced.coverage <= 1
