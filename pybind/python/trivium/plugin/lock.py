"""``plugins.lock``: which plugins somebody agreed to, by hash, and with which rights.

The native side reads the same file and enforces it; here it is written.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivium._errors import PluginRefused
from trivium.plugin.manifest import Manifest, Rights

NAME = "plugins.lock"
VERSION = 1
VARIABLE = "TRIVIUM_PLUGINS_LOCK"
LOCKED = "TRIVIUM_LOCKED"


def default_lock() -> Path:
    """Give the lock file in use: the one named by the environment, this folder's, or the user's."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    here = Path(NAME)
    if here.is_file():
        return here.absolute()
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "trivium" / NAME


def default_store() -> Path:
    """Give the folder where added plugins are kept, as the native side does."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "trivium" / "plugins"


def locked() -> bool:
    """Whether the environment says that plugins which are not in the lock are refused."""
    return os.environ.get(LOCKED, "") not in ("", "0")


@dataclass(frozen=True)
class Entry:
    """One plugin of a lock file."""

    version: str
    manifest: str
    platforms: dict[str, str]
    strategies: tuple[str, ...]
    rights: Rights = field(default_factory=Rights)
    source: str = ""

    @classmethod
    def of(cls, manifest: Manifest, source: str) -> Entry:
        """Pin a manifest."""
        return cls(
            manifest.version, manifest.sha256, manifest.hashes, tuple(manifest.strategy_ids), manifest.rights, source
        )

    def data(self) -> dict[str, Any]:
        """Give what the file holds."""
        data: dict[str, Any] = {
            "version": self.version,
            "manifest": self.manifest,
            "platforms": dict(sorted(self.platforms.items())),
            "strategies": list(self.strategies),
        }
        if rights := self.rights.data():
            data["rights"] = rights
        if self.source:
            data["source"] = self.source
        return data

    @property
    def folder(self) -> Path:
        """Give where the plugin is kept."""
        return default_store() / self.manifest


@dataclass
class Lock:
    """A lock file. Change ``plugins`` and :meth:`write`."""

    path: Path
    plugins: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None = None) -> Lock:
        """Read a lock file; one that is not there is empty."""
        path = path or default_lock()
        try:
            text = path.read_text()
        except FileNotFoundError:
            return cls(path)
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}: want {VERSION}")
            plugins = {name: _entry(entry) for name, entry in (data.get("plugins") or {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PluginRefused(
                f"lock file {path}: {error}", hint="restore it from version control, or remove it and add the plugins again"
            ) from error
        return cls(path, plugins)

    def write(self) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = {"version": VERSION, "plugins": {name: self.plugins[name].data() for name in sorted(self.plugins)}}
        temporary = self.path.with_name(self.path.name + f".{os.getpid()}")
        temporary.write_text(json.dumps(data, indent=2) + "\n")
        temporary.replace(self.path)


def _entry(data: dict[str, Any]) -> Entry:
    return Entry(
        version=data["version"],
        manifest=data["manifest"],
        platforms=dict(data["platforms"]),
        strategies=tuple(data["strategies"]),
        rights=Rights.of(data.get("rights", {})),
        source=data.get("source", ""),
    )
