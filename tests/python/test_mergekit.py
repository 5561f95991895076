"""mergekit's configurations as Trivium reads them."""

from __future__ import annotations

import pytest

import trivium
from trivium.mergekit import load, translate


def test_linear_weights_are_normalised_as_mergekit_does():
    models = [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": 3}}]
    recipe = translate({"merge_method": "linear", "models": models, "dtype": "float32", "out_dtype": "bfloat16"})
    assert (recipe.sources, recipe.method, recipe.weights, recipe.dtype) == (("a", "b"), "linear", (0.25, 0.75), "bfloat16")
    kept = translate({"merge_method": "linear", "models": models, "parameters": {"normalize": False}})
    assert kept.weights == (1.0, 3.0)


def test_ties_leaves_the_base_out_of_the_sources():
    recipe = translate({
        "merge_method": "ties", "base_model": "base", "parameters": {"density": 0.5, "lambda": 0.9, "int8_mask": True}, "dtype": "bfloat16",
        "models": [{"model": "base"}, {"model": "a", "parameters": {"weight": 0.3}}, {"model": "b", "parameters": {"weight": 0.7}}],
    })  # fmt: skip
    assert (recipe.sources, recipe.base) == (("a", "b"), "base")
    assert recipe.params == {"density": 0.5, "scale": 0.9, "normalise": True, "source_weights": [0.3, 0.7]}
    assert any("not rounded" in d for d in recipe.differences) and any("int8_mask" in d for d in recipe.differences)


def test_slerp_goes_from_the_base():
    recipe = translate({"merge_method": "slerp", "base_model": "b", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"t": 0.3}})
    assert recipe.sources == ("b", "a") and recipe.params == {"t": 0.3} and recipe.base is None


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"merge_method": "passthrough", "models": []}, "passthrough"),
        ({"merge_method": "linear", "slices": []}, "slices"),
        ({"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"t": [0, 1]}}, "gradients"),
        ({"merge_method": "ties", "base_model": "z", "models": [{"model": m, "parameters": {"density": d}} for m, d in (("a", 0.1), ("b", 0.2))]},
         "density differs"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused(config, match):
    with pytest.raises(trivium.Unsupported, match=match):
        translate(config)


def test_yaml_file(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "merge.yml"
    path.write_text("merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1.0}\n  - model: b\ndtype: float16\n")
    assert load(path).weights == (0.5, 0.5)
