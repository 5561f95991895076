"""Likenesses of remote checkpoints: their headers in files of the right sizes, whose rest is a hole.

A dry run opens, checks and plans with them, and reads none of the weights.
"""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium import _bridge
from trivium._errors import CheckpointError, Unsupported

if TYPE_CHECKING:
    from trivium._remote import File, Names

# Bytes that are asked for at first, and requests that are under way at a time.
FIRST = 64 << 10
AT_ONCE = 16
LOCAL_HEADER = 30
# Files that may come whole, when a web server does not say that it gives ranges.
WHOLE = 16 << 20


def draw(system: Any, files: Sequence[File], names: Names, folder: Path, model_key: str) -> int:
    """Make the likeness of a checkpoint in a folder. Give the bytes that were read."""
    sketches = {f.name: _Sketch(system, f, folder / f.name) for f in files}
    for f in files:
        if f.size > WHOLE and f.path.startswith(("http://", "https://")) and not system.info(f.path).get("partial"):
            raise Unsupported(f"{f.path}: the server does not say that it gives ranges of files", hint="leave the dry run out")
    archives: list[tuple[_Sketch, int, int]] = []
    for name, sketch in sketches.items():
        last = name.rpartition("/")[2]
        if last.endswith(".safetensors"):
            _header(sketch)
        elif names.is_ranks(last):
            sketch.reserve()
        elif last.endswith(names.files):
            archives.append((sketch, 0, sketch.file.size))
        else:
            sketch.read(0, sketch.file.size)
    if any(names.is_ranks(name.rpartition("/")[2]) for name in sketches):
        chunks = _bridge.run("checkpoint.chunks", {"dir": str(folder), "model_key": model_key}, None)["chunks"] or ()
        archives += [(sketches[c["file"]], c["offset"], c["length"]) for c in chunks if c["file"] in sketches]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda a: _archive(*a), archives))
    return sum(s.bytes_read for s in sketches.values())


class _Sketch:
    """A file of which some ranges are copied."""

    def __init__(self, system: Any, file: File, path: Path) -> None:
        self.system, self.file, self.path, self.bytes_read, self.lock = system, file, path, 0, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def reserve(self) -> None:
        with self.path.open("ab") as file:
            file.truncate(self.file.size)

    def read(self, start: int, end: int) -> bytes:
        """Copy a range to its place, as far as the file goes."""
        start, end = max(0, min(start, self.file.size)), max(0, min(end, self.file.size))
        data = bytes(self.system.cat_file(self.file.path, start=start, end=end)) if end > start else b""
        if len(data) == self.file.size:
            data = data[start:end]  # of a server that knows no ranges
        if len(data) != end - start:
            raise CheckpointError(f"{self.file.path}: {len(data)} bytes came of {end - start} from {start} on", hint="try again when it is whole")
        with self.lock:
            self.reserve()
            with self.path.open("r+b") as file:
                file.seek(start)
                file.write(data)
            self.bytes_read += len(data)
        return data


def _header(sketch: _Sketch) -> None:
    """Copy a safetensors file's header; what is wrong with it is said by who opens it."""
    head = sketch.read(0, FIRST)
    length = int.from_bytes(head[:8], "little")
    if FIRST - 8 < length <= 100_000_000:
        sketch.read(FIRST, 8 + length)


def _archive(sketch: _Sketch, start: int, length: int) -> None:
    """Copy all of a zip archive of torch.save but the tensors."""
    sketch.read(start, start + 2)
    try:
        entries = zipfile.ZipFile(_Lazy(sketch, start, length)).infolist()
    except (zipfile.BadZipFile, OSError, EOFError):
        return  # as with a header
    ends = sorted([*(e.header_offset for e in entries), length])
    following = dict(zip(ends, ends[1:]))

    for entry in entries:
        first = start + entry.header_offset
        sketch.read(first, first + LOCAL_HEADER if "/data/" in entry.filename else start + following[entry.header_offset])


class _Lazy(io.RawIOBase):
    """A range of a sketched file, for zipfile: what is read of it is copied."""

    def __init__(self, sketch: _Sketch, start: int, length: int) -> None:
        self.sketch, self.start, self.length, self.at = sketch, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        if at < 0:
            raise OSError("before the beginning")
        self.at = at
        return at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        end = self.length if size < 0 else min(self.at + size, self.length)
        data = self.sketch.read(self.start + self.at, self.start + end)
        self.at += len(data)
        return data
