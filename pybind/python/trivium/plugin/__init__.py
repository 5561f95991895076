"""Third-party plugins: write, test, pack, add and look at them.

The command ``trivium plugin`` is a thin layer over this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium.plugin.installed import (
        Added as Added,
        Found as Found,
        add as add,
        added as added,
        discover as discover,
        remove as remove,
        verify as verify,
    )
    from trivium.plugin.lock import Entry as Entry, Lock as Lock, default_lock as default_lock
    from trivium.plugin.manifest import Manifest as Manifest, Rights as Rights
    from trivium.plugin.project import Packed as Packed, Project as Project, pack as pack
    from trivium.plugin.scaffold import new as new

# Where each name lives. An engine reads the lock file, and needs nothing else of this.
_HOMES = {
    "installed": ("Added", "Found", "add", "added", "discover", "remove", "verify"),
    "lock": ("Entry", "Lock", "default_lock"),
    "manifest": ("Manifest", "Rights"),
    "project": ("Packed", "Project", "pack"),
    "scaffold": ("new",),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_NAMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'trivium.plugin' has no attribute {name!r}")
    value = getattr(import_module(f"trivium.plugin.{_NAMES[name]}"), name)
    globals()[name] = value
    return value
