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
LAUNCHER_PACKAGE = "./plugins/confine/launcher"
LAUNCHER = "trivium-confine"
HANDSHAKE = toolchain.ROOT / "plugins" / "handshake.go"


def build(work: Path) -> Path:
    """Give the plugin; Go relinks it only when something changed."""
    binary = work / "plugin" / FILE
    toolchain.run(["go", "build", "-ldflags=-s -w", "-o", str(binary), PACKAGE], toolchain.environment())
    launcher = work / "plugin" / LAUNCHER
    toolchain.run(["go", "build", "-ldflags=-s -w", "-o", str(launcher), LAUNCHER_PACKAGE], toolchain.environment(CGO_ENABLED="0"))
    return binary


def install(binary: Path, folder: Path) -> None:
    """Copy the plugin and the launcher into the package, executable, and write the manifest beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "name": NAME,
        "file": FILE,
        "sha256": place(binary, folder / FILE),
        "protocol": protocol(),
        "strategies": describe(binary),
        "launcher": {"file": LAUNCHER, "sha256": place(binary.with_name(LAUNCHER), folder / LAUNCHER)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def place(binary: Path, target: Path) -> str:
    """Copy an executable and give its SHA-256."""
    content = binary.read_bytes()
    # A plugin that still runs keeps its file: replace the name, never the bytes.
    target.unlink(missing_ok=True)
    target.write_bytes(content)
    target.chmod(0o755)
    return hashlib.sha256(content).hexdigest()


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
