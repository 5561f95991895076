"""What the engine logs, in Python's loggers below ``trivium``. No handler is installed.

The engine writes entries into a pipe, since nothing calls from Go into Python; a
thread reads them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Any

LEVELS = {"trace": 5, "debug": 10, "info": 20, "warning": 30, "error": 40, "fatal": 50, "panic": 50}
OWN = ("level", "msg", "time", "component")  # fields that a record has under other names

_lock = threading.Lock()
_writing: int | None = None


def level() -> str:
    """The engine's name for the level of the logger ``trivium``."""
    wanted = logging.getLogger("trivium").getEffectiveLevel()
    return max((name for name, number in LEVELS.items() if number <= max(wanted, 5)), key=LEVELS.__getitem__)


def pipe() -> int:
    """The descriptor that every engine of this process writes entries to."""
    global _writing
    with _lock:
        if _writing is None:
            reading, _writing = os.pipe()
            os.set_blocking(_writing, False)
            threading.Thread(target=_read, args=(reading,), name="trivium-log", daemon=True).start()
        return _writing


def _read(reading: int) -> None:
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # cut short when the pipe was full
                continue
            _emit(entry)


def _emit(entry: dict[str, Any]) -> None:
    component = entry.get("component", "")
    logger = logging.getLogger(f"trivium.{component}" if component else "trivium")
    fields = {name: value for name, value in entry.items() if name not in OWN}
    told = "".join(f", {name} {value}" for name, value in fields.items())
    logger.log(LEVELS.get(entry.get("level", ""), 30), "%s%s", entry.get("msg", ""), told, extra={"trivium": fields})
