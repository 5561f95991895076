"""Evaluation: samples, intervals, and runs that go on where they stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trivium
from trivium import eval as evaluation
from trivium.eval.runner import RECORDS, RESULTS

from tiny_models import VOCABULARY, build, tokens


class Digits:
    """A tokenizer for the tiny models: a token for each character."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [2 + ord(c) % (VOCABULARY - 2) for c in text]


PLAN = evaluation.Plan(
    arms=(evaluation.Arm("torch", evaluation.TORCH), evaluation.Arm("dense", "dense")),
    tasks=("passkey", "perplexity"), lengths=(160,), samples=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture(scope="module")
def text() -> list[int]:
    return tokens(1, 4000)[0].tolist()


def test_samples_are_the_same_whatever_else_is_run(text: list[int]) -> None:
    first = evaluation.make_sample("passkey", Digits(), text, 200, 3, seed=1)
    evaluation.make_sample("passkey", Digits(), text, 200, 4, seed=1)
    assert evaluation.make_sample("passkey", Digits(), text, 200, 3, seed=1) == first
    assert evaluation.make_sample("passkey", Digits(), text, 200, 3, seed=2) != first
    assert len(first.ids) == 200


def test_depths_cover_the_window(text: list[int]) -> None:
    depths = [evaluation.make_sample("passkey", Digits(), text, 200, i, 0).about["depth"] for i in range(20)]
    assert np.histogram(depths, bins=5, range=(0, 1))[0].min() >= 3


def test_dense_scores_as_torch_does(model: Any, text: list[int]) -> None:
    sample = evaluation.make_sample("perplexity", Digits(), text, 160, 0, 0)
    found = []
    for arm in PLAN.arms:
        with evaluation.attending(model, arm):
            found.append(evaluation.measure(model, sample)["nll"])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert model.config._attn_implementation == "eager"


def test_a_run_that_was_cut_short_goes_on(model: Any, text: list[int], tmp_path: Path) -> None:
    evaluation.run(PLAN, model, Digits(), text, tmp_path / "whole")
    cut = tmp_path / "cut"

    def stop_after(count: int) -> Any:
        left = iter(range(count))
        return lambda: next(left)

    with pytest.raises(StopIteration):
        evaluation.run(PLAN, model, Digits(), text, cut, step=stop_after(5))
    with (cut / RECORDS).open("a") as log:
        log.write('{"cell": ["passkey", 16')
    evaluation.run(PLAN, model, Digits(), text, cut)
    assert (cut / RESULTS).read_bytes() == (tmp_path / "whole" / RESULTS).read_bytes()
    cells = [tuple(json.loads(line)["cell"]) for line in (cut / RECORDS).read_text().splitlines()]
    assert len(cells) == len(set(cells)) == 12


def test_another_plan_is_refused(model: Any, text: list[int], tmp_path: Path) -> None:
    small = evaluation.Plan(PLAN.arms[:1], ("perplexity",), (64,), samples=1)
    evaluation.run(small, model, Digits(), text, tmp_path)
    with pytest.raises(trivium.InvalidArgument, match="another plan"):
        evaluation.run(PLAN, model, Digits(), text, tmp_path)


def test_paired_intervals_ignore_what_arms_share() -> None:
    rng = np.random.default_rng(0)
    shared, noise = rng.normal(0, 10, 50), rng.normal(0, 0.01, 50)
    found = evaluation.paired(shared + 0.5 + noise, shared)
    assert found.low <= 0.5 <= found.high
    assert found.high - found.low < 0.02


def test_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = evaluation.interval(rng.normal(1.0, 2.0, 40))
        hits += found.low <= 1.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    ("text_", "message"),
    [
        ("arms: [dense]\ntasks: [nothing]\nlengths: [64]", "tasks"),
        ("arms: [dense, dense]\ntasks: [passkey]\nlengths: [64]", "name of its own"),
        ("arms: [{position: string}]\ntasks: [passkey]\nlengths: [64]", "key 'attention'"),
        ("arms: [dense]\ntasks: [passkey]\nlengths: []", "lengths"),
        ("arm: [dense]", "want the keys"),
    ],
)
def test_plans_that_make_no_sense(text_: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text_)
    with pytest.raises(trivium.InvalidArgument, match=message):
        evaluation.Plan.from_file(path)


@pytest.mark.parametrize(("key", "value", "says"), [
    ("samples", "many", "samples 'many': want a whole number"), ("samples", 0, "samples 0: want 1 or more"),
    ("lengths", 4096, "lengths 4096: want a list"), ("lengths", [64, True], r"lengths\[1\] True: want a whole number"),
    ("tasks", ["needle", "nothing"], r"tasks\[1\] 'nothing': want one of agreement, "), ("arms", "dense", "arms 'dense': want a list"),
    ("dtype", "int8", "dtype 'int8': want one of auto, float32"), ("device", 0, "device 0: want text"), ("chat", "yes", "want true or false or nothing"),
    ("threads", 0, "threads 0: want 1 or more"), ("new_tokens", -1, "new_tokens -1: want 0 or more"),
    ("lenghts", [64], "unknown keys .*lenghts.*: want the keys arms, tasks, lengths"),
])  # fmt: skip
def test_the_schema_names_the_key_and_what_is_allowed(key: str, value: Any, says: str) -> None:
    from trivium.eval.plan import from_mapping

    with pytest.raises(trivium.InvalidArgument, match=says):
        from_mapping({"arms": ["dense"], "tasks": ["needle"], "lengths": [64], key: value})


def test_the_schema_has_every_key() -> None:
    from dataclasses import fields

    known = set(evaluation.schema()["properties"])
    assert known == {f.name for f in (*fields(evaluation.Plan), *fields(evaluation.Subject))}


def test_published_plans_fit_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the check against a second reader of schemas needs jsonschema")
    import yaml

    validator = jsonschema.Draft202012Validator(evaluation.schema())
    plans = sorted((Path(__file__).parents[1] / "bench" / "eval").glob("*.yaml"))
    assert plans
    for path in plans:
        validator.validate(yaml.safe_load(path.read_text()))
    assert not validator.is_valid({"arms": [{"attention": "dense", "postion": "string"}], "tasks": ["needle"], "lengths": [64]})


def test_arms_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "arms:\n"
        "  - torch\n"
        "  - {attention: {strategy: flexprefill, gamma: 0.9}, position: string}\n"
        "tasks: [passkey]\nlengths: [1024, 2048]\nsamples: 4\n"
    )
    plan = evaluation.Plan.from_file(path)
    assert [arm.name for arm in plan.arms] == ["torch", "flexprefill(gamma=0.9) + string"]
    assert len(list(plan.cells())) == 2 * 2 * 4
