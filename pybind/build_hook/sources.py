"""What a Go package is made of, as one digest: equal digests need no rebuild."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from . import toolchain

KINDS = ("GoFiles", "CgoFiles", "CFiles", "HFiles", "SFiles", "EmbedFiles")
SETTINGS = ("GOVERSION", "GOOS", "GOARCH", "GOAMD64", "CC", "CGO_CFLAGS", "CGO_LDFLAGS")


def digest(package: str, *facts: str) -> str:
    """SHA-256 over the module's files below `package`, Go's settings and `facts`."""
    sha = hashlib.sha256()
    for fact in (*facts, toolchain.output("env", *SETTINGS)):
        sha.update(fact.encode() + b"\0")
    for path in sorted(files(package)):
        sha.update(str(path.relative_to(toolchain.ROOT)).encode() + b"\0")
        sha.update(path.read_bytes())
    return sha.hexdigest()


def files(package: str) -> Iterator[Path]:
    """The files of `package` and of what it imports from this module."""
    yield toolchain.ROOT / "go.mod"
    yield toolchain.ROOT / "go.sum"
    yield from Path(__file__).parent.glob("*.py")
    listing = toolchain.output("list", "-deps", "-json=Dir,Module," + ",".join(KINDS), package)
    decoder = json.JSONDecoder()
    position = 0
    while position < len(listing):
        entry, position = decoder.raw_decode(listing, position)
        position += 1
        if not entry.get("Module", {}).get("Main"):
            continue
        for kind in KINDS:
            for name in entry.get(kind, []):
                yield Path(entry["Dir"]) / name
