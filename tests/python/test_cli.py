"""The command line, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from test_merge import checkpoint


def trivium(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "trivium", *arguments], capture_output=True, text=True, timeout=120)


def test_list() -> None:
    found = json.loads(trivium("list", "attention", "-o", "json").stdout)
    assert {"dense", "flexprefill", "streaming", "custom"} <= {i["name"] for i in found}
    assert "attention.flexprefill" in trivium("list").stdout


def test_version() -> None:
    assert trivium("--version").stdout.split() == ["trivium", version("trivium")]


def test_info() -> None:
    assert "gamma" in trivium("info", "flexprefill").stdout
    assert json.loads(trivium("info", "merge.sma", "-o", "json").stdout)["name"] == "sma"


def test_doctor() -> None:
    done = trivium("doctor", "-o", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and not found["problems"]
    assert found["machine"]["kernels"].startswith("cpu:")
    assert ("not available" in found["machine"]["precision high"]) == (found["machine"]["kernels"] != "cpu:amx")


def test_merge(tmp_path: Path) -> None:
    sources = [str(checkpoint(tmp_path / f"step-{s}", s)) for s in range(3)]
    out = str(tmp_path / "out")
    done = trivium("merge", *sources, "--out", out, "--method", "ema", "-p", "alpha=0.3", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["params"]["alpha"] == 0.3
    again = trivium("merge", *sources, "--out", out)
    assert again.returncode == 1 and "CheckpointError" in again.stderr and "next:" in again.stderr


@pytest.mark.parametrize("arguments,status,says", [
    (("info", "flexprefil"), 1, "flexprefill"),
    (("merge", "/nowhere", "--out", "/tmp/x"), 1, "/nowhere"),
    (("merge", "/nowhere", "--out", "/tmp/x", "-p", "alpha"), 1, "name=value"),
    (("lst",), 2, "lst"),
])  # fmt: skip
def test_mistakes_have_no_traceback(arguments: tuple[str, ...], status: int, says: str) -> None:
    done = trivium(*arguments)
    assert done.returncode == status
    assert says in done.stderr and "Traceback" not in done.stderr
