"""Checkpoints behind URLs: staged, merged, uploaded with the entry point last; the bytes of a merge of paths."""

from __future__ import annotations

import functools
import http.server
import importlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trivium
from trivium import _likeness, _remote

fsspec = pytest.importorskip("fsspec")
CONFIG = json.dumps({"model_type": "llama"})


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def make(folder: Path, seed: int, shards: int = 2) -> Path:
    """Write a sharded checkpoint with side files, and files that no merge needs."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    weights = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({f"w{i}": torch.randn(100, 20).bfloat16()}, folder / name)
        weights[f"w{i}"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (folder / "config.json").write_text(CONFIG)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"o" * 10_000)
    return folder


@pytest.fixture
def run(tmp_path: Path, memory: Any) -> list[Path]:
    """Three checkpoints here, and the same at memory://run."""
    folders = [make(tmp_path / "run" / f"step-{100 * k}", k) for k in (1, 2, 3)]
    memory.put(str(tmp_path / "run"), "/run", recursive=True)
    return folders


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "trivium_merge.json"}


def remote_files(memory: Any, folder: str) -> dict[str, bytes]:
    return {p.rpartition("/")[2]: memory.cat_file(p) for p in memory.find(folder) if not p.endswith("trivium_merge.json")}


URLS = ["memory://run/step-100", "memory://run/step-200", "memory://run/step-300"]


def test_inputs_are_staged_once(run: list[Path], memory: Any, tmp_path: Path) -> None:
    trivium.merge(run, tmp_path / "want")
    seen: list[tuple[int, int]] = []
    report = trivium.merge(URLS, tmp_path / "out", cache_dir=tmp_path / "cache", progress=lambda *done: seen.append(done))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "want")
    assert report.sources == tuple(URLS) and any("staged in" in w for w in report.warnings)
    needed = sum(p.stat().st_size for f in run for p in f.iterdir() if p.name != "optimizer.pt")
    assert report.downloaded == needed and (needed, needed) in seen
    assert not list((tmp_path / "cache").rglob("optimizer.pt")), "only what is needed is copied"
    assert {p.parent.name for p in (tmp_path / "cache").rglob("config.json")} == {f.name for f in run}
    again = trivium.merge(URLS, tmp_path / "again", cache_dir=tmp_path / "cache")
    assert again.downloaded == 0 and again.recipe == report.recipe
    # Another version of one file, of the same size, and a staged file that was cut.
    changed = bytearray(memory.cat_file("/run/step-200/model-00002-of-00002.safetensors"))
    changed[-1] ^= 1
    memory.pipe_file("/run/step-200/model-00002-of-00002.safetensors", bytes(changed))
    (cut,) = (tmp_path / "cache").rglob("step-300/model-00001-of-00002.safetensors")
    cut.write_bytes(cut.read_bytes()[:-1])
    third = trivium.merge(URLS, tmp_path / "third", cache_dir=tmp_path / "cache")
    assert third.downloaded == len(changed) + cut.stat().st_size
    (run[1] / "model-00002-of-00002.safetensors").write_bytes(changed)
    trivium.merge(run, tmp_path / "want3")
    assert files_of(tmp_path / "third") == files_of(tmp_path / "want3")


def test_file_urls_are_paths(run: list[Path], tmp_path: Path) -> None:
    report = trivium.merge([f"file://{f}" for f in run], f"file://{tmp_path}/out")
    trivium.merge(run, tmp_path / "want")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "want") and report.downloaded == 0


def test_other_kinds_of_sources(run: list[Path], memory: Any, tmp_path: Path) -> None:
    """A single file, one of torch.save, a distributed checkpoint and configuration from elsewhere."""
    import torch.distributed.checkpoint as dcp

    torch.save({"w": torch.arange(4.0)}, tmp_path / "a.pt")
    memory.put_file(str(tmp_path / "a.pt"), "/files/a.pt")
    dcp.save({"model": {"w": torch.arange(4.0) + 2}}, checkpoint_id=tmp_path / "checkpoint-9" / "pytorch_model_fsdp_0", no_dist=True)
    memory.put(str(tmp_path / "checkpoint-9"), "/files/checkpoint-9", recursive=True)
    assert trivium.series("memory://files").steps == [9]
    trivium.merge(["memory://files/a.pt", "memory://files/checkpoint-9"], tmp_path / "out", cache_dir=tmp_path / "cache", config_from=URLS[0])
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], torch.arange(4.0) + 1)
    assert (tmp_path / "out" / "config.json").read_text() == CONFIG and (tmp_path / "out" / "tokenizer.json").exists()


def test_http(run: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    handler = functools.partial(Quiet, directory=str(tmp_path / "run"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        dry = trivium.merge([f"{at}/{f.name}/" for f in run], tmp_path / "out", cache_dir=tmp_path / "cache", dry_run=True)
        assert dry.tensors == 2 and not (tmp_path / "cache").exists(), "this server gives whole files where ranges are asked for"
        monkeypatch.setattr(_likeness, "WHOLE", 0)
        with pytest.raises(trivium.Unsupported, match="ranges"):
            trivium.merge([f"{at}/{f.name}/" for f in run], tmp_path / "out", cache_dir=tmp_path / "cache", dry_run=True)
        report = trivium.merge([f"{at}/{f.name}/" for f in run], tmp_path / "out", cache_dir=tmp_path / "cache")
        with pytest.raises(trivium.CheckpointError, match="step-900"):
            trivium.merge([f"{at}/step-900/"], tmp_path / "none", cache_dir=tmp_path / "cache")
        server.shutdown()
    trivium.merge(run, tmp_path / "want")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "want") and report.downloaded > 0


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_series_of_a_url(run: list[Path], tmp_path: Path) -> None:
    found = trivium.series("memory://run")
    assert found.steps == [100, 200, 300] and all(p.startswith("memory://") for p in found.paths)
    picked = found.select(2)
    trivium.merge(picked.paths, tmp_path / "out", cache_dir=tmp_path / "cache")
    trivium.merge(run[1:], tmp_path / "want")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "want")
    assert not list((tmp_path / "cache").rglob("step-100")), "what is not picked is not copied"
    assert trivium.similarity(found, cache_dir=tmp_path / "cache").cosine().shape == (3, 3)
    trivium.sweep(found, tmp_path / "sweep", n=[2], method=["sma"], cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "sweep").iterdir())) == 1


def test_names_of_files_are_those_of_the_checkpoint_package(memory: Any, tmp_path: Path) -> None:
    """No name of a checkpoint's files is written twice, and what one finds in a folder the other finds too."""
    import random

    names = _remote._names()
    source = Path(_remote.__file__).read_text()
    known = [*names.all_entries, names.metadata, names.ranks, names.nested, names.cut_shards, names.shards, *names.side, names.trainer]
    assert len(known) > 20 and not [name for name in known if f'"{name}"' in source]
    files = [
        *names.all_entries, names.metadata, f"{names.nested}/{names.metadata}", f"{names.nested}/__0_0.distcp", "__0_0.distcp", "optimizer.pt", "readme",
        "model-00001-of-00002.safetensors", "shard-00001-model-00001-of-00001.safetensors", "shard-00001.safetensors", "Model.safetensors", "config.json",
    ]  # fmt: skip
    draw = random.Random(7)
    for step in range(80):
        for name in draw.sample(files, draw.randint(1, 3)):
            path = tmp_path / "run" / f"step-{step}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    memory.put(str(tmp_path / "run"), "/names", recursive=True)
    steps = trivium.series(tmp_path / "run").steps
    assert trivium.series("memory://names").steps == steps and 10 < len(steps) < 70


def test_a_merge_that_is_there_is_resumed(run: list[Path], memory: Any, tmp_path: Path) -> None:
    """A job that is started again after its end has nothing to do; another one is refused."""
    first = trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache")
    again = trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache", resume=True)
    assert again.recipe == first.recipe and again.resumed == again.tensors == 2 and again.uploaded == 0 and not again.dry_run
    with pytest.raises(trivium.CheckpointError, match="already holds"):
        trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache", method="wma", resume=True)
    other = trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache", method="wma", resume=True, overwrite=True)
    assert other.uploaded > 0 and other.resumed == 0


def test_output_is_uploaded_with_the_index_last(run: list[Path], memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trivium.merge(run, tmp_path / "want")
    order: list[str] = []
    put = type(memory).put_file
    monkeypatch.setattr(type(memory), "put_file", lambda self, here, to, **k: (order.append(to), put(self, here, to, **k))[1])
    report = trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache")
    assert remote_files(memory, "/merged/mean") == files_of(tmp_path / "want")
    assert order[-1].endswith("model.safetensors.index.json") and len(order) == len(set(order))
    assert report.out == "memory://merged/mean" and report.uploaded > 0 and not list((tmp_path / "cache").rglob("*.safetensors"))
    with pytest.raises(trivium.CheckpointError, match="already holds"):
        trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache")
    memory.pipe_file("/merged/mean/model-00009-of-00009.safetensors", b"stale")
    memory.pipe_file("/merged/mean/notes.txt", b"mine")
    trivium.merge(run[1:], "memory://merged/mean", cache_dir=tmp_path / "cache", overwrite=True)
    trivium.merge(run[1:], tmp_path / "want2")
    assert remote_files(memory, "/merged/mean") == {**files_of(tmp_path / "want2"), "notes.txt": b"mine"}


def test_a_broken_upload_goes_on(run: list[Path], memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, sent = type(memory).put_file, []

    def breaking(self: Any, here: str, to: str, **options: Any) -> None:
        sent.append(to)
        if len(sent) == 4:
            raise OSError("connection reset")
        put(self, here, to, **options)

    monkeypatch.setattr(type(memory), "put_file", breaking)
    with pytest.raises(trivium.CheckpointError, match="connection reset"):
        trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache")
    assert not memory.exists("/merged/mean/model.safetensors.index.json"), "nobody finds half a checkpoint"
    arrived = sent[:3]
    report = trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache", resume=True)
    assert report.resumed == 2, "the merge was there already"
    assert not set(sent[4:]) & set(arrived), "what had arrived was not sent again"
    trivium.merge(run, tmp_path / "want")
    assert remote_files(memory, "/merged/mean") == files_of(tmp_path / "want")


def test_an_upload_that_loses_bytes_is_an_error(run: list[Path], memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(self: Any, here: str, to: str, **_: Any) -> None:
        self.pipe_file(to, Path(here).read_bytes()[:-1])

    monkeypatch.setattr(type(memory), "put_file", short)
    with pytest.raises(trivium.CheckpointError, match="arrived with"):
        trivium.merge(run, "memory://merged/mean", cache_dir=tmp_path / "cache")
    assert not memory.exists("/merged/mean/model.safetensors.index.json")


def test_downloads_are_checked(run: list[Path], memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = type(memory).get_file

    def short(self: Any, remote: str, here: str, **options: Any) -> None:
        get(self, remote, here, **options)
        if remote.endswith("model-00002-of-00002.safetensors"):
            Path(here).write_bytes(Path(here).read_bytes()[:-1])

    monkeypatch.setattr(type(memory), "get_file", short)
    with pytest.raises(trivium.CheckpointError, match=r"memory://run/step-100: model-00002-of-00002\.safetensors came with"):
        trivium.merge(URLS, tmp_path / "out", cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("model-00002*")) and not list((tmp_path / "cache").rglob("part"))
    monkeypatch.undo()
    report = trivium.merge(URLS[:1], tmp_path / "out", cache_dir=tmp_path / "cache")
    assert 0 < report.downloaded < sum(p.stat().st_size for p in run[0].iterdir()) - 10_000, "what was whole stays"


@pytest.fixture
def counted(memory: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read of a range or a file; whole copies are errors."""
    cat, read = type(memory).cat_file, []
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, **k: (data := cat(self, path, **k), read.append(len(data)))[0])
    monkeypatch.setattr(type(memory), "get_file", lambda *_, **__: pytest.fail("a dry run has copied a file"))
    return read


def test_a_dry_run_reads_headers_only(memory: Any, counted: list[int], tmp_path: Path) -> None:
    """Every kind of source: the plan of a dry run of paths, without the weights and without a trace."""
    import torch.distributed.checkpoint as dcp

    tensors = {f"layers.{i}.w": torch.full((500, 500), float(i)) for i in range(6)}
    config = {"config_from": "memory://kinds/whole"}
    (whole := tmp_path / "kinds" / "whole").mkdir(parents=True)
    save_file(tensors, whole / "model.safetensors")
    (whole / "config.json").write_text(CONFIG)
    (bin := tmp_path / "kinds" / "bin").mkdir()
    torch.save(tensors, bin / "pytorch_model.bin")
    (bin / "config.json").write_text(CONFIG)
    torch.save({"model": tensors, "optimizer": {"m": torch.zeros(1000)}}, tmp_path / "kinds" / "run.pt")
    dcp.save({"model": tensors, "optim": {"m": torch.zeros(1000)}}, checkpoint_id=tmp_path / "kinds" / "ranks" / "pytorch_model_fsdp_0", no_dist=True)
    memory.put(str(tmp_path / "kinds"), "/kinds", recursive=True)
    cache = tmp_path / "cache"
    for name, options in (("whole", {}), ("bin", {}), ("run.pt", config), ("ranks", config)):
        want = trivium.merge([tmp_path / "kinds" / name, whole], tmp_path / "out", dry_run=True)
        counted.clear()
        got = trivium.merge([f"memory://kinds/{name}", "memory://kinds/whole"], tmp_path / "out", cache_dir=cache, dry_run=True, **options)
        assert (got.tensors, got.disk_need, got.weights, got.copied) == (want.tensors, want.disk_need, want.weights, want.copied), name
        assert got.dry_run and got.recipe == "" and got.downloaded == 0 and not any("remote-headers" in w for w in got.warnings)
        assert sum("would be copied" in w for w in got.warnings) == len({name, "whole"})
        assert sum(counted) < 400_000, f"{name}: the weights are 6 MB"
    assert not cache.exists() and not (tmp_path / "out").exists()
    with pytest.raises(trivium.CheckpointError, match="names none|no tensors|there are"):
        trivium.merge(["memory://kinds/ranks"], tmp_path / "out", cache_dir=cache, dry_run=True, model_key="nosuch", **config)


def test_a_dry_run_finds_what_is_wrong(run: list[Path], memory: Any, counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors name URLs, as those of a merge."""
    def refused(match: str) -> None:
        with pytest.raises(trivium.CheckpointError, match=match) as error:
            trivium.merge(URLS, tmp_path / "out", cache_dir=tmp_path / "cache", dry_run=True)
        assert "remote-headers" not in str(error.value)

    def put(weights: dict[str, torch.Tensor], name: str = "model-00002-of-00002.safetensors") -> bytes:
        save_file(weights, tmp_path / name)
        memory.put_file(str(tmp_path / name), f"/run/step-200/{name}")
        return (tmp_path / name).read_bytes()

    whole = put({"w1": torch.zeros(100, 30).bfloat16()})
    refused("memory://run/step-200.*w1|w1.*memory://run/step-200")
    memory.pipe_file("/run/step-200/model-00002-of-00002.safetensors", whole[:-5])
    refused("memory://run/step-200/model-00002-of-00002.safetensors")
    memory.pipe_file("/run/step-200/model-00002-of-00002.safetensors", b"PK" + bytes(3000))
    refused("memory://run/step-200/model-00002-of-00002.safetensors")
    torch.save({"w": torch.zeros(3000)}, tmp_path / "cut.pt")
    memory.pipe_file("/files/cut.pt", (tmp_path / "cut.pt").read_bytes()[:-3000])
    with pytest.raises(trivium.CheckpointError, match=r"memory://files/cut\.pt: the zip archive is damaged or cut short"):
        trivium.merge(["memory://files/cut.pt"], tmp_path / "out", cache_dir=tmp_path / "cache", dry_run=True)
    monkeypatch.setattr(_remote.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    refused("staging needs .* 100 are free")


def test_no_room(run: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_remote.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(trivium.CheckpointError, match="staging needs .* 100 are free"):
        trivium.merge(URLS, tmp_path / "out", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_refusals(run: list[Path], memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/broken/model.safetensors.index.json", json.dumps({"weight_map": {"w": "model-1-of-1.safetensors"}}).encode())
    memory.pipe_file("/empty/readme", b"")
    for url, error, match in (
        ("memory://nowhere", trivium.CheckpointError, "memory://nowhere: FileNotFoundError"),
        ("memory://empty", trivium.CheckpointError, "holds no checkpoint"),
        ("memory://broken", trivium.CheckpointError, "names model-1-of-1.safetensors, which is not there"),
        ("nosuch://x", trivium.Unsupported, "knows no nosuch://"),
    ):
        with pytest.raises(error, match=match):
            trivium.merge([url], tmp_path / "out", cache_dir=tmp_path / "cache")
    with pytest.raises(trivium.Unsupported, match="no uploads"):
        trivium.merge(run, "https://example.org/out")
    with pytest.raises(trivium.CheckpointError, match="is not there"):
        trivium.merge(["memory://run/step-100/model.safetensors"], tmp_path / "out", cache_dir=tmp_path / "cache")
    with pytest.raises(trivium.Unsupported, match="mounted"):
        trivium.watch("memory://run", tmp_path / "out")
    with pytest.raises(trivium.Unsupported, match="copy the best one"):
        trivium.sweep(tmp_path / "run", "memory://sweep")
    with pytest.raises(trivium.Unsupported, match="reset"):
        trivium.pma.init("memory://run", tmp_path / "out", optimizer="newest")
    assert not (tmp_path / "out").exists()
    registry = importlib.import_module("fsspec.registry")  # the package has a table of this name
    monkeypatch.setitem(registry.known_implementations, "s3", {"class": "no_such_driver.System", "err": "Install it"})
    registry._registry.pop("s3", None)
    with pytest.raises(trivium.Unsupported, match=r"driver that is not installed.*pip install 'trivium\[remote\]' s3fs"):
        trivium.merge(["s3://bucket/step-1"], tmp_path / "out", cache_dir=tmp_path / "cache")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(trivium.Unsupported, match=r"need fsspec.*pip install 'trivium\[remote\]'"):
        trivium.merge(["memory://run/step-100"], tmp_path / "out")


def test_command(run: list[Path], memory: Any, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from trivium.cli.app import app

    result = CliRunner().invoke(app, ["merge", *URLS, "--out", "memory://cli/mean", "--cache-dir", str(tmp_path / "cache"), "-o", "json"])
    assert result.exit_code == 0, result.output
    trivium.merge(run, tmp_path / "want")
    assert remote_files(memory, "/cli/mean") == files_of(tmp_path / "want")
    result = CliRunner().invoke(app, ["merge", "series", "memory://run", "-n", "2", "--out", str(tmp_path / "two"), "--cache-dir", str(tmp_path / "cache"), "-o", "json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["tensors"] == 2
