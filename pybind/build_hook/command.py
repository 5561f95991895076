"""The setuptools command that puts the native parts into the package."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools.command.build_ext import build_ext

from . import bridge, plugin, sdk, toolchain

# Inside the module, because gopy's output is compiled as a package of it.
WORK = toolchain.ROOT / "build_gopy"


class BuildNative(build_ext):  # type: ignore[misc]
    """Build with Go instead of a C compiler. The one extension only names the library."""

    def run(self) -> None:
        toolchain.check()
        with exclusive(WORK):
            self.place(bridge.build(WORK), plugin.build(WORK))

    def place(self, library: Path, binary: Path) -> None:
        native = Path(self.get_ext_fullpath("trivium._native._pybind")).parent
        native.mkdir(parents=True, exist_ok=True)
        target = native / library.name
        # A process may have the old library mapped: replace the name, never the bytes.
        target.unlink(missing_ok=True)
        shutil.copy2(library, target)
        plugin.install(binary, native.parent / "plugins")
        sdk.install(native.parent / "plugins" / "_sdk")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one build at a time use the folder."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
