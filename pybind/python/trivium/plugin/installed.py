"""Plugins on this machine: what was added, and what installed packages bring."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from trivium._errors import PluginMissing, PluginRefused
from trivium.plugin import lock as locks
from trivium.plugin.lock import Entry, Lock
from trivium.plugin.manifest import NAME, PROTOCOL, Manifest, find, here, read, sha256

# Packages name, in this group, the importable folder that holds their manifest:
# [project.entry-points."trivium.plugins"]  my-plugin = "my_package.plugin"
GROUP = "trivium.plugins"


@dataclass(frozen=True)
class Added:
    """What :func:`add` did."""

    name: str
    entry: Entry
    lock: Path
    replaced: Entry | None = None


@dataclass(frozen=True)
class Found:
    """A plugin that an installed package brings."""

    name: str
    folder: Path


@contextmanager
def opened(path: Path) -> Iterator[Manifest]:
    """Give the manifest of a folder, of a manifest's path, or of a packed archive."""
    if path.is_file() and tarfile.is_tarfile(path):
        with tempfile.TemporaryDirectory(prefix="trivium-plugin-") as folder:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
            yield read(_only_folder(Path(folder)))
    else:
        yield read(path)


def _only_folder(folder: Path) -> Path:
    inside = [p for p in folder.iterdir()]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def check(manifest: Manifest) -> None:
    """Refuse a plugin whose files are not what its manifest says, or that cannot run here."""
    if not 1 <= manifest.protocol <= PROTOCOL:
        raise PluginRefused(
            f"{manifest.name} speaks plugin protocol {manifest.protocol}: want {PROTOCOL}",
            hint=f"install a release of {manifest.name} that fits this release of Trivium",
        )
    if here() not in manifest.platforms:
        raise PluginRefused(f"{manifest.name} has no binary for {here()}: only for {', '.join(manifest.platforms)}")
    for platform, binary in manifest.platforms.items():
        file = manifest.path.parent / binary["file"]
        if not file.is_file():
            if platform == here():
                raise PluginMissing(f"{manifest.name}: {file} does not exist", hint="pack it anew")
            continue
        got = sha256(file)
        if got != binary["sha256"].lower():
            raise PluginRefused(
                f"{manifest.name}: {file} has SHA-256 {got}: want {binary['sha256']}",
                hint="the file was changed after it was packed: get it anew",
            )


def add(path: str | os.PathLike[str], *, lock: Path | None = None, locked: bool | None = None) -> Added:
    """Copy a plugin into the store and pin it in the lock file.

    Whoever calls this agrees to the plugin and to the rights that it asks for; the
    command line asks before. With `locked` (or ``TRIVIUM_LOCKED=1``) only a plugin
    that the lock file has already, with the same hashes and rights, is accepted.
    """
    source = Path(path)
    held = Lock.read(lock)
    with opened(source) as manifest:
        check(manifest)
        entry = Entry.of(manifest, str(source))
        before = held.plugins.get(manifest.name)
        if locks.locked() if locked is None else locked:
            _refuse_unknown(manifest, entry, before, held.path)
            entry = before or entry
        store(manifest)
    if before != entry:
        held.plugins[manifest.name] = entry
        held.write()
    return Added(manifest.name, entry, held.path, before)


def _refuse_unknown(manifest: Manifest, entry: Entry, before: Entry | None, path: Path) -> None:
    if before is None:
        raise PluginRefused(f"{manifest.name} is not in {path}", hint="add it without --locked, and commit the lock file")
    for what in ("manifest", "platforms", "rights"):
        if getattr(before, what) != getattr(entry, what):
            raise PluginRefused(
                f"{manifest.name}: its {what} ({getattr(entry, what)}) differs from that of {path} ({getattr(before, what)})",
                hint="add it without --locked if you trust the change",
            )


def store(manifest: Manifest) -> Path:
    """Copy a checked plugin to where the native side looks for it."""
    folder = locks.default_store() / manifest.sha256
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".adding-"))
    try:
        shutil.copyfile(manifest.path, temporary / NAME)
        for file in manifest.files:
            origin, target = manifest.path.parent / file, temporary / file
            if origin.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(origin, target)
                target.chmod(0o755)
        # What was copied is checked again: the source may have changed in between.
        check(read(temporary))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def remove(name: str, *, lock: Path | None = None) -> Entry:
    """Take a plugin out of the lock file, and out of the store."""
    held = Lock.read(lock)
    entry = held.plugins.pop(name, None)
    if entry is None:
        raise PluginMissing(f"{name} is not in {held.path}", hint=f"there are: {', '.join(sorted(held.plugins)) or 'none'}")
    held.write()
    shutil.rmtree(entry.folder, ignore_errors=True)
    return entry


def added(lock: Path | None = None) -> dict[str, Entry]:
    """Give the plugins of the lock file."""
    return Lock.read(lock).plugins


def discover() -> list[Found]:
    """Find the plugins that installed packages bring, without importing these."""
    found = []
    for point in entry_points(group=GROUP):
        folder = _folder(point.value)
        if folder is not None:
            found.append(Found(point.name, folder))
    return found


def _folder(module: str) -> Path | None:
    # The parent package is imported by find_spec; a dotted value should name a namespace below it.
    try:
        spec = find_spec(module.replace(":", "."))
    except ImportError:
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def verify(lock: Path | None = None) -> dict[str, str]:
    """Check each plugin of the lock file; give a problem for each, empty where all is well."""
    problems = {}
    for name, entry in added(lock).items():
        problems[name] = _problem(name, entry)
    return problems


def _problem(name: str, entry: Entry) -> str:
    try:
        manifest = read(find(entry.folder))
        check(manifest)
    except (PluginMissing, PluginRefused) as error:
        return str(error)
    if manifest.sha256 != entry.manifest:
        return f"its manifest has SHA-256 {manifest.sha256}, and the lock says {entry.manifest}"
    if manifest.name != name or manifest.hashes != entry.platforms or manifest.rights != entry.rights:
        return "its manifest is not what the lock says"
    return ""
