"""Attention on CUDA tensors, through the plugin process. Skipped where there is no GPU."""

from __future__ import annotations

import copy
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

import trivium  # noqa: E402

DEVICE = "cuda:0"
# Relative error by dtype: the rounding of the output, and of the probabilities before the second product.
BUDGET = {torch.bfloat16: 4e-3, torch.float16: 6e-4}


def tensors(seed: int, batch: int, heads: int, kv: int, n_q: int, n_k: int, dim: int, dtype: Any, layout: str = "bhnd") -> list[Any]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = []
    for h, n in ((heads, n_q), (kv, n_k), (kv, n_k)):
        shape = (batch, h, n, dim) if layout == "bhnd" else (batch, n, h, dim)
        made.append(torch.randn(shape, generator=generator, device=DEVICE).to(dtype))
    return made


def reference(
    q: Any, k: Any, v: Any, *, q_offset: int = 0, causal: bool = True, window: int | None = None, scale: float | None = None,
    softcap: float | None = None, sinks: Any = None, keep: Any = None, starts: Any = None, ends: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """Float32 attention over [batch, heads, n, d]; keep: bool, broadcast over the scores."""
    torch.backends.cuda.matmul.allow_tf32 = False
    q, k, v = (x.float() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(2, 3) * (scale or q.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    rows = torch.arange(q.shape[2], device=q.device)[:, None] + q_offset
    columns = torch.arange(k.shape[2], device=q.device)[None, :]
    seen = torch.ones_like(scores, dtype=torch.bool)
    if causal:
        seen &= columns <= rows
    if window:
        seen &= rows - columns < window
    if keep is not None:
        seen &= keep
    for b in range(q.shape[0]):
        if starts is not None:
            seen[b] &= (columns >= starts[b]) & (columns < ends[b]) & (rows >= starts[b]) & (rows < ends[b])
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        sink = torch.as_tensor(sinks, device=q.device, dtype=torch.float32)[None, :, None, None].expand(*scores.shape[:3], 1)
        lse = torch.logsumexp(torch.cat([scores, sink], -1), -1)
    else:
        lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse[..., None].nan_to_num(neginf=0.0)).masked_fill(~seen, 0.0)
    return weights @ v, lse


def error(got: Any, want: Any) -> float:
    assert torch.isfinite(got).all()
    return float((got.float() - want).norm() / want.norm())


def check(out: Any, lse: Any, want: tuple[Any, Any], dtype: Any) -> None:
    assert out.device.type == lse.device.type == "cuda" and out.dtype is dtype
    assert error(out, want[0]) < BUDGET[dtype]
    seen = torch.isfinite(want[1])
    assert torch.equal(torch.isfinite(lse), seen)
    assert float((lse[seen] - want[1][seen]).abs().max()) < 2e-2


SHAPES = [
    (1, 4, 4, 128, 128, 128), (1, 8, 2, 333, 333, 128), (2, 6, 3, 257, 257, 64), (3, 4, 1, 1, 500, 128), (1, 9, 3, 65, 1000, 64),
    (2, 4, 2, 1, 1, 128), (1, 2, 2, 700, 701, 64), (2, 3, 1, 129, 640, 80), (1, 4, 2, 200, 200, 16), (1, 32, 8, 3, 4001, 128), (1, 6, 2, 77, 400, 24),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense(shape: tuple[int, ...], layout: Any, dtype: Any) -> None:
    q, k, v = tensors(1, *shape, dtype, layout)
    offset = shape[4] - shape[3]
    out, lse = trivium.attention(q, k, v, strategy="dense", q_offset=offset, layout=layout, return_lse=True)
    assert out.shape == q.shape
    if layout == "bnhd":
        q, k, v, out = (x.transpose(1, 2) for x in (q, k, v, out))
    check(out, lse, reference(q, k, v, q_offset=offset), dtype)


@pytest.mark.parametrize(
    "extra",
    [{"window": 100}, {"softcap": 5.0}, {"sinks": [0.5, -1.0, 2.0, 0.0]}, {"scale": 0.3}, {"causal": False}, {"window": 40, "softcap": 3.0}],
    ids=str,
)
def test_dense_with(extra: dict[str, Any]) -> None:
    q, k, v = tensors(2, 2, 4, 2, 300, 300, 128, torch.bfloat16)
    out, lse = trivium.attention(q, k, v, strategy="dense", return_lse=True, **extra)
    check(out, lse, reference(q, k, v, **extra), torch.bfloat16)


def test_strided_views() -> None:
    """A slice of a larger cache, and every head of a fused projection."""
    cache = torch.randn(2, 4, 1024, 128, device=DEVICE, dtype=torch.bfloat16)
    fused = torch.randn(2, 300, 3, 4, 128, device=DEVICE, dtype=torch.bfloat16)
    q = fused[:, :, 0].transpose(1, 2)
    k, v = cache[:, :2, :300], cache[:, 2:, :300]
    out, lse = trivium.attention(q, k, v, strategy="dense", return_lse=True)
    check(out, lse, reference(q, k, v), torch.bfloat16)
    with pytest.raises(trivium.InvalidArgument, match="repeats along axis 1"):
        trivium.attention(q, k[:, :1].expand(-1, 4, -1, -1), v[:, :1].expand(-1, 4, -1, -1), strategy="dense")


def test_padding_and_packing() -> None:
    q, k, v = tensors(3, 3, 4, 2, 300, 300, 64, torch.bfloat16)
    starts, ends = [0, 37, 200], [300, 290, 200]
    out, lse = trivium.attention(q, k, v, strategy="dense", k_start=starts, k_end=ends, return_lse=True)
    check(out, lse, reference(q, k, v, starts=starts, ends=ends), torch.bfloat16)
    assert not out[2].any() and not out[1, :, :37].any()
    q, k, v = (x[:1] for x in (q, k, v))
    out, lse = trivium.attention(q, k, v, strategy="dense", cu_seqlens=[0, 1, 130, 300], return_lse=True)
    part = torch.bucketize(torch.arange(300, device=DEVICE), torch.tensor([1, 130], device=DEVICE), right=True)
    check(out, lse, reference(q, k, v, keep=part[:, None] == part[None, :]), torch.bfloat16)


def structured(n: int, heads: int = 8, kv: int = 2, seed: int = 0, dtype: Any = torch.bfloat16) -> list[Any]:
    """Sinks, a local band and a few heavy columns, so that FlexPrefill has something to choose."""
    q, k, v = tensors(seed, 1, heads, kv, n, n, 128, torch.float32)
    generator = torch.Generator(DEVICE).manual_seed(seed + 1)
    common = torch.randn(128, generator=generator, device=DEVICE)
    q += 0.6 * common
    k[:, :, :4] += 0.8 * common
    columns = torch.randint(0, n, (12,), generator=generator, device=DEVICE)
    k[:, :, columns] += 0.6 * common
    slow = torch.cumsum(torch.randn(n, 128, generator=generator, device=DEVICE), 0) / 20
    q += slow
    k += slow
    return [x.to(dtype) for x in (q, k, v)]


@pytest.mark.parametrize("rule", ["fixed", "released"])
@pytest.mark.parametrize("gamma", [0.9, 0.95])
@pytest.mark.parametrize("n", [1500, 3072, 4097])
def test_flexprefill_chooses_as_on_the_cpu(n: int, gamma: float, rule: str) -> None:
    q, k, v = structured(n, seed=n)
    options: dict[str, Any] = {"strategy": "flexprefill", "gamma": gamma, "rule": rule}
    out, lse, report = trivium.attention(q, k, v, return_lse=True, return_report=True, return_mask=True, **options)
    want = trivium.select(q.float().cpu(), k.float().cpu(), **options).to_dense()
    got = report.mask.to_dense()
    both, either = (got & want).sum(), (got | want).sum()
    assert both / either >= 0.999
    assert not got[np.tril(np.ones(got.shape[-2:], dtype=bool))[None, None].repeat(got.shape[1], 1)].all()  # or there is nothing to compare
    assert np.array_equal(trivium.select(q, k, **options).to_dense(), got)
    keep = torch.from_numpy(got).to(DEVICE).repeat_interleave(128, -2).repeat_interleave(128, -1)[..., :n, :n]
    check(out, lse, reference(q, k, v, keep=keep), torch.bfloat16)
    assert report.backend.startswith("cuda:0") and 0 < report.density < 0.9 and len(report.heads) == 8
    assert all(h.pattern in ("vertical_slash", "query_aware") for h in report.heads)
    assert rule == "released" or all(h.js_distance is not None for h in report.heads)  # there 0 log 0 is no number


@pytest.mark.parametrize("offset", [0, 128, 200, 77])
@pytest.mark.parametrize("block", [128, 256])
def test_custom_mask(offset: int, block: int) -> None:
    n = 700
    q, k, v = tensors(4, 1, 4, 2, n, n + offset, 128, torch.bfloat16)
    blocks = -(-(n + offset) // block)
    first = offset // block
    rng = np.random.default_rng(offset + block)
    dense = np.tril(rng.random((4, blocks, blocks)) < 0.4)
    dense[:, :, 0] = True
    out, lse = trivium.attention(q, k, v, strategy="custom", mask=dense[:, first:], block_size=block, q_offset=offset, return_lse=True)
    keep = torch.from_numpy(dense).to(DEVICE).repeat_interleave(block, -2).repeat_interleave(block, -1)[:, offset : offset + n, : n + offset]
    check(out, lse, reference(q, k, v, keep=keep[None], q_offset=offset), torch.bfloat16)


@pytest.mark.parametrize("name", ["string", "linear", "ntk", "yarn"])
@pytest.mark.parametrize("offset", [0, 300])
def test_positions(name: str, offset: int) -> None:
    """Against the CPU's kernels in float32, which are held against the formulas."""
    q, k, v = tensors(5, 1, 4, 2, 600, 600 + offset, 128, torch.bfloat16)
    params: dict[str, Any] = {"string": {"train_length": 512}, "linear": {"factor": 2.0}}.get(name, {"factor": 2.0, "train_length": 512})
    position = trivium.position(name, **params)
    call: dict[str, Any] = {"strategy": "dense", "position": position, "rope_theta": 10000.0, "q_offset": offset, "return_lse": True}
    out, lse = trivium.attention(q, k, v, **call)
    want = trivium.attention(q.float().cpu(), k.float().cpu(), v.float().cpu(), **call)
    assert error(out, want[0].to(DEVICE)) < 2 * BUDGET[torch.bfloat16]  # the rotation rounds once more
    assert float((lse - want[1].to(DEVICE)).abs().max()) < 3e-2
    plain = trivium.attention(q, k, v, strategy="dense", q_offset=offset)
    assert error(plain, want[0].to(DEVICE)) > 0.02  # the plan matters


def test_order_of_the_stream() -> None:
    """Inputs are written late and overwritten at once; nothing waits on the host."""
    q, k, v = tensors(6, 1, 8, 8, 2048, 2048, 128, torch.bfloat16)
    want = reference(q, k, v)[0]
    trivium.attention(q, k, v, strategy="dense")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = [torch.zeros_like(x) for x in (q, k, v)]
        torch.cuda._sleep(50_000_000)
        for to, source in zip(late, (q, k, v), strict=True):
            to.copy_(source)
        began = time.perf_counter()
        out = trivium.attention(*late, strategy="dense")
        took = time.perf_counter() - began
        for to in late:
            to.zero_()
        kept = out.clone()
    side.synchronize()
    assert error(kept, want) < BUDGET[torch.bfloat16]
    assert took < 0.02  # the sleep is longer


def test_no_report_without_asking_costs_no_wait() -> None:
    q, k, v = structured(4096)
    trivium.attention(q, k, v)
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)
    began = time.perf_counter()
    trivium.attention(q, k, v)
    assert time.perf_counter() - began < 0.02
    torch.cuda.synchronize()


def test_calls_told_by_their_addresses() -> None:
    """One kind of call again and again, with other tensors, of which one lies off 16 bytes, and other kinds in between."""
    from trivium import _again

    shape = (1, 4, 2, 300, 300, 128, torch.bfloat16)
    for seed in range(6):
        q, k, v = tensors(40 + seed, *shape)
        off = torch.empty(q.numel() + 8, device=DEVICE, dtype=q.dtype)[4:-4].view(q.shape).copy_(q)
        for query in (q, off):
            try:
                out, lse = trivium.attention(query, k, v, strategy="dense", window=100, layer=seed, return_lse=True)
            except trivium.Unsupported:
                assert query is off
                continue
            assert query is q
            check(out, lse, reference(q, k, v, window=100), torch.bfloat16)
        check(*trivium.attention(q, k, v, strategy="dense", softcap=5.0, return_lse=True), reference(q, k, v, softcap=5.0), torch.bfloat16)
        assert error(trivium.attention(q, k[:, :, :280], v[:, :, :280], strategy="dense", causal=False), reference(q, k[:, :, :280], v[:, :, :280], causal=False)[0]) < 4e-3
    assert len(_again._known) >= 3


def test_a_call_that_is_not_waited_for_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outputs are NaN, its stream goes on, and the next call tells of it."""
    from trivium import _attention

    monkeypatch.setattr(_attention, "_likeness", lambda request: "as if it were like one that succeeded")
    q, k, v = tensors(30, 1, 4, 2, 300, 300, 128, torch.bfloat16)
    want = reference(q, k, v)
    trivium.attention(q, k, v, strategy="dense", return_lse=True)
    wide = torch.zeros(1, 1, 64, 256, device=DEVICE, dtype=torch.bfloat16)
    before = trivium.attention(q, k, v, strategy="dense")
    out, lse = trivium.attention(wide, wide, wide, strategy="dense", return_lse=True)
    torch.cuda.synchronize()  # the answer is looked for within half a second, whoever calls
    assert out.isnan().all() and lse.isnan().all()
    assert error(before, want[0]) < BUDGET[torch.bfloat16]
    with pytest.raises(trivium.Unsupported, match="an earlier call on cuda:0 failed, and what it wrote is NaN: .*head_dim 256"):
        trivium.attention(q, k, v, strategy="dense")
    out, lse = trivium.attention(q, k, v, strategy="dense", return_lse=True)
    check(out, lse, want, torch.bfloat16)


def test_what_is_not_there_says_so() -> None:
    q, k, v = tensors(7, 1, 4, 2, 2000, 2000, 128, torch.bfloat16)
    with pytest.raises(trivium.InvalidArgument, match="bfloat16 or float16"):
        trivium.attention(q.float(), k.float(), v.float(), strategy="dense")
    with pytest.raises(trivium.InvalidArgument, match="one device"):
        trivium.attention(q, k.cpu(), v.cpu(), strategy="dense")
    with pytest.raises(trivium.Unsupported, match="block_size 64"):
        trivium.attention(q, k, v, block_size=64)
    with pytest.raises(trivium.Unsupported, match="rerope"):
        trivium.attention(q, k, v, strategy="dense", position=trivium.position("rerope", window=256), rope_theta=1e4)
    wide = torch.zeros(1, 1, 64, 256, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(trivium.Unsupported, match="head_dim 256"):
        trivium.attention(wide, wide, wide, strategy="dense")


def test_freed_memory_goes_back() -> None:
    from trivium import _cuda

    shape = (1, 8, 65536, 128)  # 128 MiB, a block of its own
    before = 0
    for round in range(7):
        x = torch.randn(shape, device=DEVICE, dtype=torch.float32).to(torch.bfloat16)
        out, lse = trivium.attention(x[:, :, :256], x[:, :, :256], x[:, :, :256], strategy="dense", return_lse=True)
        check(out, lse, reference(x[:, :, :256], x[:, :, :256], x[:, :, :256]), torch.bfloat16)
        del x, out, lse
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        if round == 0:  # what both processes take for themselves is no loss
            before = torch.cuda.mem_get_info()[0]
    _cuda.lender(DEVICE).shared.sweep()
    assert before - torch.cuda.mem_get_info()[0] < 256 << 20


def running() -> int:
    return next(p.pid for p in trivium.plugins() if p.kind == "attention")


def test_killed_between_calls() -> None:
    q, k, v = tensors(8, 1, 4, 2, 500, 500, 128, torch.bfloat16)
    want = reference(q, k, v)
    trivium.attention(q, k, v, strategy="dense")
    torch.cuda.synchronize()
    os.kill(running(), signal.SIGKILL)
    time.sleep(0.2)
    out, lse = trivium.attention(q, k, v, strategy="dense", return_lse=True)
    check(out, lse, want, torch.bfloat16)


def test_killed_during_calls() -> None:
    """With work on the device: the caller's stream goes on, and the next call is right."""
    q, k, v = tensors(9, 1, 32, 8, 32768, 32768, 128, torch.bfloat16)
    small = [x[:, :, :500] for x in (q, k, v)]
    want = reference(*small)
    for _ in range(3):
        trivium.attention(q, k, v, strategy="dense")
    torch.cuda.synchronize()
    victim = running()
    timer = threading.Timer(0.05, os.kill, (victim, signal.SIGKILL))
    timer.start()
    try:
        for _ in range(200):
            trivium.attention(q, k, v, strategy="dense")
            if not timer.is_alive():
                break
    except trivium.PluginCrashed:
        pass
    timer.join()
    drained = threading.Thread(target=torch.cuda.synchronize, daemon=True)
    drained.start()
    drained.join(20)
    assert not drained.is_alive(), "the caller's stream waits for a process that is gone"
    for attempt in range(2):
        try:
            out, lse = trivium.attention(*small, strategy="dense", return_lse=True)
            break
        except trivium.PluginCrashed:
            assert attempt == 0
    check(out, lse, want, torch.bfloat16)
    assert running() != victim


EXPANDABLE = """
import torch, trivium
torch.manual_seed(0)
q, k, v = (torch.randn(1, h, 500, 128, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2))
ref = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float().repeat_interleave(2, 1), v.float().repeat_interleave(2, 1), is_causal=True)
for _ in range(3):
    out, report = trivium.attention(q, k, v, strategy="dense", return_report=True)
    assert (out.float() - ref).norm() / ref.norm() < 4e-3
assert any("on the device" in n for n in report.notes), report.notes
assert trivium.stats()["device_bytes_copied"] > 0
out = trivium.attention(q.repeat(1, 1, 20, 1), k.repeat(1, 1, 20, 1), v.repeat(1, 1, 20, 1), strategy="dense")
assert torch.isfinite(out).all()
print("WELL")
"""


def test_memory_that_cannot_be_shared_is_copied() -> None:
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    done = subprocess.run([sys.executable, "-c", EXPANDABLE], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "WELL" in done.stdout, done.stderr
    assert done.stderr.count("cannot share with other processes") == 1


def test_threads_and_streams() -> None:
    want = {}
    inputs = {}
    for i in range(4):
        inputs[i] = tensors(20 + i, 1, 4, 2, 300 + 50 * i, 300 + 50 * i, 128, torch.bfloat16)
        want[i] = reference(*inputs[i])[0]
    torch.cuda.synchronize()
    worst: list[float] = []

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                out = trivium.attention(*inputs[i], strategy="dense")
                worst.append(error(out, want[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(worst) == 80 and max(worst) < BUDGET[torch.bfloat16]


def test_doctor_shows_the_device() -> None:
    machine = trivium.doctor().machine
    assert "compute capability" in machine["cuda:0"] and "NVRTC" in machine["cuda:0"]


transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=997, hidden_size=512, intermediate_size=768, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(config).to(DEVICE, torch.bfloat16).eval()


def ids(batch: int, length: int) -> Any:
    return torch.randint(2, 997, (batch, length), generator=torch.Generator().manual_seed(3)).to(DEVICE)


@torch.no_grad()
def test_patched_model(model: Any) -> None:
    prompt = ids(2, 300)
    want = copy.deepcopy(model).float()(prompt).logits
    eager = model(prompt).logits
    with trivium.patch(model, attention="dense"):
        got = model(prompt).logits
    assert error(got, want) < 1.5 * error(eager, want) + 1e-3


@torch.no_grad()
def test_patched_generation(model: Any) -> None:
    """Decode with a cache: the logits of each step are those of one long prompt."""
    prompt = ids(1, 200)
    with trivium.patch(model, attention="flexprefill"):
        made = model.generate(prompt, max_new_tokens=24, do_sample=False, output_logits=True, return_dict_in_generate=True)
        steps = torch.stack(made.logits, 1)
        whole = model(made.sequences[:, :-1]).logits[:, 199:]
    assert error(steps, whole.float()) < 2e-2
    assert float((steps.argmax(-1) == whole.argmax(-1)).float().mean()) > 0.8


@torch.no_grad()
def test_patched_model_with_padding_and_string(model: Any) -> None:
    prompt = ids(2, 260)
    seen = torch.ones_like(prompt)
    seen[0, :40] = 0
    want = copy.deepcopy(model).float()(prompt, attention_mask=seen).logits[0, 40:]
    eager = model(prompt, attention_mask=seen).logits[0, 40:]
    with trivium.patch(model, attention="dense"):
        got = model(prompt, attention_mask=seen).logits[0, 40:]
    assert error(got, want) < 1.5 * error(eager, want) + 1e-3
    on_cpu = copy.deepcopy(model).float().cpu()
    with trivium.patch(on_cpu, attention="dense", position=trivium.position("string", train_length=192, local=32)):
        want = on_cpu(prompt[1:].cpu()).logits.to(DEVICE)
    with trivium.patch(model, attention="dense", position=trivium.position("string", train_length=192, local=32)):
        got = model(prompt[1:]).logits
    assert error(got, want) < 2e-2
    assert error(model(prompt[1:]).logits, want) > 2 * error(got, want)
