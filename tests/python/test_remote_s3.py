"""The S3 protocol: merges from and to s3:// against a local server, and what goes wrong there.

Needs moto[server] and s3fs; they are no dependencies of the project.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_remote import files_of, make

import trivium

s3fs = pytest.importorskip("s3fs", reason="s3:// needs s3fs")
moto = pytest.importorskip("moto.server", reason="a local S3 needs moto[server]")
serving = pytest.importorskip("werkzeug.serving", reason="a local S3 needs moto[server]")

RUN = [f"s3://runs/small/step-{100 * k}" for k in (1, 2, 3)]
Application = Callable[[Any, Any], Any]


class Server:
    """A local S3. ``hook`` sees each request first and may answer it in the server's place."""

    def __init__(self) -> None:
        self.app: Application = moto.DomainDispatcherApplication(moto.create_backend_app)
        self.log: list[str] = []
        self.hook: Callable[[str, Any], Application | None] = lambda request, environ: None
        self.http = serving.make_server("127.0.0.1", 0, self, threaded=True)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __call__(self, environ: Any, start: Any) -> Any:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.log.append(request)
        return (self.hook(request, environ) or self.app)(environ, start)

    def changes(self) -> list[str]:
        return [r for r in self.log if r.startswith(("PUT", "POST", "DELETE"))]


def denied(environ: Any, start: Any) -> list[bytes]:
    start("403 Forbidden", [("Content-Type", "application/xml")])
    return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = Server()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{made.http.server_port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield made
    s3fs.S3FileSystem.clear_instance_cache()
    made.http.shutdown()


@pytest.fixture
def store(server: Server) -> Any:
    import moto.backends

    for account in moto.backends.get_backend("s3").values():
        for backend in account.values():
            backend.reset()
    system = s3fs.S3FileSystem()
    system.mkdir("runs")
    return system


@pytest.fixture
def run(tmp_path: Path, store: Any, server: Server) -> list[Path]:
    """Three checkpoints here, and the same at s3://runs/small."""
    folders = [make(tmp_path / "small" / f"step-{100 * k}", k) for k in (1, 2, 3)]
    store.put(str(tmp_path / "small"), "runs/small", recursive=True)
    server.log.clear()
    return folders


def stored(store: Any, folder: str) -> dict[str, bytes]:
    store.invalidate_cache()
    return {p.rpartition("/")[2]: store.cat_file(p) for p in store.find(folder) if not p.endswith("trivium_merge.json")}


def test_from_and_to_s3(run: list[Path], store: Any, server: Server, tmp_path: Path) -> None:
    trivium.merge(run, tmp_path / "want")
    found = trivium.series("s3://runs/small")
    assert found.paths == RUN and found.steps == [100, 200, 300]
    report = trivium.merge(found.paths, "s3://runs/merged/mean", cache_dir=tmp_path / "cache")
    assert stored(store, "runs/merged/mean") == files_of(tmp_path / "want")
    assert server.changes()[-1] == "PUT /runs/merged/mean/model.safetensors.index.json" and report.uploaded > 0
    assert not [r for r in server.log if "optimizer" in r], "only what is needed is read"
    # What changes is known by its ETag, and only that is read again.
    again = trivium.merge(RUN, tmp_path / "again", cache_dir=tmp_path / "cache")
    assert again.downloaded == 0 and report.downloaded == sum(p.stat().st_size for f in run for p in f.iterdir() if p.name != "optimizer.pt")
    changed = bytearray((run[1] / "model-00002-of-00002.safetensors").read_bytes())
    changed[-1] ^= 1
    store.pipe_file("runs/small/step-200/model-00002-of-00002.safetensors", bytes(changed))
    assert trivium.merge(RUN, tmp_path / "third", cache_dir=tmp_path / "cache").downloaded == len(changed)
    # Overwriting takes the old entry point away first.
    server.log.clear()
    trivium.merge(RUN[1:], "s3://runs/merged/mean", cache_dir=tmp_path / "cache", overwrite=True)
    assert server.changes()[0] == "DELETE /runs/merged/mean/model.safetensors.index.json"
    resumed = trivium.merge(RUN[1:], "s3://runs/merged/mean", cache_dir=tmp_path / "cache", resume=True)
    assert resumed.uploaded == 0 and resumed.resumed == resumed.tensors


def test_a_dry_run_asks_for_ranges(run: list[Path], store: Any, server: Server, tmp_path: Path) -> None:
    ranges: list[str] = []
    server.hook = lambda request, environ: ranges.append(environ.get("HTTP_RANGE", "")) if "model-" in request and request.startswith("GET") else None
    report = trivium.merge(RUN, "s3://runs/merged/mean", cache_dir=tmp_path / "cache", dry_run=True)
    want = trivium.merge(run, tmp_path / "out", dry_run=True)
    assert (report.tensors, report.disk_need, report.out) == (want.tensors, want.disk_need, "s3://runs/merged/mean")
    assert len(ranges) == 6 and all(r.startswith("bytes=0-") for r in ranges) and not server.changes() and not (tmp_path / "cache").exists()


def test_a_broken_upload_goes_on(run: list[Path], store: Any, server: Server, tmp_path: Path) -> None:
    refused = "PUT /runs/merged/mean/model-00002-of-00002.safetensors"
    server.hook = lambda request, _: denied if request == refused else None
    with pytest.raises(trivium.CheckpointError, match="s3://runs/merged/mean: PermissionError: Access Denied"):
        trivium.merge(RUN, "s3://runs/merged/mean", cache_dir=tmp_path / "cache")
    assert "model.safetensors.index.json" not in stored(store, "runs/merged/mean")
    arrived = set(server.changes()) - {refused}
    server.hook = lambda request, _: None
    server.log.clear()
    report = trivium.merge(RUN, "s3://runs/merged/mean", cache_dir=tmp_path / "cache", resume=True)
    assert report.resumed == 2 and not arrived & set(server.changes()), "what had arrived was not sent again"
    trivium.merge(run, tmp_path / "want")
    assert stored(store, "runs/merged/mean") == files_of(tmp_path / "want")


def test_an_object_that_is_replaced_while_it_is_read(run: list[Path], store: Any, server: Server, tmp_path: Path) -> None:
    """The connection breaks half-way, and the rest comes from another version of the same size: no mixture is merged."""
    key = "/runs/small/step-200/model-00001-of-00002.safetensors"
    old = (run[1] / "model-00001-of-00002.safetensors").read_bytes()
    new = bytes(make(tmp_path / "new", 9).joinpath("model-00001-of-00002.safetensors").read_bytes())
    assert len(new) == len(old)

    def half(environ: Any, start: Any) -> list[bytes]:
        server.hook = lambda request, _: None
        store.pipe_file(key[1:], new)
        start("200 OK", [("Content-Length", str(len(old))), ("ETag", '"old"')])
        return [old[: len(old) // 2]]

    server.hook = lambda request, _: half if request == "GET " + key else None
    with pytest.raises(trivium.CheckpointError, match="s3://runs/small/step-200: "):
        trivium.merge(RUN, tmp_path / "out", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "out").exists()
    trivium.merge(RUN, tmp_path / "out", cache_dir=tmp_path / "cache")
    (run[1] / "model-00001-of-00002.safetensors").write_bytes(new)
    trivium.merge(run, tmp_path / "want")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "want")


def test_what_is_not_there(run: list[Path], store: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    for url, match in (
        ("s3://nosuch/step-1", "s3://nosuch/step-1: FileNotFoundError: The specified bucket does not exist"),
        ("s3://runs/nosuch", "s3://runs/nosuch: FileNotFoundError"),
        ("s3://runs/small", "s3://runs/small: holds no checkpoint"),
    ):
        with pytest.raises(trivium.CheckpointError, match=match):
            trivium.merge([url], tmp_path / "out", **cache)
    with pytest.raises(trivium.CheckpointError, match="s3://nosuch/merged: there is no bucket nosuch"):
        trivium.merge(RUN, "s3://nosuch/merged", **cache)
    assert not [r for r in server.log if r.startswith("PUT")], "a bucket is never made"
    with pytest.raises(trivium.CheckpointError, match="no checkpoint was found"):
        trivium.series("s3://runs")
    server.hook = lambda request, _: denied if "safetensors" in request else None
    with pytest.raises(trivium.CheckpointError, match=r"s3://runs/small/step-100: PermissionError.*credentials"):
        trivium.merge(RUN, tmp_path / "out", **cache)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    for sources, out in ((RUN, tmp_path / "out"), (run, "s3://runs/merged")):
        with pytest.raises(trivium.CheckpointError, match="NoCredentialsError.*credentials"):
            trivium.merge(sources, out, **cache)
    assert not (tmp_path / "out").exists()
