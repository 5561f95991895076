"""The engine: plugin processes, memory pool and strategies behind every call."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any

from trivium import _bridge
from trivium._errors import EngineClosed

BUILTIN_PLUGINS = Path(__file__).parent / "plugins"


@dataclass(frozen=True)
class Plugin:
    """A plugin process.

    Attributes
    ----------
    kind : str
        The strategies it serves: attention, position or merge.
    pid : int
        0 unless it runs.
    state : str
        idle (starts with the first call), starting, running, crashed (the next call
        starts it again), refused or closed.
    restarts : int
    reason : str
        Why it was refused.
    """

    name: str
    kind: str
    pid: int
    state: str
    restarts: int
    reason: str = ""


class Engine:
    """Runs strategies, each kind in a plugin process of its own, started when first used.

    The module-level functions use a shared engine; make your own for other plugins,
    other limits, or to end its processes at a known time.

    Parameters
    ----------
    plugins : sequence of paths, optional
        Folders with the manifests (``*.json``) of further plugins. One that cannot be
        used is logged, and listed by :meth:`plugins`.
    builtin : path, optional
        Folder of the built-in plugin; default: the one in this package.
    log_level : str
        Level of the engine's log on stderr: debug, info, warning or error.

    Raises
    ------
    PluginMissing, PluginRefused
        When a manifest or its binary is not there, or is not what it was.
    """

    def __init__(
        self,
        plugins: Sequence[str | PathLike[str]] = (),
        *,
        builtin: str | PathLike[str] | None = None,
        log_level: str = "warning",
    ) -> None:
        config = {
            "manifests": [str(Path(builtin or BUILTIN_PLUGINS) / "manifest.json")],
            "dirs": [fspath(p) for p in plugins],
            "log_level": log_level,
        }
        self._handle = _bridge.call("OpenEngine", json.dumps(config))
        self._close = weakref.finalize(self, _close, self._handle)

    @property
    def handle(self) -> int:
        """The number by which the native side knows this engine."""
        if not self._close.alive:
            raise EngineClosed("the engine is closed", hint="make a new trivium.Engine()")
        return int(self._handle)

    def close(self) -> None:
        """End the plugin processes. Later calls raise :class:`EngineClosed`."""
        self._close()

    def plugins(self) -> list[Plugin]:
        """List the plugin processes that were started, and the plugins that were refused."""
        return [Plugin(**p) for p in json.loads(_bridge.call("Plugins", self.handle)) if p["state"] != "idle"]

    def stats(self) -> dict[str, Any]:
        """Count calls, copied bytes and memory; see :func:`trivium.stats`."""
        stats: dict[str, Any] = json.loads(_bridge.call("Stats", self.handle))
        return stats

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<trivium.Engine {'open' if self._close.alive else 'closed'}>"


def _close(handle: int) -> None:
    _bridge.release("CloseEngine", handle)


_lock = threading.Lock()
_default: Engine | None = None


def default_engine() -> Engine:
    """Give the shared engine, made at the first call."""
    global _default
    with _lock:
        if _default is None or not _default._close.alive:
            _default = Engine()
        return _default
