"""The Go sources that `trivium plugin new` puts into a new plugin, until the module is published."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from . import toolchain

# What a plugin imports, and what its conformance suite does. No cgo.
FOLDERS = (
    "core", "core/checkpoint", "core/tensor", "plugins", "plugins/confine", "plugins/host", "plugins/lane", "plugins/proto/v1", "plugins/sdk",
    "plugins/sdk/sdktest", "plugins/shm", "plugins/wire",
)  # fmt: skip
TEMPLATES = ("attention", "select", "position", "merge")


def install(folder: Path) -> None:
    """Copy the module that plugins import to `folder`/module, and the templates beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    for source in files():
        target = folder / "module" / source.relative_to(toolchain.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for name in TEMPLATES:
        target = folder / "template" / name
        target.mkdir(parents=True)
        for file in ("main.go", "strategy.go"):
            shutil.copyfile(toolchain.ROOT / "plugins" / "template" / name / file, target / file)
    protos = toolchain.ROOT / "plugins" / "proto" / "trivium"
    shutil.copytree(protos, folder / "proto" / "trivium")


def files() -> Iterator[Path]:
    """The files of the module that plugins need."""
    for name in ("go.mod", "go.sum", "LICENSE"):
        yield toolchain.ROOT / name
    for folder in FOLDERS:
        for path in sorted((toolchain.ROOT / folder).glob("*.go")):
            if not path.name.endswith("_test.go"):
                yield path
