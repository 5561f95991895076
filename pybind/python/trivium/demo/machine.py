"""What the demo runs on, and how much work that machine is given."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

FULL, SHORT, FAST = 8192, 4096, 1024  # tokens of the window


def cpu_flags() -> frozenset[str]:
    """The instruction sets the kernel lists; empty where there is no /proc/cpuinfo."""
    return frozenset(_cpuinfo("flags").split())


def has_wide_vectors() -> bool:
    """Whether the CPU has AMX or AVX-512."""
    return any(flag.startswith(("amx", "avx512")) for flag in cpu_flags())


def default_length() -> int:
    """8,192 tokens, or 4,096 on a machine without wide vectors."""
    return FULL if has_wide_vectors() else SHORT


def default_dtype() -> str:
    """bfloat16 where the CPU multiplies matrices of it, float32 elsewhere."""
    return "bfloat16" if "amx_bf16" in cpu_flags() else "float32"


def environment() -> dict[str, Any]:
    """Versions and machine, for the report."""
    import numpy
    import torch
    import transformers

    import trivium

    return {
        "cpu": _cpuinfo("model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "vectors": " ".join(sorted(f for f in cpu_flags() if f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16"))),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "trivium": trivium.__version__,
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }


def _cpuinfo(field: str) -> str:
    """The first value of a field of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
