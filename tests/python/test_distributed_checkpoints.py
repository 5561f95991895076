"""Folders of torch.distributed.checkpoint as sources: the bytes that torch's own loader gives."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.multiprocessing.spawn import spawn

import trivium

SEED = int(os.environ.get("TRIVIUM_SEED", "20261126"))
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
pytestmark = pytest.mark.filterwarnings("ignore")


def tensors(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "model.embed.weight": torch.randn(13, 6, generator=g).bfloat16(), "model.layers.0.w": torch.randn(7, 6, generator=g),
        "model.layers.0.norm": torch.randn(1, 5, generator=g).bfloat16(), "model.layers.1.w": torch.randn(9, 4, 3, generator=g),
        "model.layers.1.mixed": torch.randn(4, 5, 3, generator=g).half(), "model.layers.1.long": torch.randn(600, 40, generator=g),
        "model.f64": torch.randn(5, dtype=torch.float64, generator=g), "ids": torch.arange(seed, seed + 5), "scalar": torch.tensor(0.5 + seed),
    }  # fmt: skip


def theirs(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that torch's loader finds, flat, by its keys joined with dots."""
    state: dict[str, Any] = {}
    _load_state_dict(state, storage_reader=dcp.FileSystemReader(folder), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    flat: dict[str, torch.Tensor] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            flat[prefix] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)

    walk("", state)
    return flat


def merged(out: Path) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        result |= load_file(file)
    return result


def same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
        assert torch.equal(got[name].reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8)), name


def one(folder: Path, **options: Any) -> trivium.MergeReport:
    """Merge a checkpoint alone, which copies it."""
    return trivium.merge([folder], folder.with_name(folder.name + "-merged"), config_from="none", float64=True, **options)


@pytest.mark.parametrize("prefix", ["", "model", "state_dict", "app.model"])
def test_one_process(tmp_path: Path, prefix: str) -> None:
    state: dict[str, Any] = tensors(1)
    for key in reversed(prefix.split(".") if prefix else []):
        state = {key: state}
    (state["app"] if prefix == "app.model" else state)["optim"] = {"state": {"w": {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    state["step"] = 7
    dcp.save(state, checkpoint_id=tmp_path / "step-7", no_dist=True)
    report = one(tmp_path / "step-7")
    same(merged(tmp_path / "step-7-merged"), tensors(1))
    dot = prefix + "." if prefix else ""
    same({dot + name: t for name, t in merged(tmp_path / "step-7-merged").items()}, {k: v for k, v in theirs(tmp_path / "step-7").items() if "optim" not in k})
    assert any("1 tensors" in w and ("optim" in w or "app" in w) for w in report.warnings), report.warnings
    assert not (tmp_path / "step-7-merged" / "config.json").exists()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _rank(rank: int, world: int, port: int, out: str, seeds: list[int]) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    flat = init_device_mesh("cpu", (world,))
    how = {
        "model.layers.0.w": [Shard(0), Shard(1)], "model.layers.0.norm": [Shard(0), Replicate()], "model.layers.1.w": [Shard(0), Shard(0)],
        "model.layers.1.mixed": [Shard(2), Shard(1)], "model.layers.1.long": [Shard(1), Shard(0)],
    }  # fmt: skip
    for seed in seeds:
        state = {}
        for name, tensor in tensors(seed).items():
            if name in how:
                state[name] = distribute_tensor(tensor, mesh, how[name])
            else:
                state[name] = distribute_tensor(tensor, flat, [Shard(0)]) if tensor.ndim else tensor
        dcp.save({"model": state, "optim": {"moment": state["model.layers.0.w"]}, "step": seed}, checkpoint_id=f"{out}/step-{seed}")
        if seed == seeds[0]:
            dcp.save(state, storage_writer=HuggingFaceStorageWriter(f"{out}/hf-{seed}", save_distributed=True))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 10), torch.nn.LayerNorm(10), torch.nn.Linear(10, 7, bias=False))
    fully_shard(model[0], mesh=flat)
    fully_shard(model, mesh=flat)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 12)).sum().backward()
    optimizer.step()
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"app": {"model": weights, "optim": moments}}, checkpoint_id=f"{out}/fsdp")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of four ranks on a mesh of two axes, and one of FSDP with its optimizer."""
    out = tmp_path_factory.mktemp("four")
    spawn(_rank, args=(4, _free_port(), str(out), [1, 2, 3]), nprocs=4)
    return out


def test_four_ranks(four: Path) -> None:
    report = one(four / "step-1")
    same(merged(four / "step-1-merged"), tensors(1))
    want = {name.removeprefix("model."): t for name, t in theirs(four / "step-1").items() if name.startswith("model.")}
    same(merged(four / "step-1-merged"), want)
    assert any("1 tensors" in w and "in optim " in w for w in report.warnings), report.warnings


def test_fsdp_with_its_optimizer(four: Path) -> None:
    report = one(four / "fsdp")
    want = {name.removeprefix("app.model."): t for name, t in theirs(four / "fsdp").items() if name.startswith("app.model.")}
    assert len(want) == 5
    same(merged(four / "fsdp-merged"), want)
    assert any("app" in w for w in report.warnings), report.warnings
    one(four / "fsdp", model_key="app.optim.state", overwrite=True)
    assert any(name.endswith("exp_avg") for name in merged(four / "fsdp-merged")), "the key that was named"
    with pytest.raises(trivium.CheckpointError, match=r"no tensors below ema.*there are: app"):
        one(four / "fsdp", model_key="ema")


def test_files_of_the_hugging_face_writer(four: Path) -> None:
    assert not list((four / "hf-1").glob("*.json")), "there is no index"
    one(four / "hf-1")
    same(merged(four / "hf-1-merged"), tensors(1))
    (four / "hf-1" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(trivium.CheckpointError, match="does not fill|no chunk"):
        one(four / "hf-1", overwrite=True)


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sma", {}), ("linear", {"weights": [0.2, 0.3, 0.5]}), ("karcher", {}), ("modelstock", {"base": 0}), ("ties", {"base": 0, "density": 0.5}),
    ("dare", {"base": 0, "density": 0.5, "seed": 3}), ("breadcrumbs", {"base": 0, "density": 0.5}), ("sce", {"base": 0}), ("slerp", {"sources": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params"), METHODS, ids=[m for m, _ in METHODS])
def test_every_method_gives_the_bytes_of_whole_files(four: Path, tmp_path: Path, method: str, params: dict[str, Any]) -> None:
    params, whole, cut = dict(params), [], [four / f"step-{seed}" for seed in (1, 2, 3)]
    for seed in (1, 2, 3):
        (tmp_path / f"step-{seed}").mkdir()
        save_file(tensors(seed), tmp_path / f"step-{seed}" / "model.safetensors")
        whole.append(tmp_path / f"step-{seed}")
    n = params.pop("sources", 3)
    if "base" in params:
        params["base"] = cut[0]
        cut, whole = cut[1:], whole[1:]
    trivium.merge(whole[:n], tmp_path / "whole", method=method, **params)
    trivium.merge(cut[:n], tmp_path / "cut", method=method, config_from="none", **params)
    same(merged(tmp_path / "cut"), merged(tmp_path / "whole"))
    trivium.merge([cut[0], *whole[1:n]], tmp_path / "both", method=method, threads=1, **params)
    same(merged(tmp_path / "both"), merged(tmp_path / "whole"))


def test_series_sweep_and_similarity(four: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(CONFIG)
    (tmp_path / "config" / "tokenizer.json").write_text("{}")
    found = trivium.series(four, pattern=r"^step-(\d+)$")
    assert found.steps == [1, 2, 3]
    trivium.sweep(found, tmp_path / "sweep", n=[2, 3], method=["sma"], config_from=tmp_path / "config")
    made = sorted((tmp_path / "sweep").iterdir())
    assert len(made) == 2
    for folder in made:
        assert (folder / "config.json").read_text() == CONFIG and (folder / "tokenizer.json").exists()
    trivium.merge(found.paths, tmp_path / "mean", config_from="none")
    same(merged(made[1]), merged(tmp_path / "mean"))
    assert trivium.similarity(found).cosine().shape == (3, 3)


def test_configuration_must_come_from_somewhere(four: Path, tmp_path: Path) -> None:
    with pytest.raises(trivium.CheckpointError, match=r"step-2 holds no config\.json.*config_from"):
        trivium.merge([four / "step-1", four / "step-2"], tmp_path / "out")
    with pytest.raises(trivium.CheckpointError, match=r"nowhere holds no config\.json"):
        trivium.merge([four / "step-1"], tmp_path / "out", config_from=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
    (four / "step-2" / "config.json").write_text(CONFIG)
    try:
        trivium.merge([four / "step-1", four / "step-2"], tmp_path / "out")
    finally:
        (four / "step-2" / "config.json").unlink()
    assert (tmp_path / "out" / "config.json").read_text() == CONFIG


def test_accelerate_keeps_it_in_a_folder_below(tmp_path: Path) -> None:
    for seed in (100, 200):
        dcp.save({"model": tensors(seed)}, checkpoint_id=tmp_path / f"checkpoint-{seed}" / "pytorch_model_fsdp_0", no_dist=True)
        dcp.save({"optimizer": {"m": torch.ones(3)}}, checkpoint_id=tmp_path / f"checkpoint-{seed}" / "optimizer_0", no_dist=True)
        (tmp_path / f"checkpoint-{seed}" / "config.json").write_text(CONFIG)
    found = trivium.series(tmp_path)
    assert found.steps == [100, 200]
    trivium.merge(found.paths[1:], tmp_path / "out", float64=True)
    same(merged(tmp_path / "out"), tensors(200))
    assert (tmp_path / "out" / "config.json").read_text() == CONFIG


class Command:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("executed",))


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dcp.save({"model": {"w": torch.ones(2)}, "step": 1}, checkpoint_id=tmp_path / "a", no_dist=True)
    metadata = pickle.loads((tmp_path / "a" / ".metadata").read_bytes())
    metadata.planner_data = {"w": Command()}
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(trivium.CheckpointError, match=r"a/\.metadata.*mkdir"):
        one(tmp_path / "a")
    assert not (tmp_path / "executed").exists()


def test_mutations_give_the_same_tensors_or_an_error(four: Path, tmp_path: Path) -> None:
    """Nothing is accepted that torch's loader reads otherwise."""
    random_, folder = random.Random(SEED), tmp_path / "m"
    folder.mkdir()
    original = {p.name: p.read_bytes() for p in (four / "step-1").iterdir()}
    accepted = refused = 0
    for i in range(150):
        for name, data in original.items():
            (folder / name).write_bytes(data)
        name = random_.choice([".metadata", *original])
        spoiled = bytearray(original[name])
        for _ in range(random_.choice([1, 2, 4])):
            spoiled[random_.randrange(len(spoiled))] = random_.randrange(256)
        (folder / name).write_bytes(spoiled if i % 6 else spoiled[: random_.randrange(len(spoiled))])
        try:
            trivium.merge([folder], tmp_path / f"out{i}", allow_non_finite=True, durable=False, float64=True, config_from="none")
        except trivium.TriviumError:
            refused += 1
            continue
        got = merged(tmp_path / f"out{i}")
        try:
            want = {name.removeprefix("model."): t for name, t in theirs(folder).items() if name.startswith("model.")}
        except (Exception, CheckpointException):  # torch looks at more in some places, such as checksums of what we never read
            continue
        accepted += 1
        assert got.keys() == want.keys(), f"seed {SEED}, mutation {i}"
        for name, t in want.items():
            assert torch.equal(got[name].nan_to_num(), t.nan_to_num()), f"seed {SEED}, mutation {i}: {name}"
    print(f"accepted by both {accepted}, refused {refused}")
    assert accepted > 5 and refused > 20, "the mutations are one-sided"
