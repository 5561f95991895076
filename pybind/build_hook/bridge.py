"""The library that Python imports: gopy binds ./pybind and Go links it."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

from . import sources, toolchain

PACKAGE = "./pybind"
TOOLS = ("github.com/go-python/gopy", "golang.org/x/tools/cmd/goimports")
LIBRARY = f"_pybind{sysconfig.get_config_var('EXT_SUFFIX')}"


def build(work: Path) -> Path:
    """Give the library, built for this Python unless `work` holds a current one.

    `work` must lie inside the module, since gopy's output is compiled as a package
    of it; the leading underscore keeps that package out of `./...`.
    """
    folder = work / f"_{sys.implementation.cache_tag}"
    library = folder / LIBRARY
    stamp = folder / "stamp"
    wanted = sources.digest(PACKAGE, sys.version, sys.executable, version("pybindgen"))
    if library.exists() and stamp.exists() and stamp.read_text() == wanted:
        return library
    shutil.rmtree(folder, ignore_errors=True)
    bind(folder)
    remove_rpath(library)
    stamp.write_text(wanted)
    return library


def bind(folder: Path) -> None:
    """Run gopy. It looks for goimports on PATH, so both tools go into one folder first."""
    with tempfile.TemporaryDirectory(prefix="gopy-tools-") as tools:
        toolchain.run(["go", "build", "-o", f"{tools}/", *TOOLS], toolchain.environment())
        toolchain.run(
            [
                f"{tools}/gopy", "build",
                f"-vm={sys.executable}",
                f"-output={folder}",
                "-name=pybind",
                # The default links libpython, which a wheel must not.
                "-dynamic-link=true",
                "-symbols=false",
                "-no-make",
                PACKAGE,
            ],
            toolchain.environment(PATH=os.pathsep.join([tools, toolchain.environment()["PATH"]])),
        )


def remove_rpath(library: Path) -> None:
    """Drop the build machine's Python folder from the library's search path."""
    if not library.exists():
        raise toolchain.BuildError(f"gopy ended without an error and without {library.name}")
    # Removing it leaves its text in the file; setting another wipes that first.
    for change in (["--set-rpath", "x"], ["--remove-rpath"]):
        toolchain.run(["patchelf", *change, str(library)], toolchain.environment())
