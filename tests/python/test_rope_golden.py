"""The frozen rotary frequencies of transformers, against the installed one.

The frozen values come from transformers' own functions run in float64, so that our
strategies can be held to them far below the rounding of float32.

``python tests/python/test_rope_golden.py --update`` writes the file again.
"""

import argparse
import contextlib
import json
import pathlib

import pytest
import torch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "position" / "transformers.json"

LENGTH = 20_000
LONG = [1 + 0.1 * i for i in range(32)]
SHORT = [1 + 0.01 * i for i in range(32)]

# name of the case: strategy, model (head_dim, theta, partial, trained), sequence length, parameters
CASES = {
    "default": ("rope", (128, 5e5, 1.0, 8192), LENGTH, {}),
    "default partial": ("rope", (64, 1e4, 0.25, 4096), LENGTH, {}),
    "linear": ("linear", (64, 1e4, 1.0, 4096), LENGTH, {"factor": 4.0}),
    "linear partial": ("linear", (128, 1e6, 0.5, 4096), LENGTH, {"factor": 2.5}),
    "dynamic long": ("dynamic", (64, 1e4, 1.0, 4096), LENGTH, {"factor": 2.0}),
    "dynamic short": ("dynamic", (64, 1e4, 1.0, 4096), 1000, {"factor": 2.0}),
    "yarn": ("yarn", (128, 1e6, 1.0, 32768), LENGTH, {"factor": 4.0}),
    "yarn untruncated": ("yarn", (64, 1.5e5, 1.0, 4096), LENGTH, {"factor": 32.0, "truncate": False}),
    "yarn mscale": ("yarn", (64, 1e4, 1.0, 4096), LENGTH, {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5}),
    "yarn factor": ("yarn", (64, 1e4, 0.5, 4096), LENGTH, {"factor": 8.0, "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0}),
    "llama3": ("llama3", (128, 5e5, 1.0, 8192), LENGTH, {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "llama3 small": ("llama3", (64, 5e5, 1.0, 8192), LENGTH, {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "longrope long": ("longrope", (64, 1e4, 1.0, 4096), LENGTH, {"factor": 32.0, "long_factor": LONG, "short_factor": SHORT}),
    "longrope short": ("longrope", (64, 1e4, 1.0, 4096), 4096, {"factor": 32.0, "long_factor": LONG, "short_factor": SHORT}),
    "longrope factor": ("longrope", (64, 1e4, 1.0, 4096), LENGTH, {"factor": 32.0, "long_factor": LONG, "short_factor": SHORT, "attention_factor": 1.5}),
}


def transformers_values(strategy, model, length, params):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    head_dim, theta, partial, trained = model
    kind = "default" if strategy == "rope" else strategy
    rope = {"rope_type": kind, "rope_theta": theta, "partial_rotary_factor": partial, **params}
    if strategy not in ("rope", "linear", "dynamic"):
        rope["original_max_position_embeddings"] = trained
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=trained,
        rope_parameters=rope,
    )
    if strategy == "rope":
        from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

        inv_freq, factor = GPTNeoXRotaryEmbedding.compute_default_rope_parameters(config, "cpu")
    else:
        inv_freq, factor = ROPE_INIT_FUNCTIONS[strategy](config, "cpu", seq_len=length)
    return [float(f) for f in inv_freq], float(factor)


@contextlib.contextmanager
def double():
    """Let code that asks torch for float32 get float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        for name in ("float", "float32"):
            patch.setattr(torch, name, torch.float64)
        yield


def cases(precision=double):
    for name, (strategy, model, length, params) in CASES.items():
        with precision():
            inv_freq, factor = transformers_values(strategy, model, length, params)
        head_dim, theta, partial, trained = model
        yield {
            "name": name,
            "strategy": strategy,
            "head_dim": head_dim,
            "rope_theta": theta,
            "rotary_dim": int(head_dim * partial),
            "train_length": trained,
            "length": length,
            "params": params,
            "inv_freq": inv_freq,
            "attention_factor": factor,
        }


@pytest.mark.parametrize(("precision", "tolerance"), [(double, 1e-12), (contextlib.nullcontext, 1e-6)], ids=["float64", "as it is"])
def test_frozen_values_are_those_of_transformers(precision, tolerance):
    frozen = json.loads(GOLDEN.read_text())
    for want, got in zip(frozen, cases(precision), strict=True):
        for field in ("inv_freq", "attention_factor"):
            assert got.pop(field) == pytest.approx(want.pop(field), rel=tolerance)
        assert got == want


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the golden file")
    if parser.parse_args().update:
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases()) + "\n]\n")
