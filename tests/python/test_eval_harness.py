"""lm-evaluation-harness under Trivium, on a task file that lies here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trivium

from tiny_models import VOCABULARY, build, tokens

pytest.importorskip("lm_eval", reason="needs trivium[harness]")

TASK = """
task: trivium_tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {{metric: acc}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    documents = [
        {"text": words(tokens(1, 120, seed)[0].tolist()), "choices": [" w3 w4", " w5 w6 w7", " w8"], "label": seed % 3}
        for seed in range(6)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    (tmp_path / "trivium_tiny.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    return tmp_path


def words(ids: list[int]) -> str:
    return " ".join(f"w{n}" for n in ids)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w2"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", eos_token="w1", unk_token="w2")


def evaluate(folder: Path, model: str, **arguments: Any) -> tuple[dict[str, Any], list[float]]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    import trivium.eval.harness  # noqa: F401

    tiny = build("llama")
    found = lm_eval.simple_evaluate(
        model=model, model_args={"pretrained": tiny, "tokenizer": tokenizer(), **arguments}, tasks=["trivium_tiny"],
        task_manager=TaskManager(include_path=str(folder)), bootstrap_iters=0, batch_size=2,
    )  # fmt: skip
    likelihoods = [float(answer[0]) for s in found["samples"]["trivium_tiny"] for answer in s["filtered_resps"]]
    return found["results"]["trivium_tiny"], likelihoods


def test_dense_answers_as_the_harness_does(folder: Path) -> None:
    theirs, their_likelihoods = evaluate(folder, "hf")
    ours, our_likelihoods = evaluate(folder, "trivium", attention="dense")
    assert ours["acc,none"] == theirs["acc,none"]
    assert our_likelihoods == pytest.approx(their_likelihoods, abs=1e-3)
    assert len(our_likelihoods) == 18


def test_parameters_reach_the_strategies(folder: Path) -> None:
    from trivium.eval.harness import TriviumLM

    model = TriviumLM(
        pretrained=build("llama"), tokenizer=tokenizer(), attention="streaming", sink=16, recent=16, block_size=16,
        position="linear", factor=2.0,
    )  # fmt: skip
    with trivium.trace() as traced:
        model._model_call(tokens(1, 256))
    model.close()
    assert traced.density is not None and traced.density < 0.5
    assert traced.calls[0].report.position == "position.linear"
    assert model.model.config._attn_implementation == "eager"


def test_an_unknown_strategy_says_which_there_are() -> None:
    from trivium.eval.harness import TriviumLM

    with pytest.raises(trivium.UnknownStrategy, match="flexprefil"):
        TriviumLM(pretrained=build("llama"), tokenizer=tokenizer(), attention="flexprefil")
