"""Checkpoints behind URLs: copied here before a merge, and out again after it.

A merge maps its sources and writes its output in place, which needs files. So those that a
checkpoint consists of are staged in a folder, once: what is there already, of the same size
and version, is kept. An output is merged in that folder and then uploaded, its entry point
last, so that nobody finds half of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from trivium import _bridge
from trivium._errors import CheckpointError, TriviumError, Unsupported
from trivium._files import cache_root, replace
from trivium._likeness import draw

Progress = Callable[[int, int], None]

# What brings fsspec's drivers that are not in fsspec itself.
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "abfs": "adlfs", "az": "adlfs",
           "http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko"}  # fmt: skip
# Where the first word of a path is a bucket: it must be there, and folders need not be made.
BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "az")
# What tells one version of a remote file from the next, where a file system says it.
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "oid", "LastModified", "last_modified", "mtime", "created")
MANIFEST = "staged.json"
UPLOADED = "uploaded.json"
RECIPE = "trivium_merge.json"


@dataclass(frozen=True)
class Names:
    """How a checkpoint's files are called; the checkpoint package says it."""

    entries: tuple[tuple[str, str], ...]  # single file and index, the preferred first
    metadata: str
    ranks: str
    nested: str
    cut_shards: str
    shards: str
    files: tuple[str, ...]
    side: tuple[str, ...]
    trainer: str

    @property
    def all_entries(self) -> set[str]:
        return {name for pair in self.entries for name in pair}

    def is_ranks(self, name: str) -> bool:
        return fnmatchcase(name, self.ranks)

    def is_side(self, name: str) -> bool:
        return any(fnmatchcase(name, p) for p in self.side)


@cache
def _names() -> Names:
    known = _bridge.run("checkpoint.names", {}, None)
    return Names(
        tuple((e["single"], e["index"]) for e in known["entries"]), known["metadata"], known["ranks"], known["nested"], known["cutShards"],
        known["shards"], tuple(known["files"]), tuple(known["side"]), known["trainer"],
    )  # fmt: skip


def is_url(path: str) -> bool:
    """Whether a path is a URL of something that is not a file here."""
    return "://" in path and not path.startswith(("file://", "local://"))


def local(path: str) -> str:
    """Give the path of a file:// URL; anything else is as it is."""
    for scheme in ("file://", "local://"):
        if path.startswith(scheme):
            return path.removeprefix(scheme)
    return path


def staging(folder: str | os.PathLike[str] | None) -> Path:
    """Where files are staged: the folder named, or one in the user's cache."""
    if folder is not None:
        return Path(folder)
    return cache_root() / "staged"


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """Give what goes wrong with a URL the type and the name that users meet everywhere."""
    try:
        yield
    except TriviumError:
        raise
    except Exception as error:  # drivers raise what they like: botocore's, aiohttp's, OSError
        raise CheckpointError(f"{url}: {type(error).__name__}: {error}", hint="check the URL, credentials and network") from error


def _open(url: str) -> tuple[Any, str]:
    """Find the file system of a URL and the path in it."""
    scheme = url.partition("://")[0]
    try:
        import fsspec
    except ModuleNotFoundError as missing:
        raise Unsupported(f"{url}: URLs need fsspec", hint=_install(scheme)) from missing
    try:
        with _telling(url):
            system, path = fsspec.core.url_to_fs(url)
    except CheckpointError as error:
        if isinstance(error.__cause__, ImportError):
            raise Unsupported(f"{url}: {scheme}:// needs a driver that is not installed", hint=_install(scheme)) from error
        if isinstance(error.__cause__, ValueError) and "Protocol not known" in str(error.__cause__):
            raise Unsupported(f"{url}: fsspec knows no {scheme}://", hint="s3://, gs://, hf://, https://, or a path") from error
        raise
    return system, str(path).rstrip("/")


def _install(scheme: str) -> str:
    driver = DRIVERS.get(scheme)
    return "pip install 'trivium[remote]'" + (f" {driver}" if driver else "")


@dataclass(frozen=True)
class File:
    """A file of a remote folder."""

    name: str  # in the folder, with slashes
    path: str
    size: int
    version: str


def _list(system: Any, folder: str, below: str = "") -> dict[str, File]:
    """List the files of a folder, by name."""
    system.invalidate_cache()
    found = {}
    for entry in system.ls(folder, detail=True):
        if entry["type"] != "file":
            continue
        if entry.get("size") is None:
            entry = {**entry, **system.info(entry["name"])}
        name = below + str(entry["name"]).rstrip("/").rpartition("/")[2]
        if entry.get("size") is None:
            raise CheckpointError(f"{entry['name']}: its size is not known", hint="use storage that tells it, or download it yourself")
        version = json.dumps([str(entry[k]) for k in VERSIONS if entry.get(k) is not None])
        found[name] = File(name, entry["name"], int(entry["size"]), version)
    return found


def _folders(system: Any, folder: str) -> list[str]:
    return sorted(str(e["name"]).rstrip("/") for e in system.ls(folder, detail=True) if e["type"] == "directory")


@dataclass
class _Checkpoint:
    """A remote checkpoint and the files of it that a merge reads."""

    url: str
    system: Any
    folder: str
    place: Path  # its own in the cache
    file: str = ""  # when the URL is that of a single file
    side_only: bool = False
    files: list[File] = field(default_factory=list)

    @property
    def here(self) -> Path:
        return self.place / self.folder.rpartition("/")[2]

    @property
    def path(self) -> Path:
        """What a merge reads in place of the URL."""
        return self.here / self.file if self.file else self.here

    def find(self) -> list[File]:
        """List what it consists of."""
        there = _list(self.system, self.folder)
        side = [f for name, f in there.items() if _names().is_side(name) or name == _names().trainer]
        if self.side_only:
            return side
        if self.file:
            if self.file not in there:
                raise CheckpointError(f"{self.url}: is not there", hint="check the URL")
            return [there[self.file], *side]
        return [*self._weights(there), *side]

    def _weights(self, there: dict[str, File]) -> list[File]:
        names = _names()
        for single, index in names.entries:
            if index in there:
                text = json.loads(self.system.cat_file(there[index].path))
                shards = sorted({str(n) for n in text.get("weight_map", {}).values()})
                if missing := [n for n in shards if n not in there]:
                    raise CheckpointError(f"{self.url}: {index} names {missing[0]}, which is not there", hint="upload it again")
                return [there[index], *(there[n] for n in shards), *([there[single]] if single in there and single not in shards else [])]
            if single in there:
                return [there[single]]
        if names.metadata not in there and any(f.rpartition("/")[2] == names.nested for f in _folders(self.system, self.folder)):
            there = _list(self.system, f"{self.folder}/{names.nested}", names.nested + "/")
        last = {name: name.rpartition("/")[2] for name in there}
        weights = [f for name, f in there.items() if names.is_ranks(last[name]) or last[name] == names.metadata]
        weights += [f for name, f in there.items() if fnmatchcase(name, names.cut_shards)]
        if not weights:
            raise CheckpointError(f"{self.url}: holds no checkpoint", hint="name a folder with model.safetensors, an index or .metadata")
        return weights

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.place.mkdir(parents=True, exist_ok=True)
        with (self.place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def known(self) -> dict[str, Any]:
        """What was staged before, by name: size and version."""
        try:
            known = json.loads((self.place / MANIFEST).read_text())
        except (OSError, json.JSONDecodeError):
            return {}
        return known if isinstance(known, dict) else {}

    def missing(self) -> list[File]:
        """List what is not here yet, or is another version."""
        known = self.known()
        return [
            f for f in self.files
            if known.get(f.name) != [f.size, f.version] or not (self.here / f.name).is_file() or (self.here / f.name).stat().st_size != f.size
        ]  # fmt: skip

    def fetch(self, file: File, count: Callable[[int], None]) -> None:
        """Copy one file here; it gets its name when all of it is there."""
        from fsspec.callbacks import Callback

        class Counter(Callback):  # type: ignore[misc,unused-ignore]
            def relative_update(self, inc: int = 1) -> None:
                count(inc)

        to = self.here / file.name
        to.parent.mkdir(parents=True, exist_ok=True)
        part = self.place / "part"
        try:
            self.system.get_file(file.path, str(part), callback=Counter())
            if (size := part.stat().st_size) != file.size:
                raise CheckpointError(f"{self.url}: {file.name} came with {size} bytes of {file.size}", hint="try again: what is whole stays staged")
            os.replace(part, to)
        finally:
            part.unlink(missing_ok=True)
        known = {**self.known(), file.name: [file.size, file.version]}
        replace(self.place / MANIFEST, json.dumps(known))

    def tidy(self) -> None:
        """Remove what an older version of it had, and refuse one that changed on the way."""
        if set(self.find()) != set(self.files):
            raise CheckpointError(f"{self.url}: was replaced while it was being copied", hint="try again when it is whole")
        wanted = {self.here / f.name for f in self.files}
        for path in self.here.rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()


def _place(url: str, where: Path) -> Path:
    return where / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def _checkpoint(url: str, where: Path, *, side_only: bool = False) -> _Checkpoint:
    system, path = _open(url)
    with _telling(url):
        made = _Checkpoint(url, system, path, _place(url, where), side_only=side_only)
        if not side_only and path.endswith(_names().files):  # a web server takes folders for files too
            made.folder, _, made.file = path.rpartition("/")
        made.files = made.find()
    return made


@dataclass
class Staged:
    """Sources that are here, and what was copied for them."""

    paths: dict[str, str]
    downloaded: int
    notes: list[str]
    likenesses: dict[str, str] = field(default_factory=dict)  # URLs by the path of what stands for them in a dry run

    def said(self, text: str) -> str:
        """Give a text with URLs in place of likenesses."""
        for path, url in self.likenesses.items():
            text = text.replace(path, url)
        return text


def stage(
    urls: Sequence[str], *, side: Sequence[str] = (), folder: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Staged:
    """Copy what is behind URLs into a folder, unless it is there already.

    Parameters
    ----------
    urls : sequence of str
        Checkpoints.
    side : sequence of str
        Folders of which only configuration and tokenizer are wanted.

    Raises
    ------
    CheckpointError
        When there is no room, before the first byte; or when a URL cannot be read.
    """
    where = staging(folder)
    found, need = _needed(urls, side, where)
    done, notes = 0, []

    def count(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, need)

    for c in found:
        with c.locked(), _telling(c.url):
            missing = c.missing()
            for file in missing:
                c.fetch(file, count)
            if missing:
                c.tidy()
        came = sum(f.size for f in missing)
        notes.append(f"{c.url}: staged in {c.here}, {came:,} of {sum(f.size for f in c.files):,} bytes copied now")
    return Staged({c.url: str(c.path) for c in found}, need, notes)


def _needed(urls: Sequence[str], side: Sequence[str], where: Path) -> tuple[list[_Checkpoint], int]:
    """Find what URLs stand for, and the bytes of it that are not here, for which there must be room."""
    found = [_checkpoint(u, where) for u in dict.fromkeys(urls)] + [_checkpoint(u, where, side_only=True) for u in dict.fromkeys(side) if u not in urls]
    need = sum(f.size for c in found for f in c.missing())
    _refuse_full(where, need)
    return found, need


@contextmanager
def likenesses(urls: Sequence[str], *, side: Sequence[str], folder: str | os.PathLike[str] | None, model_key: str) -> Iterator[Staged]:
    """Give sources for a dry run: of what is not staged yet the headers, in files of the right sizes."""
    found, _ = _needed(urls, side, staging(folder))
    with tempfile.TemporaryDirectory(prefix="remote-headers-") as headers:
        staged = Staged({c.url: str(c.path) for c in found}, 0, [])
        for i, c in enumerate(found):
            if not (need := sum(f.size for f in c.missing())):
                continue
            to = Path(headers) / str(i) / c.here.name
            with _telling(c.url):
                read = draw(c.system, c.files, _names(), to, model_key)
            staged.paths[c.url] = str(to / c.file) if c.file else str(to)
            staged.likenesses[str(to)] = c.url.rstrip("/").removesuffix("/" + c.file) if c.file else c.url.rstrip("/")
            staged.notes.append(f"{c.url}: {need:,} bytes would be copied to {c.here}; {read:,} were read of it")
        try:
            yield staged
        except TriviumError as error:
            raise type(error)(staged.said(error.message), hint=staged.said(error.hint), plugin=error.plugin, strategy=error.strategy) from error


def _refuse_full(where: Path, need: int) -> None:
    at = where.absolute()
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if need > free:
        raise CheckpointError(f"{where}: staging needs {need:,} bytes, {free:,} are free", hint="make room, or name another cache_dir; nothing has been copied")


def outline(root: str, to: Path) -> dict[str, str]:
    """Make empty likenesses of the checkpoints at or in a remote folder, for the search of a series.

    Returns
    -------
    dict
        The URL of each likeness, by its path.
    """
    system, path = _open(root)
    scheme = root.partition("://")[0]
    urls, names = {}, _names()
    with _telling(root):
        there = [path] if _entry(system, path) else [f for f in _folders(system, path) if _entry(system, f)]
        for i, folder in enumerate(there):
            likeness = to / str(i) / folder.rpartition("/")[2]
            likeness.mkdir(parents=True)
            (likeness / names.entries[0][0]).touch()
            if system.isfile(f"{folder}/{names.trainer}"):
                (likeness / names.trainer).write_bytes(system.cat_file(f"{folder}/{names.trainer}"))
            url = root.rstrip("/") if folder == path else str(system.unstrip_protocol(folder))
            urls[str(likeness)] = url if url.startswith(scheme + "://") else f"{scheme}://{folder}"
    return urls


def _entry(system: Any, folder: str) -> bool:
    """Whether a remote folder is a checkpoint, going by the names of its files."""
    names = _names()

    def among(folder: str) -> set[str]:
        return {str(e["name"]).rstrip("/").rpartition("/")[2] for e in system.ls(folder, detail=True)}

    there = among(folder)
    if there & {*names.all_entries, names.metadata} or any(fnmatchcase(n, names.cut_shards) for n in there):
        return True
    return names.nested in there and names.metadata in among(f"{folder}/{names.nested}")


class Upload:
    """An output behind a URL: a folder here to merge into, then the copy out.

    What has arrived is kept in a journal beside the folder, so that a broken upload goes on
    where it was when the same merge is resumed.
    """

    def __init__(self, url: str, *, folder: str | os.PathLike[str] | None, overwrite: bool, resume: bool, dry_run: bool = False) -> None:
        if url.startswith(("http://", "https://")):
            raise Unsupported(f"{url}: a web server takes no uploads", hint="s3://, gs://, hf://, or a path")
        self.url = url
        self.system, self.remote = _open(url)
        self.place = _place("out " + url, staging(folder))
        self.here = self.place / self.remote.rpartition("/")[2]
        self.overwrite = overwrite
        self.done: dict[str, list[Any]] = {}
        if resume:
            try:
                self.done = json.loads((self.place / UPLOADED).read_text())
            except (OSError, json.JSONDecodeError):
                self.done = {}
        elif self.place.exists() and not dry_run:
            shutil.rmtree(self.place)
        scheme, _, rest = url.partition("://")
        self.in_bucket = scheme in BUCKETS
        with _telling(url):
            bucket = rest.partition("/")[0]
            if self.in_bucket and not self.system.exists(bucket):
                with suppress(FileNotFoundError):
                    self.system.ls(bucket)  # says why, as of credentials
                raise CheckpointError(f"{url}: there is no bucket {bucket}, or it may not be listed", hint="check its name, make it, or check the credentials")
            there = _list(self.system, self.remote) if self.system.isdir(self.remote) else {}
        self.stale = set(there)
        foreign = sorted(self.stale - set(self.done)) if not self._merged(there) else []
        # A whole merge, perhaps the one that is asked for: what its recipe says.
        self.taken = foreign[0] if foreign and resume and RECIPE in there and self.stale & _names().all_entries else ""
        if foreign and not overwrite and not self.taken:
            raise self._holds(foreign[0])
        if not dry_run:
            self.place.mkdir(parents=True, exist_ok=True)

    def _holds(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.url}: already holds {name}", hint="write to an empty folder, or ask for overwriting")

    def holds(self, recipe: str) -> bool:
        """Whether the merge that is there has this recipe, so that a resumed one has nothing to do."""
        with _telling(self.url):
            held = json.loads(self.system.cat_file(f"{self.remote}/{RECIPE}")).get("recipe")
        if held != recipe and not self.overwrite:
            raise self._holds(self.taken)
        return bool(held == recipe)

    def _merged(self, there: dict[str, File]) -> bool:
        """Whether all is there and only the folder here was not removed."""
        return bool(self.done) and self.here.is_dir() and all(p.name in there for p in self.here.iterdir())

    def run(self, progress: Progress | None = None) -> int:
        """Copy the merged checkpoint out, its entry point last, and remove it here. Give the bytes copied."""
        files = sorted(p for p in self.here.iterdir() if p.is_file())
        names = _names()
        # With an index, a shard may have the name of a single file.
        entry = next(p for name in (names.entries[0][1], names.entries[0][0]) for p in files if p.name == name)
        total, copied = sum(p.stat().st_size for p in files), 0
        with _telling(self.url):
            if not self.in_bucket:  # where it would make buckets
                self.system.makedirs(self.remote, exist_ok=True)
            for name in sorted(self.stale & names.all_entries) if self.overwrite else ():
                self.system.rm_file(f"{self.remote}/{name}")  # so that nobody reads a mixture
            for path in [*(p for p in files if p != entry), entry]:
                copied += self._put(path)
                if progress is not None:
                    progress(copied, total)
            mine = {p.name for p in files}
            for name in sorted(self.stale - mine - names.all_entries) if self.overwrite else ():
                if fnmatchcase(name, names.shards) or names.is_side(name):
                    self.system.rm_file(f"{self.remote}/{name}")
        shutil.rmtree(self.place)
        return copied

    def _put(self, path: Path) -> int:
        stat = path.stat()
        to, mark = f"{self.remote}/{path.name}", [stat.st_size, stat.st_mtime_ns]
        if self.done.get(path.name) == mark and self._size(to) == stat.st_size:
            return 0
        self.system.put_file(str(path), to)
        if (size := self._size(to)) != stat.st_size:
            raise CheckpointError(f"{self.url}: {path.name} arrived with {size} bytes of {stat.st_size}", hint="resume the same merge: what has arrived stays")
        self.done[path.name] = mark
        replace(self.place / UPLOADED, json.dumps(self.done))
        return stat.st_size

    def _size(self, path: str) -> int | None:
        self.system.invalidate_cache()
        try:
            return int(self.system.info(path)["size"])
        except FileNotFoundError:
            return None


def refuse(why: str, *paths: str | os.PathLike[str] | None) -> None:
    """Refuse URLs where they make no sense."""
    for path in paths:
        if path is not None and is_url(os.fspath(path)):
            raise Unsupported(f"{os.fspath(path)} is a URL, and {why}", hint="use a path here")


@contextmanager
def outlines(roots: Sequence[str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Give roots to search for a series in, and the URLs of what is found there, by path."""
    with tempfile.TemporaryDirectory(prefix="remote-series-") as folder:
        searched: list[str] = []
        urls: dict[str, str] = {}
        for i, root in enumerate(roots):
            if not is_url(root):
                searched.append(local(root))
                continue
            made = outline(root, Path(folder) / str(i))
            searched += made
            urls |= made
        yield searched, urls
