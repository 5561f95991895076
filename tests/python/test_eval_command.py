"""``trivium eval`` as a process: killed and resumed, over Ray, and its report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import trivium
from trivium import eval as evaluation
from trivium.eval import svg
from trivium.eval.arms import parse_all
from trivium.eval.bootstrap import Interval
from trivium.eval.files import RECORDS, RESULTS, SAMPLES, TABLE, TIMES
from trivium.eval.metrics import verdict
from trivium.eval.page import REPORT

from test_eval_tasks import BOOK
from tiny_models import VOCABULARY, build

LASTING = (RESULTS, TABLE, SAMPLES)
CELLS = 4 * 4 * 2 * 3
PLAN = """
model: {folder}/model
text: {folder}/book.txt
dtype: float32
threads: 1
probe_rows: 8
samples: 3
lengths: [600, 800]
tasks: [passkey, perplexity_by_position, agreement, ruler.niah_single_1]
arms:
  - dense
  - grid:
      attention: {{strategy: streaming, sink: 16, recent: 64, block_size: 16}}
      position: [rope, {{strategy: linear, factor: 2.0}}]
  - torch
"""


def tokenizer() -> Any:
    """A token for each printable character, in the vocabulary of the tiny models."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<end>": 1, **{chr(code): code - 30 for code in range(32, 127)}}
    assert len(vocabulary) == VOCABULARY
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>", clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("eval")
    build("llama").save_pretrained(made / "model")
    tokenizer().save_pretrained(made / "model")
    (made / "book.txt").write_text(BOOK)
    (made / "plan.yaml").write_text(PLAN.format(folder=made))
    return made


def start(folder: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trivium", "eval", str(folder / "plan.yaml"), "--out", str(out), *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    # A shell that runs its jobs in the background makes them deaf to Ctrl-C, and they their children.
    hear = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hear)


def finish(process: subprocess.Popen[str], timeout: float = 400) -> str:
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nothing interrupted."""
    finish(start(folder, folder / "whole"))
    return folder / "whole"


def cells(out: Path) -> int:
    return (out / RECORDS).read_text().count("\n") if (out / RECORDS).exists() else 0


def same(out: Path, other: Path) -> bool:
    return all((out / name).read_bytes() == (other / name).read_bytes() for name in LASTING)


def test_killed_and_resumed_gives_the_same_files(folder: Path, whole: Path) -> None:
    out = folder / "killed"
    for reached, how in ((20, signal.SIGKILL), (55, signal.SIGINT)):
        process = start(folder, out)
        deadline = time.monotonic() + 300
        while cells(out) < reached and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (130 if how is signal.SIGINT else -how), errors
        assert reached <= cells(out) < CELLS and not (out / RESULTS).exists()
    finish(start(folder, out))
    assert cells(out) == CELLS == cells(whole)
    assert same(out, whole)


def test_four_ray_workers_give_the_same_tables(folder: Path, whole: Path) -> None:
    pytest.importorskip("ray", reason="needs trivium[ray]")
    out = folder / "ray"
    finish(start(folder, out, "--ray-workers", "4"))
    assert cells(out) == CELLS
    assert same(out, whole)


def test_four_workers_give_the_same_tables(folder: Path, whole: Path) -> None:
    out = folder / "workers"
    process = start(folder, out, "--workers", "4")
    while cells(out) < CELLS // 4 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    finish(start(folder, out, "--workers", "3"))
    assert cells(out) == CELLS
    assert same(out, whole)
    assert {row["processes"] for row in json.loads((out / TIMES).read_text())} <= {3, 4}
    assert {row["processes"] for row in json.loads((whole / TIMES).read_text())} == {1}


def test_a_worker_that_dies_is_said_so(folder: Path) -> None:
    out = folder / "dies"
    process = start(folder, out, "--workers", "2")
    while cells(out) < 8 and process.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this kernel does not list a process's children")
    workers = [int(pid) for pid in children.read_text().split() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "a worker process ended with status -9" in errors and "fewer --workers" in errors


def test_a_mistake_in_a_worker_is_the_commands(folder: Path, tmp_path: Path) -> None:
    process = start(folder, tmp_path, "--workers", "2", "--arm", "flexprefil")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "flexprefill" in errors and "Traceback" not in errors


def test_a_finished_run_is_not_run_again(folder: Path, whole: Path) -> None:
    before = (whole / RECORDS).read_bytes()
    rows = json.loads(finish(start(folder, whole, "-o", "json")))
    assert (whole / RECORDS).read_bytes() == before
    assert len(rows) == 4 * 4 * 2 and {row["arm"] for row in rows} >= {"dense", "torch"}
    assert rows[0]["metrics"]["exact"]["samples"] == 3


def test_every_arm_saw_the_same_prompts(whole: Path) -> None:
    seen: dict[tuple[Any, ...], set[str]] = {}
    for line in pq.read_table(whole / SAMPLES).to_pylist():
        seen.setdefault((line["task"], line["length"], line["index"]), set()).add(line["prompt"])
    assert len(seen) == 4 * 2 * 3 and all(len(prompts) == 1 for prompts in seen.values())


def test_tables_agree_and_pairs_cancel(whole: Path) -> None:
    rows = json.loads((whole / RESULTS).read_text())
    lines = pq.read_table(whole / TABLE).to_pylist()
    for row in rows:
        for metric, found in row["metrics"].items():
            (line,) = [x for x in lines if (x["task"], x["length"], x["arm"], x["metric"], x["part"])
                       == (row["task"], row["length"], row["arm"], metric, None)]  # fmt: skip
            assert (line["mean"], line["difference"]) == (found["mean"], row["differences"][metric]["mean"])
        if row["arm"] == "torch" and row["task"] == "agreement":
            assert row["metrics"]["agreement"]["mean"] == 1.0 and row["metrics"]["kl"]["mean"] < 1e-6
        if row["arm"].startswith("streaming"):
            assert row["density"] < 0.6 and row["coverage"] < 1.0
    assert {x["part"] for x in lines} == {None, *range(16)}
    clocks = json.loads((whole / TIMES).read_text())
    assert len(clocks) == len(rows) and all(c["ttft_s"] > c["attention_s"] > 0 for c in clocks)


def test_the_report_needs_nothing_else(whole: Path) -> None:
    import xml.dom.minidom

    page = (whole / REPORT).read_text()
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert set(re.findall(r"https?://[^\"' <]+", page)) == {"http://www.w3.org/2000/svg"}
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for picture in pictures:
        xml.dom.minidom.parseString(picture)
    assert len(pictures) >= 4 + 4 + 2
    for name in ("dense", "torch", "streaming", "linear", "passkey", "ruler.niah_single_1"):
        assert name in page


def test_another_dtype_is_another_plan(folder: Path, whole: Path) -> None:
    process = start(folder, whole, "--dtype", "bfloat16")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "another plan" in errors and "Traceback" not in errors


@pytest.mark.parametrize(("arguments", "says"), [
    (("--task", "rular"), "rular"),
    (("--arm", "flexprefil"), "flexprefill"),
    (("--arm", "dense:gamma"), "id:param=value"),
    (("--model", "/nowhere"), "/nowhere"),
    (("--text", "/nowhere"), "/nowhere"),
    (("--device", "tpu"), "cpu, cuda"),
    (("--dtype", "int8"), "float32"),
    (("--samples", "0"), "samples 0"),
])  # fmt: skip
def test_mistakes_have_no_traceback(folder: Path, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    process = start(folder, tmp_path, *arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert says in errors and "Traceback" not in errors


def test_grids_are_products() -> None:
    arms = parse_all([
        "dense",
        "flexprefill:gamma=0.95,rule=paper+string:shift=512",
        {"grid": {"attention": [{"strategy": "flexprefill", "gamma": [0.8, 0.9]}, "probe"], "position": ["rope", "string"]}},
    ])  # fmt: skip
    assert [arm.name for arm in arms] == [
        "dense", "flexprefill:gamma=0.95,rule=paper+string:shift=512", "flexprefill(gamma=0.8)", "flexprefill(gamma=0.9)", "probe",
        "flexprefill(gamma=0.8) + string", "flexprefill(gamma=0.9) + string", "probe + string",
    ]  # fmt: skip
    assert arms[1].attention == {"strategy": "flexprefill", "gamma": 0.95, "rule": "paper"}
    assert arms[1].position == {"strategy": "string", "shift": 512}
    assert arms[2].position is None
    with pytest.raises(trivium.InvalidArgument, match="grid"):
        parse_all([{"grid": {"positions": ["rope"]}}])


def test_groups_of_tasks() -> None:
    from trivium.eval.plan import from_mapping

    plan, subject = from_mapping({"arms": ["dense"], "tasks": ["ruler", "passkey"], "lengths": [4096], "device": "cuda"})
    assert len(plan.tasks) == 14 and subject.device == "cuda" and subject.model == "smollm2"


@pytest.mark.parametrize(("metric", "low", "high", "samples", "want"), [
    ("exact", -0.3, -0.1, 20, "worse"), ("nll", -0.3, -0.1, 20, "better"), ("nll", 0.1, 0.3, 20, "worse"), ("nll", -0.1, 0.3, 20, ""),
    ("kl", 0.1, 0.3, 4, ""), ("exact", 0.0, 0.0, 20, ""),
])  # fmt: skip
def test_verdicts(metric: str, low: float, high: float, samples: int, want: str) -> None:
    assert verdict(metric, Interval((low + high) / 2, low, high, samples)) == want


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0, 1), (-0.037, 0.112), (3.1, 3.4), (0, 25000), (-1e-6, 2e-6)):
        found = svg.ticks(low, high)
        assert 2 <= len(found) <= 9 and all(low - 1e-12 <= t <= high + 1e-12 for t in found)
    assert svg.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]


def test_resumed_runs_use_the_cached_prompts(tmp_path: Path) -> None:
    from trivium.eval.prompts import Prompts

    from test_eval_tasks import CORPUS, TOKENIZER

    first = Prompts(TOKENIZER, CORPUS, 0, tmp_path)
    made = first.get("ruler.qa_2", 6000, 1)
    assert Prompts(None, CORPUS, 0, tmp_path).get("ruler.qa_2", 6000, 1) == made
    assert evaluation.make_sample("ruler.qa_2", TOKENIZER, CORPUS, 6000, 1, 0) == made
