"""What patch changes, and that it puts everything back."""

from __future__ import annotations

import copy
from typing import Any

import narwhals as nw
import numpy as np
import pytest
import torch
import trivium
import trivium.hf
from transformers import masking_utils
from trivium.hf.rotary import find_rotary

from tiny_models import build, tokens


@pytest.fixture
def model() -> Any:
    return build("llama")


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **rest: Any) -> torch.Tensor:
    return model(input_ids=ids, **rest).logits


def state(model: Any) -> list[tuple[str, dict[str, Any]]]:
    """Everything an instance carries apart from its tensors and children."""
    return [
        (name, {key: value for key, value in vars(module).items() if not key.startswith(("_parameters", "_buffers", "_modules"))})
        for name, module in model.named_modules()
    ]


def test_exit_restores_everything(model: Any) -> None:
    before, config = state(model), copy.deepcopy(vars(model.config))
    with trivium.hf.patch(model, attention="dense"):
        assert model.config._attn_implementation == "trivium"
    assert state(model) == before
    assert vars(model.config) == config


def test_patch_passes_the_precision_on(model: Any) -> None:
    ids = tokens(2, 70)
    want = logits(model, ids)
    with trivium.hf.patch(model, attention="dense", precision="high"):
        torch.testing.assert_close(logits(model, ids), want, rtol=1e-3, atol=1e-3)
    with trivium.hf.patch(model, attention="dense", precision="medium"), pytest.raises(trivium.InvalidArgument, match="precision"):
        logits(model, ids)


def test_exception_restores_everything(model: Any) -> None:
    before = state(model)
    with pytest.raises(RuntimeError, match="from inside"):
        with trivium.hf.patch(model, attention="dense"):
            raise RuntimeError("from inside")
    assert state(model) == before
    assert model.config._attn_implementation == "eager"


def test_a_failing_patch_changes_nothing(model: Any) -> None:
    before = state(model)
    with pytest.raises(trivium.InvalidArgument, match="layers \\[9\\]"):
        with trivium.hf.patch(model, attention={9: "dense"}):
            pass
    assert state(model) == before


def test_nested_patches(model: Any) -> None:
    ids = tokens(1, 40)
    with trivium.hf.patch(model, attention="dense"):
        with trivium.hf.patch(model, attention="flexprefill"), trivium.hf.trace() as inner:
            logits(model, ids)
        with trivium.hf.trace() as outer:
            logits(model, ids)
    assert {c.report.strategy for c in outer.calls} == {"attention.dense"}
    assert len(inner.calls) == len(outer.calls) == 3
    assert model.config._attn_implementation == "eager"


def test_each_layer_its_own_strategy(model: Any) -> None:
    choice = {0: "dense", 2: {"strategy": "streaming"}}
    with trivium.hf.patch(model, attention=choice), trivium.hf.trace() as trace:
        logits(model, tokens(1, 40))
    assert [c.report.strategy for c in trace.calls] == ["attention.dense", "attention.dense", "attention.streaming"]


def test_register_without_patch() -> None:
    names = trivium.hf.register()
    assert {"trivium_dense", "trivium_flexprefill"} <= set(names)
    ids = tokens(2, 30)
    model = build("llama")
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    want = logits(model, ids, attention_mask=mask)
    model.config._attn_implementation = "trivium_dense"
    got = logits(model, ids, attention_mask=mask)
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=1e-4, rtol=0)


@pytest.mark.skipif(
    not hasattr(masking_utils, "find_packed_sequence_indices"), reason="this transformers does not know packed sequences"
)
def test_packed_sequences(model: Any) -> None:
    lengths = (13, 1, 22)
    parts = [tokens(1, n, seed=n) for n in lengths]
    want = torch.cat([logits(model, part) for part in parts], dim=1)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with trivium.hf.patch(model, attention="dense"):
        got = logits(model, torch.cat(parts, dim=1), position_ids=positions, use_cache=False)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_a_model_that_shares_the_config_is_refused(model: Any) -> None:
    other = type(model)(model.config).eval()
    with trivium.hf.patch(model, attention="dense"):
        with pytest.raises(trivium.InvalidArgument, match="shares its config"):
            logits(other, tokens(1, 8))


def test_gradients_are_refused(model: Any) -> None:
    with trivium.hf.patch(model, attention="dense"):
        with pytest.raises(trivium.InvalidArgument, match="no gradient") as caught:
            model(input_ids=tokens(1, 8))
    assert "no_grad" in caught.value.hint


def test_a_mask_with_gaps_is_refused(model: Any) -> None:
    mask = torch.ones(1, 8, dtype=torch.long)
    mask[0, 3] = 0
    with trivium.hf.patch(model, attention="dense"):
        with pytest.raises(trivium.InvalidArgument, match="gaps"):
            logits(model, tokens(1, 8), attention_mask=mask)


def test_a_ready_made_mask_is_refused(model: Any) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    with trivium.hf.patch(model, attention="dense"):
        with pytest.raises(trivium.InvalidArgument, match="2-d attention mask"):
            logits(model, tokens(1, 8), attention_mask=mask)


def test_not_a_model() -> None:
    with pytest.raises(trivium.InvalidArgument, match="want a transformers model"):
        with trivium.hf.patch(torch.nn.Linear(2, 2), attention="dense"):
            pass


def test_each_layer_type_has_its_own_frequencies() -> None:
    model = build("gemma3-layer-types")
    config, layers = model.config, model.model.layers
    for layer, kind in zip(layers, config.layer_types):
        theta = {"sliding_attention": 10_000.0, "full_attention": 1_000_000.0}[kind]
        want = [theta ** (-2 * i / config.head_dim) for i in range(config.head_dim // 2)]
        rotary = find_rotary(model, layer.self_attn)
        assert rotary is not None
        assert rotary.inv_freq() == pytest.approx(want, rel=1e-5)


def test_latent_attention_has_no_positions_of_ours() -> None:
    """Its rope turns the end of each head; turning the first dimensions would be wrong in silence."""
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    config = DeepseekV3Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, moe_intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        first_k_dense_replace=1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(trivium.InvalidArgument, match="part of each head"):
        with trivium.hf.patch(model, attention="dense", position="string"):
            pass


def test_a_position_plan_is_made_once_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a layer; for a model with two ropes, once for each."""
    made: list[int] = []
    plan = trivium.Position.plan

    def counted(self: trivium.Position, **arguments: Any) -> trivium.PositionPlan:
        made.append(arguments["length"])
        return plan(self, **arguments)

    monkeypatch.setattr(trivium.Position, "plan", counted)
    for family, ropes in (("llama", 1), ("gemma3-layer-types", 2)):
        made.clear()
        model = build(family)
        with trivium.hf.patch(model, attention="dense", position={"strategy": "string", "local": 16}):
            for length in (40, 55):
                logits(model, tokens(1, length))
        assert made == [40] * ropes + [55] * ropes


def test_each_head_its_own_gamma(model: Any) -> None:
    """A list has one value for each query head; the reports follow it."""
    ids = tokens(1, 256)
    choice = {"strategy": "flexprefill", "gamma": [1.0, 0.3, 1.0, 0.3], "min_budget": 0, "block_size": 16}
    with trivium.hf.patch(model, attention={-1: choice, 0: "dense"}), trivium.hf.trace() as trace:
        logits(model, ids)
    densities = np.array([[head.density for head in call.report.heads] for call in trace.calls[1:]])
    assert (densities[:, [0, 2]] > densities[:, [1, 3]] + 0.2).all()



@pytest.mark.parametrize("backend", ["pandas", "polars", "pyarrow"])
def test_a_trace_is_a_table(model: Any, backend: str) -> None:
    pytest.importorskip(backend)
    with trivium.hf.patch(model, attention="streaming"), trivium.hf.trace(probe_rows=8) as trace:
        logits(model, tokens(1, 64))
    table = nw.from_native(trace.table(backend))
    assert str(table.implementation) == backend
    assert table.shape[0] == 3 * 4, "a row for each layer and head"
    assert {"layer", "head", "density", "coverage", "strategy"} <= set(table.columns)
    assert table["layer"].to_list() == sorted([0, 1, 2] * 4)
    report = nw.from_native(trace.calls[0].report.table(backend))
    assert report["density"].to_list() == table["density"].to_list()[:4]


def test_a_trace_proves_bounds(model: Any) -> None:
    patched = trivium.hf.patch(model, attention="streaming", sink=16, recent=16, block_size=16)
    with patched, trivium.hf.trace(probe_rows=32, bound="proven", delta=0.05) as trace:
        logits(model, tokens(1, 128))
    heads = [head for call in trace.prefill for head in call.report.heads]
    assert {(head.bound, head.delta) for head in heads} == {("proven", 0.05)}
    assert all(head.coverage_lower_all <= head.coverage_lower <= head.coverage for head in heads)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(trivium.InvalidArgument, match="pandas"):
        trivium.hf.Trace().table("excel")
