"""The engine: plugin processes, memory pool and strategies behind every call."""

from __future__ import annotations

import json
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any

from trivium import _bridge, _sent
from trivium._errors import EngineClosed

# Stands for what the environment and the working directory say.
DEFAULT = "default"

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
    confined : bool
        Whether it may do no more than its rights say.
    rights : str
    """

    name: str
    kind: str
    pid: int
    state: str
    restarts: int
    reason: str = ""
    confined: bool = False
    rights: str = ""


class Engine:
    """Runs strategies, each kind in a plugin process of its own, started when first used.

    The module-level functions use a shared engine; make your own for other plugins,
    other limits, or to end its processes at a known time.

    Parameters
    ----------
    plugins : sequence of paths, optional
        Folders with the manifests (``*.json``) of further plugins. One that cannot be
        used is logged, and listed by :meth:`plugins`.
    lock : path or None, optional
        ``plugins.lock``, whose plugins ``trivium plugin add`` has put on this machine;
        default: this folder's, else the user's. None: none.
    packages : bool
        Whether to use the plugins that installed packages bring.
    locked : bool
        Refuse plugins that are not in the lock; default: what ``TRIVIUM_LOCKED`` says.
    confine : bool
        Whether third-party plugins are confined: no network, no other processes, no
        files but the system's, unless they have the right.
    grant : bool
        Give the plugins of `plugins` and of packages the rights that they ask for;
        otherwise only the lock does.
    settings : path, dict or None, optional
        Defaults of parameters, by dotted identifier; default: ``trivium.toml`` of this
        folder, if there is one.
    builtin : path, optional
        Folder of the built-in plugin; default: the one in this package.
    log_level : str
        Write the engine's log to stderr from this level on: debug, info, warning or
        error; default: what ``TRIVIUM_LOG`` says. Without either it goes to Python's
        loggers below ``trivium``, at the level that this one has now.

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
        lock: str | PathLike[str] | None = DEFAULT,
        packages: bool = True,
        locked: bool | None = None,
        confine: bool = True,
        grant: bool = False,
        settings: str | PathLike[str] | Mapping[str, Mapping[str, Any]] | None = DEFAULT,
        log_level: str | None = None,
    ) -> None:
        config = {
            "manifests": [str(Path(builtin or BUILTIN_PLUGINS) / "manifest.json")],
            "dirs": [*(fspath(p) for p in plugins), *(_packages() if packages else ())],
            **_lock_paths(lock),
            "locked": os.environ.get("TRIVIUM_LOCKED", "") not in ("", "0") if locked is None else locked,
            "unconfined": not confine,
            "grant": grant,
            "defaults": _settings(settings),
            "python": {"executable": sys.executable, "read": [sys.prefix, sys.base_prefix]},
            **_log(log_level or os.environ.get("TRIVIUM_LOG")),
            "env": _environment(),
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
        _sent.settle()  # it would wait for calls that nobody waits for
        self._close()

    def plugins(self) -> list[Plugin]:
        """List the plugin processes that were started, and the plugins that were refused."""
        return [Plugin(**p) for p in json.loads(_bridge.call("Plugins", self.handle)) if p["state"] != "idle"]

    def check(self) -> dict[str, Any]:
        """Start every plugin process and ask it what it serves; say what can confine it."""
        checked: dict[str, Any] = _bridge.run("doctor", {"engine": self.handle}, timeout=60)
        return checked

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


def _log(level: str | None) -> dict[str, Any]:
    if level:
        return {"log_level": level}
    from trivium._logging import level as python_level, pipe

    return {"log_level": python_level(), "log_pipe": pipe()}


def _lock_paths(path: str | PathLike[str] | None) -> dict[str, str]:
    # Found here: Go has the environment of when it was loaded.
    from trivium.plugin.lock import default_lock, default_store

    if path is None:
        return {"lock": ""}
    return {"lock": str(default_lock()) if path == DEFAULT else fspath(path), "store": str(default_store())}


def _packages() -> list[str]:
    from importlib.metadata import entry_points

    if not entry_points(group="trivium.plugins"):
        return []
    from trivium.plugin.installed import discover

    return [str(found.folder) for found in discover()]


def _settings(given: str | PathLike[str] | Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {name: dict(params) for name, params in given.items()}
    from trivium import settings

    path = settings.default_settings() if given == DEFAULT else Path(given)
    return settings.read(path) if path else {}


def _environment() -> list[str]:
    from trivium import _cuda

    return _cuda.environment()


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
