"""Merging through the plugin: numbers, files, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import trivium

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "model_type": "llama"}


def checkpoint(folder: Path, seed: int, dtype: torch.dtype = torch.bfloat16, **extra: torch.Tensor) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    tensors = {
        "model.embed_tokens.weight": torch.randn(33, 8).to(dtype),
        "model.layers.0.mlp.weight": torch.randn(17, 5, 3).to(dtype),
        "model.norm.weight": torch.randn(8).to(dtype),
        "model.step": torch.tensor([seed], dtype=torch.int64),
        **extra,
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps({"seed": seed}))
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    return [checkpoint(tmp_path / f"step-{seed:05d}", seed) for seed in range(4)]


def weights_of(method: str, n: int, **params: Any) -> list[float]:
    i = np.arange(1, n + 1)
    if method == "sma":
        w = np.ones(n)
    elif method == "wma":
        w = i.astype(float)
    else:
        w = params["alpha"] * (1 - params["alpha"]) ** (n - i)
    return list(w / w.sum())


@pytest.mark.parametrize("method,params", [("sma", {}), ("wma", {}), ("ema", {"alpha": 0.2})])
def test_result_is_the_rounded_float64_sum(method: str, params: dict[str, Any], sources: list[Path], tmp_path: Path) -> None:
    report = trivium.merge(sources, tmp_path / "out", method=method, **params)
    want = weights_of(method, 4, **params)
    np.testing.assert_allclose(report.weights, want, rtol=1e-12)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    inputs = [load_file(s / "model.safetensors") for s in sources]
    for name, tensor in merged.items():
        if name == "model.step":
            assert torch.equal(tensor, inputs[-1][name])
            continue
        exact = sum(w * x[name].double() for w, x in zip(want, inputs, strict=True))
        assert tensor.dtype == torch.bfloat16
        # One rounding of a float32 sum: half a unit in the last place, and what float32 lost.
        assert ((tensor.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001 + 1e-7).all()
    assert report.copied == ("model.step",) and report.tensors == 3


def test_linear_weights_and_dtype(sources: list[Path], tmp_path: Path) -> None:
    trivium.merge(sources, tmp_path / "out", method="linear", weights=[0.5, 0.25, 0.25, 0.0], dtype="float32")
    merged = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    inputs = [load_file(s / "model.safetensors")["model.norm.weight"].double() for s in sources]
    exact = 0.5 * inputs[0] + 0.25 * inputs[1] + 0.25 * inputs[2]
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.double(), exact, rtol=1e-6, atol=1e-7)


def test_output_is_a_model_folder(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    trivium.merge(sources, out)
    assert (out / "config.json").read_bytes() == (sources[-1] / "config.json").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == (sources[-1] / "tokenizer.json").read_bytes()
    recipe = json.loads((out / "trivium_merge.json").read_text())
    assert recipe["sources"] == [s.name for s in sources] and recipe["method"] == "merge.sma"
    assert "step-00003" in (out / "README.md").read_text()
    assert not [f for f in out.iterdir() if f.name.startswith(".")]


def test_dry_run_writes_nothing(sources: list[Path], tmp_path: Path) -> None:
    report = trivium.merge(sources, tmp_path / "out", dry_run=True)
    assert report.dry_run and not (tmp_path / "out").exists()


def test_progress(sources: list[Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = trivium.merge(sources, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.bytes_written, report.bytes_written)


def broken(folder: Path, how: str) -> None:
    path = folder / "model.safetensors"
    if how == "truncated":
        os.truncate(path, path.stat().st_size - 7)
        return
    tensors = load_file(path)
    if how == "NaN":
        tensors["model.norm.weight"][3] = float("nan")
    elif how == "shape":
        tensors["model.norm.weight"] = torch.zeros(9, dtype=torch.bfloat16)
    elif how == "missing":
        del tensors["model.norm.weight"]
    elif how == "extra":
        tensors["model.extra"] = torch.zeros(2)
    elif how == "dtype":
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, path)


@pytest.mark.parametrize("how,names", [
    ("truncated", ["step-00001"]),
    ("NaN", ["model.norm.weight"]),
    ("shape", ["step-00001", "model.norm.weight"]),
    ("missing", ["step-00001", "model.norm.weight"]),
    ("extra", ["step-00001", "model.extra"]),
    ("dtype", ["step-00001", "model.norm.weight"]),
])  # fmt: skip
def test_bad_checkpoint(how: str, names: list[str], sources: list[Path], tmp_path: Path) -> None:
    broken(sources[1], how)
    with pytest.raises(trivium.CheckpointError) as caught:
        trivium.merge(sources, tmp_path / "out")
    for name in names:
        assert name in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_non_finite_is_counted_when_allowed(sources: list[Path], tmp_path: Path) -> None:
    broken(sources[1], "NaN")
    report = trivium.merge(sources, tmp_path / "out", allow_non_finite=True)
    assert [(t["name"], t["non_finite"]) for t in report.non_finite] == [("model.norm.weight", [0, 1, 0, 0])]


def test_existing_output_is_kept(sources: list[Path], tmp_path: Path) -> None:
    out = checkpoint(tmp_path / "out", 9)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(trivium.CheckpointError):
        trivium.merge(sources, out)
    assert (out / "model.safetensors").read_bytes() == before
    trivium.merge(sources, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before


def test_output_may_not_be_a_source(sources: list[Path]) -> None:
    with pytest.raises(trivium.InvalidArgument):
        trivium.merge(sources, sources[0], overwrite=True)


MERGE = "import sys, trivium; trivium.merge(sys.argv[2:], sys.argv[1], resume=True)"


@pytest.mark.skipif(shutil.disk_usage("/tmp").free < 2 << 30, reason="needs 2 GiB of disk")
def test_killed_merge_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    big = {f"model.layers.{i}.w": torch.randn(4 << 20).bfloat16() for i in range(20)}
    sources = [checkpoint(tmp_path / f"step-{s}", s, **big) for s in range(2)]
    trivium.merge(sources, tmp_path / "whole")
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", MERGE, str(out), *map(str, sources)])
    while not out.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trivium.merge(sources, out, resume=True)
    for name in ("model.safetensors", "config.json", "trivium_merge.json", "README.md"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
