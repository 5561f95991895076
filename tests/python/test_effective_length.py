"""Effective length, and S and W that are found, saved and used."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trivium
import trivium.hf
from trivium import effective, eval as evaluation, saved_positions
from trivium.effective import search
from trivium.effective.arms import arms
from trivium.effective.study import run_plan
from trivium.eval.bootstrap import Interval
from trivium.eval.files import RECORDS

DATA = Path(__file__).parents[1] / "data" / "retrieval-tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "model"))


@pytest.fixture(scope="module")
def target() -> effective.Target:
    return effective.open_target(str(DATA))


def test_a_model_without_tokenizer_is_asked_to_copy(target: effective.Target) -> None:
    assert target.task == "copy" and target.train_length == 1024 and target.folder == DATA


def test_copy_repeats_its_needle_at_the_end(target: effective.Target) -> None:
    text = target.loaded.text
    depths = []
    for index in range(40):
        sample = evaluation.make_sample("copy", None, text, 200, index, 0)
        assert len(sample.ids) == 200 and sample.scored == 4
        at = 200 - 8 - sample.about["distance"]
        assert sample.ids[at : at + 8] == sample.ids[-8:] and sample.ids[at] == 0
        depths.append(sample.about["depth"])
    assert min(depths) < 0.1 and max(depths) > 0.9
    assert evaluation.make_sample("copy", None, text, 200, 3, 0) == evaluation.make_sample("copy", None, text, 200, 3, 0)
    with pytest.raises(trivium.InvalidArgument, match="length 12"):
        evaluation.make_sample("copy", None, text, 12, 0, 0)


def test_arms_have_readable_names_and_string_its_paper_defaults() -> None:
    made = arms(("rope", "string", "ntk:variant=aware,factor=2.0", "string:shift=300,local=32", "dca"), 1024)
    assert [arm.name for arm in made] == ["rope", "string S=341 W=128", "ntk x2", "string S=300 W=32", "dca"]
    assert made[0].position is None
    assert made[1].position == {"strategy": "string", "shift": 341, "local": 128}
    assert made[2].position == {"strategy": "ntk", "variant": "aware", "factor": 2.0}


def test_a_study_is_paired_and_goes_on_where_it_stopped(target: effective.Target, tmp_path: Path) -> None:
    """Beyond the trained length STRING retrieves where rope does not; the same prompts go to every arm."""
    chosen = arms(("rope", "string:shift=512,local=32"), 1024)
    steps = []

    def stop_after_seven() -> None:
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt

    options: dict[str, Any] = dict(arms=chosen, samples=10, text_samples=1, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        effective.measure(target, [1400], step=stop_after_seven, **options)
    before = (tmp_path / "copy" / RECORDS).read_text().splitlines()
    study = effective.measure(target, [1400], **options)
    after = (tmp_path / "copy" / RECORDS).read_text().splitlines()
    assert after[: len(before)] == before and len(before) == 7 and len(after) == 20
    prompts: dict[int, set[str]] = {}
    for line in map(json.loads, after):
        prompts.setdefault(line["cell"][2], set()).add(line["found"]["prompt"])
    assert all(len(seen) == 1 for seen in prompts.values()) and len(prompts) == 10
    string = study.row("string S=512 W=32", 1400)
    assert study.row("rope", 1400).difference == Interval(0.0, 0.0, 0.0, 10)
    assert string.difference.low > 0 and string.exact.mean >= 0.5
    assert len(string.depths) == 5 and all(0 <= share <= 1 for share in string.depths)
    assert string.nll is not None and 2 < string.nll.mean < 4
    saved = json.loads((tmp_path / "study.json").read_text())
    assert saved["effective_length"]["string S=512 W=32"] in (0, 1400)


def test_effective_length_stops_at_the_first_gap() -> None:
    def row(length: int, share: float) -> effective.Row:
        found = Interval(share, share, share, 4)
        return effective.Row("rope", length, found, found, None, None, None, (share,) * 5)

    study = effective.Study("m", "copy", 1024, 0.85, 4, (row(256, 1.0), row(512, 0.9), row(768, 0.5), row(1024, 0.9)))
    assert study.effective_length("rope") == 512


def test_heat_maps_show_every_cell() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    found = Interval(0.5, 0.4, 0.6, 4)
    rows = tuple(
        effective.Row(arm, length, found, found, None, None, None, (0.0, 0.25, 0.5, 1.0, math.nan))
        for length in (512, 1024, 1536)
        for arm in ("rope", "string", "dca", "ntk x2", "yarn x2")
    )
    figure = effective.Study("m", "copy", 1024, 0.85, 4, rows).plot()
    drawn = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in drawn] == ["rope", "string", "dca", "ntk x2", "yarn x2"]
    assert all(len(ax.texts) == 12 and len(ax.get_lines()) == 1 for ax in drawn)


def test_the_grid_keeps_w_within_s() -> None:
    assert search.grid(1024) == ((256, 32), (256, 128), (341, 32), (341, 128), (512, 32), (512, 128))
    assert search.grid(96) == ((32, 32), (48, 32))
    with pytest.raises(trivium.InvalidArgument, match="grid"):
        search.grid(16)


def test_a_search_is_saved_and_used(target: effective.Target, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    choice = effective.choose(target, [1000], samples=6, text_samples=1, points=[(341, 128), (512, 32)], out=tmp_path / "search")
    assert {(t.shift, t.local) for t in choice.tried} == {(341, 128), (512, 32)}
    assert choice.tried[0].exact.mean == max(t.exact.mean for t in choice.tried)
    assert choice.gain.mean == pytest.approx(choice.tried[0].exact.mean - choice.rope.mean)
    saved_positions.save(folder, choice.saved())
    assert saved_positions.load(folder) == choice.saved()
    model = effective.open_target(str(folder)).loaded.model
    with caplog.at_level("INFO", "trivium.hf.patching"), trivium.hf.patch(model, attention="dense", position="string"):
        assert f"S {choice.shift}, W {choice.local}, found for this model" in caplog.text, "a changed default is told"
    for position, want in (
        ("string", {"shift": choice.shift, "local": choice.local, "train_length": 1024}),
        (trivium.position("string", shift=200), {"shift": 200, "train_length": 1024}),
        (trivium.position("string", train_length=900), {"train_length": 900}),
        ("rerope", {"train_length": 1024}),
    ):
        with trivium.hf.patch(model, attention="dense", position=position):
            assert model.model.layers[0].self_attn._trivium_settings.position.params == want


def test_nothing_saved_is_the_default(target: effective.Target, tmp_path: Path) -> None:
    assert saved_positions.load(tmp_path) is None
    with trivium.hf.patch(target.loaded.model, attention="dense", position="string"):
        assert target.loaded.model.model.layers[0].self_attn._trivium_settings.position.params == {"train_length": 1024}


def test_what_was_found_for_another_length_is_not_used(folder: Path) -> None:
    saved_positions.save(folder, saved_positions.Saved(700, 64, 2048, True))
    model = effective.open_target(str(folder)).loaded.model
    with trivium.hf.patch(model, attention="dense", position="string"):
        assert "shift" not in model.model.layers[0].self_attn._trivium_settings.position.params


@pytest.mark.parametrize("text", [
    "", "[]", '{"edition": 2, "string": {}}', '{"edition": 1, "string": {"shift": 3}}',
    '{"edition": 1, "string": {"shift": 3, "local": 9, "train_length": 5, "helps": true}}',
    '{"edition": 1, "string": {"shift": 3.5, "local": 1, "train_length": 5, "helps": true}}',
])  # fmt: skip
def test_a_spoiled_file_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / saved_positions.FILE).write_text(text)
    with pytest.raises(trivium.CheckpointError, match=saved_positions.FILE):
        saved_positions.load(tmp_path)


def test_another_plan_in_the_folder_is_refused(target: effective.Target, tmp_path: Path) -> None:
    run_plan(evaluation.Plan(arms(("rope",), 1024), ("copy",), (64,), 1), target, tmp_path)
    with pytest.raises(trivium.InvalidArgument, match="another plan"):
        run_plan(evaluation.Plan(arms(("rope",), 1024), ("copy",), (64,), 2), target, tmp_path)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "trivium", "effective-length", *arguments], capture_output=True, text=True, check=False)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    arguments = (
        str(folder), "--lengths", "128,256", "--samples", "3", "--text-samples", "1", "--position", "rope", "--position", "ntk:factor=2.0",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "effective length" in done.stdout and "search, on other prompts" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("rope  ", "ntk x2  ")) and len(line) <= 80]
    assert len(rows) == 4 and all(line.count("]") == 3 for line in rows), done.stdout  # a row is a line, also in 80 columns
    found = saved_positions.load(folder)
    assert found is not None and found.train_length == 1024
    again = command(*arguments, "--output", "json")
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert {row["arm"] for row in result["study"]["rows"]} == {"rope", "ntk x2", f"string S={found.shift} W={found.local}"}
    assert (tmp_path / "out" / "heatmap.png").is_file()


@pytest.mark.parametrize(("arguments", "message"), [
    (("nowhere",), "config.json"), ((str(DATA), "--lengths", "a"), "whole numbers"), ((str(DATA), "--position", "sting", "--no-search"), "string"),
    ((str(DATA), "--threshold", "2", "--no-search"), "threshold"),
])  # fmt: skip
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = command(*arguments, "--out", str(tmp_path))
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
