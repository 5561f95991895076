"""Everything but the native parts is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent / "pybind"))

from build_hook.command import BuildNative

setup(
    ext_modules=[Extension("trivium._native._pybind", [])],
    cmdclass={"build_ext": BuildNative},
)
