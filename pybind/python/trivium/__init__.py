"""Attention, position and merge strategies for long-context language models.

Every strategy runs in a plugin process of its own and sees the caller's tensors in
shared memory.

>>> import numpy as np, trivium
>>> q = k = v = np.random.default_rng(0).standard_normal((1, 8, 4096, 64), dtype=np.float32)
>>> out, report = trivium.attention(q, k, v, strategy="flexprefill", gamma=0.9, return_report=True)
>>> report.density  # doctest: +SKIP
0.31
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium import hf as hf
    from trivium._attention import Attention as Attention, attention as attention, select as select
    from trivium._engine import Engine as Engine, Plugin as Plugin
    from trivium._errors import (
        Cancelled as Cancelled,
        CheckpointError as CheckpointError,
        DeadlineExceeded as DeadlineExceeded,
        DeviceUnavailable as DeviceUnavailable,
        EngineClosed as EngineClosed,
        ForkedProcessError as ForkedProcessError,
        InternalError as InternalError,
        InvalidArgument as InvalidArgument,
        OutOfMemory as OutOfMemory,
        PluginCrashed as PluginCrashed,
        PluginMissing as PluginMissing,
        PluginRefused as PluginRefused,
        TriviumError as TriviumError,
        UnknownStrategy as UnknownStrategy,
        Unsupported as Unsupported,
    )
    from trivium._tensor import empty as empty
    from trivium.catalog import (
        Doctor as Doctor,
        Info as Info,
        doctor as doctor,
        info as info,
        list_strategies as list,
        plugins as plugins,
        stats as stats,
    )
    from trivium.hf import patch as patch, trace as trace
    from trivium.masks import BlockMask as BlockMask
    from trivium.merging import MergeReport as MergeReport, merge as merge
    from trivium.pma import series as series, similarity as similarity, sweep as sweep, watch as watch
    from trivium.positions import Position as Position, PositionPlan as PositionPlan, position as position
    from trivium.report import Report as Report
    from trivium.strategy import Strategy as Strategy

# Where each public name lives. They are imported when first used, so that
# `import trivium` costs milliseconds.
_HOMES = {
    "trivium._attention": ("Attention", "attention", "select"),
    "trivium._engine": ("Engine", "Plugin"),
    "trivium._errors": (
        "Cancelled", "CheckpointError", "DeadlineExceeded", "DeviceUnavailable", "EngineClosed", "ForkedProcessError",
        "InternalError", "InvalidArgument", "OutOfMemory", "PluginCrashed", "PluginMissing", "PluginRefused",
        "TriviumError", "UnknownStrategy", "Unsupported",
    ),
    "trivium._tensor": ("empty",),
    "trivium.catalog": ("Doctor", "Info", "doctor", "info", "plugins", "stats"),
    "trivium.hf": ("patch", "trace"),
    "trivium.masks": ("BlockMask",),
    "trivium.merging": ("MergeReport", "merge"),
    "trivium.pma": ("series", "similarity", "sweep", "watch"),
    "trivium.positions": ("Position", "PositionPlan", "position"),
    "trivium.report": ("Report",),
    "trivium.strategy": ("Strategy",),
}  # fmt: skip
_NAMES = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("conformance", "effective", "hf", "viz", "demo", "eval", "pma", "strategy")

__all__ = [*sorted(_NAMES), "hf", "list"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # half of the time of an import

        return version("trivium")
    if name == "list":
        value = import_module("trivium.catalog").list_strategies
    elif name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"trivium.{name}")
    else:
        raise AttributeError(f"module 'trivium' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:  # type: ignore[valid-type]
    return sorted([*globals(), *__all__, "__version__"])
