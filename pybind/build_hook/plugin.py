"""The plugin binary with the built-in strategies, and the manifest that vouches for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from . import toolchain

PACKAGE = "./plugins/builtin"
NAME = "builtin"
FILE = "trivium-builtin"
PROTOCOL = 1


def build(work: Path) -> Path:
    """Give the plugin; Go relinks it only when something changed."""
    binary = work / "plugin" / FILE
    toolchain.run(["go", "build", "-ldflags=-s -w", "-o", str(binary), PACKAGE], toolchain.environment())
    return binary


def install(binary: Path, folder: Path) -> None:
    """Copy the plugin into the package, executable, and write its manifest beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = binary.read_bytes()
    target = folder / FILE
    # A plugin that still runs keeps its file: replace the name, never the bytes.
    target.unlink(missing_ok=True)
    target.write_bytes(content)
    target.chmod(0o755)
    manifest = {
        "name": NAME,
        "file": FILE,
        "sha256": hashlib.sha256(content).hexdigest(),
        "protocol": PROTOCOL,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
