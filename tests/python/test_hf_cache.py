"""The cache in shared memory: what it gives out, what it copies, how it grows."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import trivium
import trivium.hf
from transformers import LlamaConfig
from trivium.hf.cache import SMALLEST, Layer

from tiny_models import FAMILIES, SHARED, build, tokens

TOLERANCE = 1e-4  # float32, logits of order 1 to 10
HEADS, WIDTH = 2, 8


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def copied() -> int:
    return int(trivium.stats()["bytes_copied"])


# What a model sees


def padded() -> dict[str, Any]:
    ids = tokens(2, 33)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    return {"input_ids": ids, "attention_mask": mask}


OPTIONS = dict(max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)


def test_generate(model: Any) -> None:
    want = model.generate(**padded(), **OPTIONS)
    with trivium.hf.patch(model, attention="dense"):
        cache = trivium.hf.Cache(model.config)
        got = model.generate(**padded(), **OPTIONS, past_key_values=cache)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=TOLERANCE, rtol=0)
    assert got.sequences.tolist() == want.sequences.tolist()
    assert cache.get_seq_length() == 33 + 11


def test_the_models_own_attention_can_use_it(model: Any) -> None:
    want = model.generate(**padded(), **OPTIONS)
    got = model.generate(**padded(), **OPTIONS, past_key_values=trivium.hf.Cache(model.config))
    assert got.sequences.tolist() == want.sequences.tolist()


def test_beam_search(model: Any) -> None:
    options = dict(max_new_tokens=8, do_sample=False, num_beams=3, pad_token_id=0)
    want = model.generate(**padded(), **options)
    with trivium.hf.patch(model, attention="dense"):
        got = model.generate(**padded(), **options, past_key_values=trivium.hf.Cache(model.config))
    assert got.tolist() == want.tolist()


@torch.no_grad()
def test_chunked_prefill(model: Any) -> None:
    ids = tokens(1, 90)
    want = model(input_ids=ids).logits
    with trivium.hf.patch(model, attention="dense"):
        cache, parts = trivium.hf.Cache(model.config), []
        for chunk in ids.split((25, 1, 20, 30, 14), dim=1):
            parts.append(model(input_ids=chunk, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), want, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_without_a_config_every_layer_is_kept_whole(model: Any) -> None:
    ids = tokens(1, 60)
    want = model(input_ids=ids).logits[:, 40:]
    with trivium.hf.patch(model, attention="dense"):
        cache = trivium.hf.Cache()
        model(input_ids=ids[:, :40], past_key_values=cache, use_cache=True)
        got = model(input_ids=ids[:, 40:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_prompt_is_prefilled_once_for_several_continuations() -> None:
    model, ids = build("llama"), tokens(1, 50)
    with trivium.hf.patch(model, attention="dense"):
        prompt = trivium.hf.Cache(model.config)
        model(input_ids=ids[:, :30], past_key_values=prompt, use_cache=True)
        for continuation in (ids[:, 30:], ids[:, 30:].flip(1)):
            whole = model(input_ids=torch.cat([ids[:, :30], continuation], dim=1)).logits[:, 30:]
            got = model(input_ids=continuation, past_key_values=copy.deepcopy(prompt), use_cache=True).logits
            torch.testing.assert_close(got, whole, atol=TOLERANCE, rtol=0)
    assert prompt.get_seq_length() == 30


# What is copied


@torch.inference_mode()
def test_only_queries_are_copied(model: Any) -> None:
    """Whatever the length of the cache, one-shot, chunked and decoding."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query = 4 * config.num_hidden_layers * config.num_attention_heads * width  # bytes of a token's queries
    with trivium.hf.patch(model, attention="dense"):
        cache = trivium.hf.Cache(config)
        for length in (70, 40, 1, 1, 17, 1):
            before = copied()
            model(input_ids=tokens(1, length), past_key_values=cache, use_cache=True)
            assert copied() - before == query * length


@torch.inference_mode()
def test_a_deep_copy_is_not_copied_either() -> None:
    model = build("llama")
    with trivium.hf.patch(model, attention="dense"):
        cache = trivium.hf.Cache(model.config)
        model(input_ids=tokens(1, 50), past_key_values=cache, use_cache=True)
        before = copied()
        model(input_ids=tokens(1, 1), past_key_values=copy.deepcopy(cache), use_cache=True)
    assert copied() - before == 4 * 3 * 64


def states(rng: np.random.Generator, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as a model has them: transposed views."""
    made = [torch.from_numpy(rng.standard_normal((batch, length, HEADS, WIDTH), dtype=np.float32)) for _ in range(2)]
    return made[0].transpose(1, 2), made[1].transpose(1, 2)


def test_growth_is_amortised(rng: np.random.Generator) -> None:
    layer, homes = Layer(), []
    for _ in range(5000):
        layer.update(*states(rng, 1, 1))
        homes.append(layer.keys.data_ptr())
    moves = sum(a != b for a, b in zip(homes, homes[1:]))
    assert moves <= np.log2(5000 / SMALLEST) + 1
    assert layer.capacity <= 2 * 5000 + SMALLEST


def test_a_sliding_layer_holds_a_few_windows(rng: np.random.Generator) -> None:
    window, chunk = 100, 64
    layer = Layer(window)
    for _ in range(100):
        layer.update(*states(rng, 1, chunk))
    assert layer.get_seq_length() == 100 * chunk
    assert layer.capacity <= max(2 * window + chunk, SMALLEST)


def test_capacity_is_reserved(rng: np.random.Generator) -> None:
    layer = Layer(capacity=1000)
    layer.update(*states(rng, 1, 10))
    home = layer.keys.data_ptr()
    layer.update(*states(rng, 1, 990))
    assert layer.capacity == 1000 and layer.keys.data_ptr() == home


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(rng: np.random.Generator, dtype: torch.dtype) -> None:
    keys, values = (x.to(dtype) for x in states(rng, 2, 20))
    layer = Layer()
    for part_k, part_v in zip(keys.split(7, dim=2), values.split(7, dim=2)):
        got = layer.update(part_k, part_v)
    assert torch.equal(got[0], keys) and torch.equal(got[1], values)


# Against lists of tensors that do the same by concatenation


class Model:
    """Every token of the sequence, and which of them the next queries see."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.keys = torch.zeros(0)
        self.length = 0

    def update(self, keys: torch.Tensor) -> torch.Tensor:
        first = 0 if self.window is None else max(self.length - self.window + 1, 0)
        self.keys = torch.cat([self.keys, keys], dim=2) if self.length else keys
        self.length = self.keys.shape[2]
        return self.keys[:, :, first:]


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_operations(window: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer, want = Layer(window), Model(window)
    layer.activate_past_recording()
    for _ in range(60):
        action = rng.choice(["update", "update", "update", "crop", "reorder", "repeat", "select", "reset"])
        batch = want.keys.shape[0] if want.length else int(rng.integers(1, 4))
        if action == "update":
            if not want.length:
                layer = Layer(window)
                layer.activate_past_recording()
            keys, values = states(rng, batch, int(rng.choice([1, 1, 3, 50, 300])))
            sizes = layer.get_mask_sizes(keys.shape[2])
            got_k, got_v = layer.update(keys, values)
            expected = want.update(keys)
            assert torch.equal(got_k, expected) and got_v.shape == expected.shape
            assert sizes == (expected.shape[2], want.length - expected.shape[2])
        elif not want.length:
            continue
        elif action == "crop":
            cut = int(rng.integers(0, min(want.length, 4)))
            layer.crop(-cut if rng.random() < 0.5 or not cut else want.length - cut)
            want.keys, want.length = want.keys[:, :, : want.length - cut], want.length - cut
        elif action == "reset":
            layer.reset()
            want = Model(window)
        else:
            rows = {
                "reorder": rng.integers(0, batch, batch),
                "repeat": np.repeat(np.arange(batch), 2),
                "select": rng.integers(0, batch, max(batch - 1, 1)),
            }[action]
            if action == "repeat" and batch > 4:
                continue
            index = torch.from_numpy(rows)
            layer.batch_repeat_interleave(2) if action == "repeat" else layer.batch_select_indices(index)
            want.keys = want.keys.index_select(0, index)
        assert layer.get_seq_length() == want.length


def test_values_follow_keys(rng: np.random.Generator) -> None:
    layer = Layer(30)
    for length in (20, 20, 300, 1):
        keys, _ = states(rng, 2, length)
        got_k, got_v = layer.update(keys, -keys)
        assert torch.equal(got_v, -got_k)
    layer.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(layer.values, -layer.keys)


def test_a_cache_may_outlive_everything() -> None:
    """One that a script still holds when the interpreter ends says nothing."""
    source = "import torch, trivium.hf as h; c = h.Cache(); x = torch.ones(1, 2, 3, 8); kept = c.update(x, x, 0)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# Mistakes


def test_a_crop_past_what_was_let_go_of_is_refused(rng: np.random.Generator) -> None:
    layer = Layer(50)
    for _ in range(20):
        layer.update(*states(rng, 1, 40))
    with pytest.raises(trivium.InvalidArgument, match="let go of") as caught:
        layer.crop(-700)
    assert "activate_past_recording" in caught.value.hint
    assert layer.get_seq_length() == 800


def test_another_batch_is_refused(rng: np.random.Generator) -> None:
    layer = Layer()
    layer.update(*states(rng, 2, 4))
    with pytest.raises(trivium.InvalidArgument, match="batch of 3 after one of 2"):
        layer.update(*states(rng, 3, 4))


def test_gradients_are_refused(rng: np.random.Generator) -> None:
    keys, values = states(rng, 1, 4)
    with pytest.raises(trivium.InvalidArgument, match="no gradient"):
        Layer().update(keys.requires_grad_(), values)


def test_other_kinds_of_layers_are_refused() -> None:
    config = LlamaConfig(**SHARED)
    config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(trivium.InvalidArgument, match="linear_attention") as caught:
        trivium.hf.Cache(config)
    assert "DynamicCache" in caught.value.hint


def test_memory_comes_back(rng: np.random.Generator) -> None:
    import gc

    def live() -> int:
        gc.collect()
        return int(trivium.stats()["memory"]["live"])

    before = live()
    layers = [Layer() for _ in range(3)]
    for layer in layers:
        for _ in range(5):
            layer.update(*states(rng, 1, 200))
    assert live() == before + 6
    del layers, layer
    assert live() == before
