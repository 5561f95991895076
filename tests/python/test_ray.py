"""Merging on a local Ray cluster: the bytes of a local merge, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import trivium

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    # A worker process is a child of the cluster, which inherits how this one finds trivium.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folders = []
    for seed in range(3):
        folder = tmp_path_factory.mktemp("run") / f"step-{seed}"
        folder.mkdir()
        torch.manual_seed(seed)
        tensors = {f"model.layers.{i}.w": torch.randn(1 << 20).bfloat16() for i in range(24)}
        save_file({**tensors, "ids": torch.tensor([seed])}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        folders.append(folder)
    return folders


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    trivium.merge(sources, out, method="ema", shard_bytes=5 << 20)
    return files_of(out)


def test_same_bytes(cluster, sources, whole, tmp_path):
    seen: list[tuple[int, int]] = []
    report = trivium.merge(sources, tmp_path / "out", method="ema", shard_bytes=5 << 20, ray=True, progress=lambda *done: seen.append(done))
    assert files_of(tmp_path / "out") == whole
    assert report.tensors == 24 and report.copied == ("ids",) and report.resumed == 0
    assert seen[-1][0] == seen[-1][1]
    again = trivium.merge(sources, tmp_path / "out", method="ema", shard_bytes=5 << 20, ray=True, resume=True)
    assert again.resumed == 25, "it was there already"


def workers(task: str) -> list[int]:
    """Processes that run a task of this name, as Ray calls them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(f"ray::{task}".encode()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_killed_workers_change_nothing(cluster, sources, whole, tmp_path):
    killed, over = [], threading.Event()

    def kill() -> None:
        while not over.wait(0.05) and len(killed) < 3:
            for pid in workers("part"):
                if pid not in killed and len(killed) < 3:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        trivium.merge(sources, tmp_path / "out", method="ema", shard_bytes=5 << 20, ray=True)
    finally:
        over.set()
        killer.join()
    assert killed, "no worker was there to be killed"
    assert files_of(tmp_path / "out") == whole


def test_errors_come_back(cluster, sources, tmp_path):
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    save_file({**{f"model.layers.{i}.w": torch.full((1 << 20,), float("nan")).bfloat16() for i in range(24)}, "ids": torch.tensor([9])}, spoiled / "model.safetensors")
    begin = time.monotonic()
    with pytest.raises(trivium.CheckpointError, match="spoiled.*NaN"):
        trivium.merge([*sources, spoiled], tmp_path / "out", ray=True)
    assert time.monotonic() - begin < 60, "an error that stays is not tried again"
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_urls_need_a_folder_that_all_machines_share(tmp_path):
    with pytest.raises(trivium.Unsupported, match="cache_dir"):
        trivium.merge(["s3://bucket/step-1"], tmp_path / "out", ray=True)


@pytest.mark.parametrize(
    ("words", "full"),
    [
        (["A", "B", "--ray", "--out", "D"], ["A", "B", "--ray", "here", "--out", "D"]),
        (["A", "--out", "D", "--ray"], ["A", "--out", "D", "--ray", "here"]),
        (["--ray", "A", "B", "--out", "D"], ["--ray", "here", "A", "B", "--out", "D"]),
        (["--ray", "10.0.0.1:6379", "A", "--out", "D"], ["--ray", "10.0.0.1:6379", "A", "--out", "D"]),
        (["--ray", "s3://b/A", "--out", "D"], ["--ray", "here", "s3://b/A", "--out", "D"]),
        (["--ray", "auto", "A", "--out", "D"], ["--ray", "auto", "A", "--out", "D"]),
    ],
)
def test_the_address_may_be_left_out(words, full):
    from trivium.cli.merging import _with_address

    assert _with_address(words) == full
