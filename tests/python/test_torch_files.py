"""PyTorch's files as sources: the same tensors as torch.load gives, and nothing run."""

from __future__ import annotations

import json
import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import trivium

SEED = int(os.environ.get("TRIVIUM_SEED", "20261126"))
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    whole = torch.randn(6, 4)
    return OrderedDict(
        bf16=torch.randn(5, 7).bfloat16(), f16=torch.randn(9).half(), f32=whole, part=whole[2:4], f64=torch.randn(2, 2, dtype=torch.float64),
        f8=torch.randn(8).to(torch.float8_e4m3fn), parameter=torch.nn.Parameter(torch.randn(3, 1, 2)), scalar=torch.tensor(1.5),
        ids=torch.arange(seed, seed + 4), mask=torch.tensor([True, False]), u16=torch.zeros(3, dtype=torch.uint16), empty=torch.zeros(0, 4),
    )  # fmt: skip


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone().contiguous() for name, t in tensors.items()}


def check(out: Path, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """The mean of a and b; integers are b's."""
    merged = load_file(out / "model.safetensors") if (out / "model.safetensors").exists() else {}
    for shard in out.glob("model-*-of-*.safetensors"):
        merged |= load_file(shard)
    assert merged.keys() == a.keys()
    for name, got in merged.items():
        if not got.is_floating_point():
            assert torch.equal(got, b[name]), name
            continue
        want = (0.5 * a[name].detach().double() + 0.5 * b[name].detach().double()).to(got.dtype)
        assert got.dtype == a[name].dtype
        np.testing.assert_array_max_ulp(got.float().numpy(), want.float().numpy(), maxulp=1 if got.dtype != torch.float64 else 1)


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model"])
def test_single_file(tmp_path: Path, wrap: str) -> None:
    folders = []
    for seed in (1, 2):
        folder = tmp_path / f"step-{seed}"
        folder.mkdir()
        tensors: Any = state(seed)
        wrapped = tensors if wrap == "plain" else {"epoch": 3, "optimizer": {"lr": 0.1, "names": ["a"], "betas": (0.9, 2**40)}, wrap: tensors}
        torch.save(wrapped, folder / "pytorch_model.bin")
        (folder / "config.json").write_text(CONFIG)
        folders.append(folder)
    trivium.merge(folders, tmp_path / "out")
    check(tmp_path / "out", state(1), state(2))
    assert (tmp_path / "out" / "config.json").read_text() == CONFIG
    assert [c.step for c in trivium.series(tmp_path)] == [1, 2]
    # The file itself is a source too, and may be merged with safetensors.
    save_file(plain(state(2)), tmp_path / "other.safetensors")
    os.rename(folders[0] / "pytorch_model.bin", tmp_path / "step-1.pt")
    trivium.merge([tmp_path / "step-1.pt", tmp_path / "other.safetensors"], tmp_path / "mixed")
    check(tmp_path / "mixed", state(1), state(2))


def test_sharded(tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2):
        folder = tmp_path / f"step-{seed}"
        folder.mkdir()
        tensors = plain(state(seed))
        names, weight_map = list(tensors), {}
        for i in range(3):
            file = f"pytorch_model-{i + 1:05d}-of-00003.bin"
            torch.save({n: tensors[n] for n in names[i::3]}, folder / file)
            weight_map.update(dict.fromkeys(names[i::3], file))
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        folders.append(folder)
    trivium.merge(folders, tmp_path / "out")
    check(tmp_path / "out", state(1), state(2))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)}


class Command:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("executed",))


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "bad": Command()}, tmp_path / "a.pt")
    with pytest.raises(trivium.CheckpointError, match=r"a\.pt.*\"bad\".*mkdir"):
        trivium.merge([tmp_path / "a.pt"], tmp_path / "out")
    torch.save({"optimizer": Command(), "state_dict": {"w": torch.ones(2)}}, tmp_path / "b.pt")
    trivium.merge([tmp_path / "b.pt"], tmp_path / "out")
    assert not (tmp_path / "executed").exists()


def test_refused_with_how_to_convert(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3, 2).t()}, tmp_path / "view.pt")
    torch.save({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    for name, match in (("view", "contiguous"), ("complex", "ComplexFloat"), ("old", "before 1.6"), ("model", "state_dict")):
        with pytest.raises(trivium.CheckpointError, match=match):
            trivium.merge([tmp_path / f"{name}.pt"], tmp_path / "out")


def test_mutations_give_the_same_tensors_or_an_error(tmp_path: Path) -> None:
    """Nothing is accepted that torch.load reads otherwise."""
    path, random_ = tmp_path / "m.pt", random.Random(SEED)
    torch.save({n: t for n, t in plain(state(1)).items() if t.is_floating_point() and t.dtype != torch.float8_e4m3fn}, path)
    original = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (pickle,) = [i for i in archive.infolist() if i.filename.endswith("data.pkl")]
    accepted = 0
    for i in range(200):
        data = bytearray(original)
        for _ in range(random_.choice([1, 2, 4])):
            where = random_.choice([random_.randrange(len(data)), pickle.header_offset + random_.randrange(900), len(data) - 1 - random_.randrange(600)])
            data[where] = random_.randrange(256)
        path.write_bytes(data if i % 5 else data[: random_.randrange(len(data))])
        try:
            trivium.merge([path], tmp_path / f"out{i}", allow_non_finite=True, durable=False, float64=True)
        except trivium.TriviumError:
            continue
        got = load_file(tmp_path / f"out{i}" / "model.safetensors")
        try:
            want = torch.load(path, weights_only=True, map_location="cpu")
        except Exception:  # torch checks less in some places and more in others, such as checksums of what we never read
            continue
        accepted += 1
        assert got.keys() == want.keys(), f"seed {SEED}, mutation {i}"
        for name, t in want.items():
            assert torch.equal(got[name].nan_to_num(), t.nan_to_num()), f"seed {SEED}, mutation {i}: {name}"
    print(f"{accepted} of 200 accepted by both")
