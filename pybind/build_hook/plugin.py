"""The plugin binary with the built-in strategies, and the manifest that vouches for it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from . import toolchain

PACKAGE = "./plugins/builtin"
NAME = "builtin"
FILE = "trivium-builtin"
HANDSHAKE = toolchain.ROOT / "plugins" / "handshake.go"


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
        "protocol": protocol(),
        "strategies": describe(binary),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def protocol() -> int:
    """The version of the handshake, from the one place that says so."""
    found = re.search(r"^\s*ProtocolVersion\s*=\s*(\d+)$", HANDSHAKE.read_text(), re.MULTILINE)
    if found is None:
        raise toolchain.BuildError(f"{HANDSHAKE.name} has no line `ProtocolVersion = <number>`")
    return int(found[1])


def describe(binary: Path) -> list[dict[str, Any]]:
    """What the plugin serves: the host lists strategies without starting a process."""
    done = subprocess.run([binary, "--describe"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise toolchain.BuildError(f"{binary.name} --describe failed:\n{done.stderr}")
    strategies: list[dict[str, Any]] = json.loads(done.stdout)
    return strategies
