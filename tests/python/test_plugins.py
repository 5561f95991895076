"""Third-party plugins from beginning to end: written, tested, packed, added, used, tampered with, removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import trivium
from trivium import plugin, settings
from trivium.plugin import scaffold
from trivium.plugin.installed import check
from trivium.plugin.manifest import here, read

pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="plugins are built with Go")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep lock files and stores of this machine out of it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("TRIVIUM_PLUGINS_LOCK", "TRIVIUM_LOCKED", "TRIVIUM_SETTINGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str, answer: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    if answer is not None:
        environment["TRIVIUM_ASK"] = "stdin"
    return subprocess.run(
        [sys.executable, "-m", "trivium", "plugin", *arguments],
        input=answer, capture_output=True, text=True, timeout=600, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a plugin, and pack it."""
    folder = tmp_path_factory.mktemp("near")
    plugin.new("near-tokens", "attention", folder=folder / "sources")
    return plugin.pack(folder / "sources").folder


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """Give a packed plugin that may be spoiled."""
    return shutil.copytree(packed, tmp_path / packed.name)


def attend(engine: trivium.Engine, strategy: str, **params: object) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((1, 2, 150, 16)).astype(np.float32)
    return np.asarray(trivium.attention(x, x, x, strategy=strategy, engine=engine, **params))


def window(recent: int, sink: int = 0) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((1, 2, 150, 16)).astype(np.float32)
    distance = np.arange(150)[:, None] - np.arange(150)
    keep = (distance >= 0) & ((distance < recent) | (np.arange(150) < sink))
    scores = np.where(keep, np.einsum("bhid,bhjd->bhij", x, x) / 4, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhij,bhjd->bhid", weights / weights.sum(-1, keepdims=True), x)


def test_new_plugins_are_whole(tmp_path: Path) -> None:
    for kind, select_only in (("attention", False), ("attention", True), ("position", False), ("merge", False)):
        folder = plugin.new(f"my-{kind}-{select_only}".lower(), kind, select_only=select_only, folder=tmp_path / f"{kind}{select_only}")
        files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert {"go.mod", "go.sum", "LICENSE", "README.md", "main.go", "strategy.go", "conformance_test.go", "plugin.json"} <= files
        assert "plugin-name" not in (folder / "strategy.go").read_text() + (folder / "main.go").read_text()
        author = [line for line in (folder / "strategy.go").read_text().splitlines() if line.strip() and not line.strip().startswith("//")]
        assert len(author) <= 60


@pytest.mark.parametrize("name,kind,select_only,says", [
    ("Near", "attention", False, "lower-case"), ("", "attention", False, "lower-case"), ("../x", "attention", False, "lower-case"),
    ("x", "other", False, "attention"), ("x", "merge", True, "select"),
])  # fmt: skip
def test_bad_names(name: str, kind: str, select_only: bool, says: str, tmp_path: Path) -> None:
    with pytest.raises(trivium.InvalidArgument, match=says):
        plugin.new(name, kind, select_only=select_only, folder=tmp_path / "x")


def test_new_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(trivium.InvalidArgument, match="not empty"):
        plugin.new("x", "merge", folder=tmp_path)


def test_new_refers_to_sources(tmp_path: Path) -> None:
    if not (ROOT / "go.mod").exists():
        pytest.skip("no sources")
    folder = plugin.new("x", "position", folder=tmp_path / "x", source=ROOT)
    assert f"=> {ROOT}" in (folder / "go.mod").read_text() and not (folder / "third_party").exists()
    with pytest.raises(trivium.PluginMissing):
        plugin.new("y", "position", folder=tmp_path / "y", source=tmp_path)


def test_conformance_of_a_new_plugin(tmp_path: Path) -> None:
    plugin.new("first-tiles", "attention", select_only=True, folder=tmp_path / "x")
    done = command("test", str(tmp_path / "x"))
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "x" / "strategy.go"
    broken.write_text(broken.read_text().replace("columns := []int32{0}", "columns := []int32{1}"))
    assert command("test", str(tmp_path / "x")).returncode == 1


def test_pack(packed: Path) -> None:
    manifest = read(packed)
    check(manifest)
    assert manifest.strategy_ids == ["attention.near-tokens"] and set(manifest.hashes) == {here()}
    sbom = json.loads((packed / "sbom" / "near-tokens.cdx.json").read_text())
    assert {"google.golang.org/grpc", scaffold.MODULE} <= {c["name"] for c in sbom["components"]}
    assert packed.with_name(packed.name + ".tar.gz").is_file() and (packed / "LICENSE").is_file()


def test_add_asks_once(packed: Path) -> None:
    refused = command("add", str(packed))
    assert refused.returncode == 1 and "nobody to ask" in refused.stderr
    assert read(packed).sha256 in refused.stdout and "rights" in refused.stdout
    assert command("add", str(packed), answer="n\n").returncode == 1
    assert plugin.added() == {}
    assert command("add", str(packed), answer="y\n").returncode == 0
    assert plugin.added()["near-tokens"].manifest == read(packed).sha256
    assert command("add", str(packed)).returncode == 0  # agreed to already


def test_added_plugins_are_used(packed: Path) -> None:
    plugin.add(packed.with_name(packed.name + ".tar.gz"))
    with trivium.Engine() as engine:
        np.testing.assert_allclose(attend(engine, "near-tokens", recent=30, sink=2), window(30, 2), atol=2e-6)
        process = next(p for p in engine.plugins() if p.name == "near-tokens")
        assert process.confined and process.rights == "none" and process.state == "running"
    with trivium.Engine(lock=None) as engine, pytest.raises(trivium.UnknownStrategy):
        attend(engine, "near-tokens")
    listed = json.loads(command("list", "-o", "json").stdout)
    assert listed["added"]["near-tokens"]["version"] == "0.1.0"
    assert json.loads(command("verify", "-o", "json").stdout) == {"near-tokens": ""}
    doctor = json.loads(command("doctor", "-o", "json").stdout)
    assert not doctor["problems"] and doctor["confinement"]["landlock"] > 0
    plugin.remove("near-tokens")
    with pytest.raises(trivium.PluginMissing):
        plugin.remove("near-tokens")


def test_tampering_is_seen(packed: Path) -> None:
    added = plugin.add(packed)
    binary = added.entry.folder / "bin" / f"near-tokens-{here()}"
    content = binary.read_bytes()
    binary.unlink()
    binary.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "SHA-256" in plugin.verify()["near-tokens"]
    assert command("verify").returncode == 1
    with trivium.Engine() as engine, pytest.raises(trivium.PluginRefused, match="SHA-256"):
        attend(engine, "near-tokens")


@pytest.mark.parametrize("spoil", ["binary", "manifest", "traversal", "platform", "protocol", "rights"])
def test_bad_plugins_are_not_added(copy: Path, spoil: str) -> None:
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    if spoil == "binary":
        (copy / "bin" / f"near-tokens-{here()}").write_bytes(b"\x7fELF")
    elif spoil == "manifest":
        manifest.pop("strategies")
    elif spoil == "traversal":
        manifest["platforms"][here()]["file"] = "../../../bin/true"
    elif spoil == "platform":
        manifest["platforms"] = {"plan9-mips": manifest["platforms"][here()]}
    elif spoil == "protocol":
        manifest["protocol"] = 99
    elif spoil == "rights":
        manifest["rights"] = {"everything": True}
    path.write_text(json.dumps(manifest))
    with pytest.raises((trivium.PluginRefused, trivium.PluginMissing)):
        plugin.add(copy)
    assert plugin.added() == {}


def test_archives_cannot_write_elsewhere(tmp_path: Path) -> None:
    import io
    import tarfile

    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("../../escaped")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(Exception):  # noqa: B017 - tarfile's own
        plugin.add(path)
    assert not list(tmp_path.parent.glob("**/escaped"))


def test_locked(packed: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(trivium.PluginRefused, match="is not in"):
        plugin.add(packed, locked=True)
    assert command("add", str(packed), "--locked").returncode == 1
    plugin.add(packed)
    shutil.rmtree(plugin.added()["near-tokens"].folder)
    assert "does not exist" in plugin.verify()["near-tokens"] or "no plugin" in plugin.verify()["near-tokens"]
    assert command("add", str(packed), "--locked").returncode == 0  # as on another machine
    assert plugin.verify() == {"near-tokens": ""}
    path = copy / "manifest.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(trivium.PluginRefused, match="manifest"):
        plugin.add(copy, locked=True)
    monkeypatch.setenv("TRIVIUM_LOCKED", "1")
    with trivium.Engine(plugins=[copy], lock=None) as engine:
        assert [p.state for p in engine.plugins()] == ["refused"] and "not in the lock" in engine.plugins()[0].reason


def test_rights_need_consent(copy: Path) -> None:
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["rights"] = {"net": True, "read": ["/var/empty"]}
    path.write_text(json.dumps(manifest))
    with trivium.Engine(plugins=[copy], lock=None) as engine:
        assert "rights that nobody granted: net, read /var/empty" in engine.plugins()[0].reason
    shown = command("add", str(copy), answer="y\n").stdout
    assert "net, read /var/empty" in shown
    with trivium.Engine() as engine:
        attend(engine, "near-tokens")
        assert next(p for p in engine.plugins() if p.name == "near-tokens").rights == "net, read /var/empty"
    manifest["rights"] = {"net": True, "gpu": True}
    path.write_text(json.dumps(manifest))
    assert "it replaces" in command("add", str(copy), answer="n\n").stdout


def test_project_locks_come_first(packed: Path, tmp_path: Path) -> None:
    assert plugin.default_lock() == tmp_path / "config" / "trivium" / "plugins.lock"
    plugin.add(packed, lock=tmp_path / "plugins.lock")
    assert plugin.default_lock() == tmp_path / "plugins.lock"
    with trivium.Engine() as engine:
        attend(engine, "near-tokens")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 9}', '{"version": 1, "plugins": {"x": 1}}', '{"version":1,"plugins":[]}'])
def test_bad_locks(text: str, tmp_path: Path) -> None:
    (tmp_path / "plugins.lock").write_text(text)
    with pytest.raises(trivium.PluginRefused, match="lock file"):
        trivium.Engine().close()
    if text != '{"version":1,"plugins":[]}':
        with pytest.raises(trivium.PluginRefused, match="lock file"):
            plugin.added()


def test_wheels_bring_plugins(packed: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(packed, site / "near_package" / "plugin")
    (site / "near_package" / "__init__.py").write_text("")
    info = site / "near_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: near-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[trivium.plugins]\nnear-tokens = near_package.plugin\n")
    code = textwrap.dedent("""
        import numpy as np, trivium
        x = np.ones((1, 1, 20, 16), np.float32)
        trivium.attention(x, x, x, strategy="near-tokens")
        print([(p.name, p.confined) for p in trivium.plugins()])
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "('near-tokens', True)" in done.stdout, done.stderr


@pytest.mark.parametrize("name,text", [
    ("trivium.toml", '[attention.streaming]\nrecent = 17\nsink = 0\n'), ("trivium.toml", '["attention.streaming"]\nrecent = 17\nsink = 0\n'),
    ("trivium.yaml", "attention.streaming: {recent: 17, sink: 0}\n"), ("trivium.json", '{"attention.streaming": {"recent": 17, "sink": 0}}'),
])  # fmt: skip
def test_settings(name: str, text: str, tmp_path: Path) -> None:
    if name.endswith(".toml") and sys.version_info < (3, 11):
        pytest.skip("no tomllib")
    (tmp_path / name).write_text(text)
    with trivium.Engine() as engine:
        recent = next(p for p in trivium.info("streaming", engine=engine).parameters if p.name == "recent")
        assert recent.default == 17
        np.testing.assert_array_equal(attend(engine, "streaming"), attend(engine, "streaming", recent=17, sink=0))


@pytest.mark.parametrize("given", [{"attention.streaming": {"recnt": 1}}, {"attention.streaming": {"recent": -1}}])
def test_bad_settings(given: dict[str, dict[str, object]]) -> None:
    with pytest.raises(trivium.InvalidArgument, match="settings"):
        trivium.Engine(settings=given)


def test_schema_is_what_validation_does() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for info in trivium.list():
        schema = settings.schema(info)
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        assert validator.is_valid({p.name: p.default for p in info.parameters if p.default is not None}), info.id
        assert not validator.is_valid({"no_such": 1})
    gamma = jsonschema.Draft202012Validator(settings.schema(trivium.info("flexprefill")))
    assert gamma.is_valid({"gamma": 0.5}) and not gamma.is_valid({"gamma": 0.0}) and not gamma.is_valid({"gamma": "much"})


def test_a_plugin_in_python(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    sources = ROOT / "examples" / "python-plugin"
    made = plugin.pack(sources, out=tmp_path / "dist")
    assert plugin.add(made.folder).entry.strategies == ("attention.numpy-window",)
    with trivium.Engine() as engine:
        np.testing.assert_allclose(attend(engine, "numpy-window", recent=20), window(20), atol=1e-5)
        assert next(p for p in engine.plugins() if p.name == "numpy-window").confined
        with pytest.raises(trivium.InvalidArgument):
            attend(engine, "numpy-window", recent=0)
        os.kill(next(p for p in engine.plugins() if p.name == "numpy-window").pid, 9)
        for _ in range(2):
            try:
                attend(engine, "numpy-window", recent=20)
            except trivium.PluginCrashed:
                continue
        np.testing.assert_allclose(attend(engine, "numpy-window", recent=20), window(20), atol=1e-5)


def test_conformance_of_the_plugin_in_python() -> None:
    pytest.importorskip("grpc_tools")
    done = command("test", str(ROOT / "examples" / "python-plugin"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_engine_uses_what_was_saved_last(tmp_path: Path) -> None:
    project = plugin.new("near-tokens", "attention", folder=tmp_path / "x")
    assert command("dev", str(project), "--once").returncode == 0
    with trivium.Engine(plugins=[project / ".trivium" / "dev"], lock=None) as engine:
        before = attend(engine, "near-tokens", recent=8)
        source = (project / "strategy.go").read_text()
        assert "recent" in source
        (project / "strategy.go").write_text(source.replace('recent, sink := req.Params.Int("recent")', 'recent, sink := 2*req.Params.Int("recent")'))
        assert (project / "strategy.go").read_text() != source
        assert command("dev", str(project), "--once").returncode == 0
        after = attend(engine, "near-tokens", recent=8)
        np.testing.assert_array_equal(after, attend(engine, "near-tokens", recent=8))
    assert not np.array_equal(before, after)


def test_dev_and_bench_and_trace(tmp_path: Path) -> None:
    plugin.new("near-tokens", "attention", folder=tmp_path / "x")
    done = command("dev", str(tmp_path / "x"), "--once")
    assert "attention.near-tokens: density" in done.stdout, done.stderr
    rows = json.loads(command("bench", str(tmp_path / "x"), "--lengths", "64", "-o", "json").stdout)
    assert {r["strategy"] for r in rows} == {"dense", "near-tokens"} and all(r["ms"] > 0 for r in rows)
    call = "import numpy as n, trivium as t; x = n.ones((1, 1, 16, 16), n.float32); t.attention(x, x, x, position=t.position('linear', factor=2.0), rope_theta=1e4)"
    traced = command("trace", sys.executable, "-c", call)
    assert "plugin call" in traced.stderr and "strategy=linear" in traced.stderr, traced.stderr
