"""The engine's log is Python's: loggers below trivium, no handlers, at the level that they have."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trivium
from trivium._logging import level


@pytest.mark.parametrize("set_to,name", [
    (logging.DEBUG, "debug"), (logging.INFO, "info"), (logging.WARNING, "warning"), (logging.ERROR, "error"),
    (logging.CRITICAL, "fatal"), (25, "info"), (1, "trace"),
])  # fmt: skip
def test_levels(set_to: int, name: str) -> None:
    logger = logging.getLogger("trivium")
    before = logger.level
    logger.setLevel(set_to)
    try:
        assert level() in (name, "panic" if name == "fatal" else name)
    finally:
        logger.setLevel(before)


def test_a_refused_plugin_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_text("{")
    with caplog.at_level(logging.WARNING, logger="trivium"), trivium.Engine(plugins=[tmp_path], lock=None) as engine:
        assert [p.state for p in engine.plugins()] == ["refused"]
        deadline = time.monotonic() + 5
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.02)
    assert caplog.records and all(r.name.startswith("trivium") for r in caplog.records)
    assert "broken" in caplog.text
    assert "broken" not in capfd.readouterr().err, "once, and not on stderr as well"


def test_stderr_when_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_text("{")
    with trivium.Engine(plugins=[tmp_path], lock=None, log_level="warning"):
        pass
    assert "broken" in capfd.readouterr().err


def test_no_handlers_are_installed() -> None:
    source = (
        "import logging, numpy as n, trivium; x = n.ones((1, 1, 16, 16), n.float32)\n"
        "trivium.attention(x, x, x, strategy='dense')\n"
        "names = ['', *(m for m in logging.Logger.manager.loggerDict if m.startswith('trivium'))]\n"
        "assert not any(logging.getLogger(m).handlers for m in names), names"
    )
    subprocess.run([sys.executable, "-c", source], check=True)
