"""Merging through the plugin process: against float64 in numpy, and killed at random moments."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import trivium

KILLS = int(os.environ.get("TRIVIUM_KILLS", "30"))
SEED = 41


def make_series(root: Path, count: int, *, numbers: int = 20_000, tensors: int = 6) -> list[Path]:
    """Float32 checkpoints with an integer buffer, one file each."""
    rng = np.random.default_rng(SEED)
    folders = []
    for k in range(count):
        folder = root / f"step-{100 * (k + 1)}"
        folder.mkdir(parents=True)
        weights = {f"model.layers.{i}.weight": rng.standard_normal((numbers // 100, 100), dtype=np.float32) for i in range(tensors)}
        save_file({**weights, "step": np.array([k], dtype=np.int64)}, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "test"}))
        folders.append(folder)
    return folders


def weights_of(folders: list[Path], name: str) -> np.ndarray:
    return np.stack([load_file(f / "model.safetensors")[name].astype(np.float64) for f in folders])


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_mean_is_that_of_float64(tmp_path):
    folders = make_series(tmp_path, 4)
    report = trivium.merge(folders, tmp_path / "out", method="wma", float64=True)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert report.weights == pytest.approx((0.1, 0.2, 0.3, 0.4)) and report.copied == ("step",)
    for name in (f"model.layers.{i}.weight" for i in range(6)):
        exact = np.tensordot(report.weights, weights_of(folders, name), 1).astype(np.float32)
        np.testing.assert_array_max_ulp(merged[name], exact, maxulp=1)
    assert merged["step"] == [3]


def test_dry_run_tells_the_space(tmp_path):
    report = trivium.merge(make_series(tmp_path, 2), tmp_path / "out", dry_run=True)
    assert report.disk_need > 6 * 20_000 * 4 and report.disk_free > report.disk_need
    assert not (tmp_path / "out").exists()


def test_nan_names_file_and_tensor(tmp_path):
    folders = make_series(tmp_path, 3)
    tensors = load_file(folders[1] / "model.safetensors")
    tensors["model.layers.2.weight"][1, 5] = np.nan
    save_file(tensors, folders[1] / "model.safetensors")
    with pytest.raises(trivium.CheckpointError, match=r"model\.layers\.2\.weight.*step-200/model\.safetensors.*1 NaN"):
        trivium.merge(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = trivium.merge(folders, tmp_path / "out", allow_non_finite=True)
    assert report.non_finite[0]["non_finite"] == [0, 1, 0]


def test_sweep_equals_single_merges(tmp_path):
    folders = make_series(tmp_path / "run", 6)
    result = trivium.sweep(tmp_path / "run", tmp_path / "sweep", n=(2, 3, 6), method=("sma", "wma", ("ema", {"alpha": 0.3})))
    assert len(result.candidates) == 9 and result.bytes_read == sum(t.nbytes for f in folders for t in load_file(f / "model.safetensors").values())
    for c in result.candidates:
        alone = tmp_path / "alone" / c.name
        trivium.merge(folders[-c.n :], alone, method=c.method.removeprefix("merge."), **c.params)
        assert (Path(c.path) / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes(), c.name


def test_sweep_ranks_by_loss(tmp_path):
    folders = make_series(tmp_path / "run", 4)
    target = weights_of(folders, "model.layers.0.weight").mean(0)

    def loss(path: str) -> np.ndarray:
        return ((load_file(Path(path) / "model.safetensors")["model.layers.0.weight"] - target) ** 2).mean(1)

    result = trivium.sweep(tmp_path / "run", n=(2, 4), evaluate=loss, individuals=True)
    assert result.best.name == "sma n=4" and result.best.behind == (0.0, 0.0, 0.0)
    low = [c.gain[1] for c in result.candidates]
    assert min(low) > 0, "every mean of random numbers is closer to the mean than the last one is"
    assert [r.name for r in result.references] == ["last", "step 100", "step 200", "step 300"]
    assert "sma n=4" in result._repr_html_()


def test_similarity_is_that_of_numpy(tmp_path):
    folders = make_series(tmp_path, 4)
    found = trivium.similarity(tmp_path)
    flat = np.concatenate([weights_of(folders, f"model.layers.{i}.weight").reshape(4, -1) for i in range(6)], 1)
    np.testing.assert_allclose(found.gram(), flat @ flat.T, rtol=1e-12)
    np.testing.assert_allclose(found.distance(), np.linalg.norm(flat[:, None] - flat[None], axis=2), rtol=1e-7, atol=1e-4)
    centred = flat - flat.mean(0)
    cosine = centred @ centred.T / np.outer(*[np.linalg.norm(centred, axis=1)] * 2)
    np.testing.assert_allclose(found.cosine(centred=True), cosine, atol=1e-9)
    layer = weights_of(folders, "model.layers.3.weight").reshape(4, -1)
    np.testing.assert_allclose(found.gram("model.layers.3"), layer @ layer.T, rtol=1e-12)


@pytest.mark.parametrize("method", ["sma", "ema", "wma"])
def test_watch_rolls(tmp_path, method):
    """Each merge equals the one computed from scratch; the sum is kept over restarts."""
    run, out = tmp_path / "run", tmp_path / "out"
    made = []
    for count in (3, 4, 9):
        folders = make_series(tmp_path / f"make-{count}", count)
        run.mkdir(exist_ok=True)
        for folder in folders:
            if not (run / folder.name).exists():
                folder.rename(run / folder.name)
        made += trivium.watch(run, out, method=method, n=3, alpha=0.25, anchor=4, settle=0, once=True)
    assert [m.step for m in made] == [100 * (i + 1) for i in range(9)]
    assert os.readlink(out / "latest") == "step-900" and sorted(p.name for p in out.glob("step-*")) == ["step-800", "step-900"]
    if method == "sma":
        assert [m.anchored for m in made] == [True, False, False, False] * 2 + [True]
    all_folders = [run / f"step-{100 * (i + 1)}" for i in range(9)]
    name = "model.layers.1.weight"
    if method == "ema":
        exact = weights_of(all_folders[:1], name)[0]
        for folder in all_folders[1:]:
            exact = 0.75 * exact + 0.25 * weights_of([folder], name)[0]
    else:
        weights = [1 / 3] * 3 if method == "sma" else [1 / 6, 2 / 6, 3 / 6]
        exact = np.tensordot(weights, weights_of(all_folders[-3:], name), 1)
    merged = load_file(out / "latest" / "model.safetensors")
    np.testing.assert_array_max_ulp(merged[name], exact.astype(np.float32), maxulp=1)
    assert merged["step"] == load_file(all_folders[-1] / "model.safetensors")["step"]


@pytest.mark.parametrize("changed", ["root", "method", "n", "alpha", "pattern", "model_key", "config_from", "version"])
def test_watch_refuses_another_merge(tmp_path, changed):
    """Each setting that says what the sum means is that of the merge it goes on with, or an error says how to go on."""
    import shlex

    from typer.testing import CliRunner

    from trivium.cli.app import app

    for name in ("run", "other"):
        make_series(tmp_path / name, 3)
    out = tmp_path / "out"
    settings = {"method": "ema", "n": 2, "alpha": 0.5, "pattern": r"step-(\d+)", "model_key": "app.model", "config_from": tmp_path / "run" / "step-100"}
    shutil.move(tmp_path / "run" / "step-300", tmp_path / "later")
    trivium.watch(tmp_path / "run", out, settle=0, once=True, **settings)
    shutil.move(tmp_path / "later", tmp_path / "run" / "step-300")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != "lock"}
    other = {"method": "sma", "n": 3, "alpha": 0.25, "pattern": None, "model_key": None, "config_from": tmp_path / "run" / "step-200"}
    root = tmp_path / ("other" if changed == "root" else "run")
    if changed == "version":
        state = out / ".trivium-watch" / "state.json"
        held = json.loads(state.read_text())
        held["settings"] = {k: held["settings"][k] for k in ("method", "n", "alpha")}
        state.write_text(json.dumps(held))
        with pytest.raises(trivium.InvalidArgument, match="earlier version, which does not say its config_from, model_key, pattern, root"):
            trivium.watch(root, out, settle=0, once=True, **settings)
        return
    asked = {**settings, **({} if changed == "root" else {changed: other[changed]})}
    with pytest.raises(trivium.InvalidArgument, match=f"holds a merge with {changed} .*, not .*") as refused:
        trivium.watch(root, out, settle=0, once=True, **asked)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != "lock"} == before
    command = shlex.split(refused.value.hint.partition("go on with it: ")[2].partition(";")[0])
    result = CliRunner().invoke(app, [*command[1:], "--settle", "0", "--once"])
    assert result.exit_code == 0 and "step 300" in result.output, result.output
    assert os.readlink(out / "latest") == "step-300"


def test_watch_reads_again_what_was_written_again(tmp_path):
    folders = make_series(tmp_path / "run", 5)
    aside = tmp_path / "aside"
    aside.mkdir()
    for folder in folders[3:]:
        folder.rename(aside / folder.name)
    watch = partial(trivium.watch, tmp_path / "run", tmp_path / "out", n=3, settle=0, once=True)
    watch()
    weights = load_file(folders[0] / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, folders[0] / "model.safetensors", metadata={"format": "pt"})
    (aside / "step-400").rename(folders[3])
    (rolled,) = watch()
    assert rolled.anchored, "what leaves the window is not what is in the sum"
    exact = weights_of(folders[1:4], "model.layers.1.weight").mean(0)
    np.testing.assert_array_max_ulp(load_file(tmp_path / "out" / "latest" / "model.safetensors")["model.layers.1.weight"], exact.astype(np.float32), maxulp=1)
    os.utime(folders[2] / "model.safetensors")
    shutil.rmtree(folders[3])
    (aside / "step-500").rename(folders[4])
    with pytest.raises(trivium.CheckpointError, match="step-300 was written again .*step-400, .* is gone"):
        watch()


def test_watch_begins_anew_what_it_cannot_resume(tmp_path, monkeypatch):
    """Killed in a merge whose plan is another one now, the watcher does not get stuck."""
    folders = make_series(tmp_path / "run", 3)
    folders[2].rename(tmp_path / "later")
    watch = partial(trivium.watch, tmp_path / "run", tmp_path / "out", n=2, settle=0, once=True)
    watch()
    (tmp_path / "out" / "step-1").mkdir()  # somebody's own
    (tmp_path / "later").rename(folders[2])
    roll = importlib.import_module("trivium.pma._watch")._Roll
    monkeypatch.setattr(roll, "_point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        watch()
    monkeypatch.undo()
    os.utime(folders[0] / "model.safetensors")  # so that the next plan is to anchor
    os.utime(folders[2] / "model.safetensors")
    (rolled,) = watch()
    assert rolled.anchored and rolled.step == 300
    exact = weights_of(folders[1:], "model.layers.1.weight").mean(0)
    np.testing.assert_array_max_ulp(load_file(tmp_path / "out" / "latest" / "model.safetensors")["model.layers.1.weight"], exact.astype(np.float32), maxulp=1)
    assert sorted(p.name for p in (tmp_path / "out").glob("step-*")) == ["step-1", "step-200", "step-300"]


def test_recover_takes_checkpoints_before_the_spike(tmp_path):
    from trivium.pma import recover

    folders = make_series(tmp_path / "run", 6)
    report = recover(tmp_path / "run", tmp_path / "out", before=500)
    assert [Path(s).name for s in report.sources] == ["step-200", "step-300", "step-400"]
    with pytest.raises(trivium.InvalidArgument, match="want 3"):
        recover(tmp_path / "run", tmp_path / "other", before=300)
    assert folders


def test_init_copies_or_averages_the_optimizer(tmp_path):
    torch = pytest.importorskip("torch")
    from trivium.pma import init

    folders = make_series(tmp_path / "run", 3)
    for k, folder in enumerate(folders):
        torch.save({"state": {0: {"step": torch.tensor(float(k)), "exp_avg": torch.full((4,), float(k))}}}, folder / "optimizer.pt")
    for policy, moment in (("newest", 2.0), ("averaged", 1.5)):
        init(tmp_path / "run", tmp_path / policy, n=2, optimizer=policy)
        state = torch.load(tmp_path / policy / "optimizer.pt", weights_only=True)["state"][0]
        assert state["step"] == 2 and state["exp_avg"].tolist() == [moment] * 4
    init(tmp_path / "run", tmp_path / "reset", n=2)
    assert not (tmp_path / "reset" / "optimizer.pt").exists()
    with pytest.raises(trivium.InvalidArgument, match=r"holds optimizer\.pt, .* optimizer='reset'.*resume with optimizer='newest' or"):
        init(tmp_path / "run", tmp_path / "averaged", n=2, resume=True)
    init(tmp_path / "run", tmp_path / "averaged", n=2, resume=True, optimizer="averaged")
    init(tmp_path / "run", tmp_path / "averaged", n=2, overwrite=True)
    assert not (tmp_path / "averaged" / "optimizer.pt").exists(), "it belonged to other weights"


HOST = textwrap.dedent("""
    import json, sys, trivium
    sources, out, durable = json.loads(sys.argv[1])
    engine = trivium.Engine()
    trivium.merge(sources[:1], out + ".warm", engine=engine, overwrite=True, durable=False)
    print(json.dumps([p.pid for p in engine.plugins()]), flush=True)
    trivium.merge(sources, out, method="ema", resume=True, durable=durable, engine=engine, shard_bytes=4_000_000)
    print("done", flush=True)
""")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Checkpoints that take long enough to be killed within, and their merge."""
    root = tmp_path_factory.mktemp("large")
    folders = make_series(root / "run", 4, numbers=4_000_000, tensors=12)
    trivium.merge(folders, root / "whole", method="ema", durable=False, shard_bytes=4_000_000)
    return folders, files_of(root / "whole")


@pytest.mark.parametrize("whom", ["plugin", "host"])
def test_killed_and_resumed(tmp_path, large, whom):
    """kill -9 at random moments, of the plugin or of the process above it: a resume gives the same bytes."""
    folders, whole = large
    rng = random.Random(SEED)
    print(f"seed {SEED}, {KILLS} kills of the {whom}")
    landed, crashed, out = 0, 0, tmp_path / "out"
    window = 0.5
    for i in range(KILLS):
        arguments = json.dumps([[str(f) for f in folders], str(out), i % 3 == 0])
        host = subprocess.Popen([sys.executable, "-c", HOST, arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        ready = host.stdout.readline()
        assert ready, host.communicate(timeout=60)[1]
        pids = json.loads(ready)
        begin = time.monotonic()
        time.sleep(rng.random() * window)
        with contextlib.suppress(ProcessLookupError):  # it has finished, and its plugin is gone
            os.kill(pids[0] if whom == "plugin" else host.pid, signal.SIGKILL)
        said, errors = host.communicate(timeout=60)
        finished = "done" in said
        landed += not finished
        window = max(0.05, 0.8 * window) if finished else min(4.0, 1.1 * window + 0.01)
        if whom == "plugin" and not finished:
            assert "PluginCrashed" in errors, errors
            crashed += 1
        if finished or rng.random() < 0.5:  # else it is killed again while it resumes
            trivium.merge(folders, out, method="ema", resume=True, durable=False, shard_bytes=4_000_000)
            assert files_of(out) == whole, f"kill {i} after {time.monotonic() - begin:.3f} s"
            for path in out.iterdir():
                path.unlink()
        elif (out / "model.safetensors.index.json").exists():
            assert files_of(out) == whole, "visible before it was whole"
    assert landed >= KILLS // 4, f"{landed} of {KILLS} kills hit a merge: want a quarter at least"
    if whom == "plugin":
        assert crashed == landed
