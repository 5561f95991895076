"""A plugin's manifest: what is in its binary, and what it asks for."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trivium._errors import PluginMissing, PluginRefused

NAME = "manifest.json"

# The version of the handshake that the native side speaks.
PROTOCOL = 1


def here() -> str:
    """Name this platform as Go does, such as linux-amd64."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return f"{sys.platform}-{machine}"


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True)
class Rights:
    """What a plugin asks for beyond computing and reading the system's libraries."""

    gpu: bool = False
    net: bool = False
    processes: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    memory_mib: int = 0

    @classmethod
    def of(cls, data: dict[str, Any]) -> Rights:
        """Read the rights of a manifest or lock file; one that is not known is refused."""
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown:
            raise PluginRefused(f"rights {', '.join(unknown)}: want some of {', '.join(cls.__dataclass_fields__)}")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**given)

    def data(self) -> dict[str, Any]:
        """Give what a file holds: only what was asked for."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v}

    def __str__(self) -> str:
        names = [k for k in ("gpu", "net", "processes") if getattr(self, k)]
        names += [f"read {p}" for p in self.read] + [f"write {p}" for p in self.write]
        if self.memory_mib:
            names.append(f"memory {self.memory_mib} MiB")
        return ", ".join(names) or "none"


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read, with the hash of its text."""

    path: Path
    sha256: str
    name: str
    version: str
    protocol: int
    strategies: tuple[dict[str, Any], ...]
    platforms: dict[str, dict[str, str]]
    rights: Rights = field(default_factory=Rights)
    interpreter: str = ""

    @property
    def strategy_ids(self) -> list[str]:
        """Give the dotted identifiers of its strategies."""
        return [f"{s['kind']}.{s['name']}" for s in self.strategies]

    @property
    def hashes(self) -> dict[str, str]:
        """Give the SHA-256 of the binary for each platform."""
        return {name: binary["sha256"].lower() for name, binary in self.platforms.items()}

    @property
    def files(self) -> list[str]:
        """Give the binaries, relative to the manifest."""
        return sorted({binary["file"] for binary in self.platforms.values()})


def find(path: Path) -> Path:
    """Give the manifest that a path means: itself, or the one in a folder."""
    if path.is_file():
        return path
    candidates = [path / NAME, *sorted(p for p in path.glob("*.json") if _is_manifest(p))] if path.is_dir() else []
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise PluginMissing(f"{path} is no plugin: want a folder with a {NAME}, as `trivium plugin pack` writes it", hint="pack it first")


def _is_manifest(path: Path) -> bool:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "strategies" in data and "protocol" in data


def read(path: Path) -> Manifest:
    """Read the manifest at `path`, a file or a folder. The native side checks it again."""
    path = find(path)
    text = path.read_bytes()
    try:
        data = json.loads(text)
        platforms = data.get("platforms") or {here(): {"file": data["file"], "sha256": data["sha256"]}}
        manifest = Manifest(
            path=path,
            sha256=hashlib.sha256(text).hexdigest(),
            name=data["name"],
            version=data.get("version", ""),
            protocol=data["protocol"],
            strategies=tuple(data["strategies"]),
            platforms=platforms,
            rights=Rights.of(data.get("rights", {})),
            interpreter=data.get("interpreter", ""),
        )
        _check(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PluginRefused(f"plugin manifest {path}: {error!r}", hint="reinstall it, or pack it anew") from error
    return manifest


def _check(manifest: Manifest) -> None:
    for file in manifest.files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise ValueError(f"file {file!r}: want a path below the manifest's folder")
    if not all(isinstance(s, dict) and {"name", "kind"} <= set(s) for s in manifest.strategies):
        raise ValueError("strategies: want a name and a kind for each")
    manifest.hashes  # noqa: B018 - raises KeyError when one is missing
