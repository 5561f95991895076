"""Third-party plugins: write, test, pack, add and look at them.

The command ``trivium plugin`` is a thin layer over this package.
"""

from __future__ import annotations

from trivium.plugin.installed import Added, Found, add, discover, installed, remove, verify
from trivium.plugin.lock import Entry, Lock, default_lock
from trivium.plugin.manifest import Manifest, Rights
from trivium.plugin.project import Packed, Project, pack
from trivium.plugin.scaffold import new

__all__ = [
    "Added", "Entry", "Found", "Lock", "Manifest", "Packed", "Project", "Rights", "add", "default_lock", "discover", "installed",
    "new", "pack", "remove", "verify",
]  # fmt: skip
