"""The measured length up to which dense attention is the faster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import trivium
from trivium import tuning

CALL = """
import numpy as np, trivium
q = np.random.default_rng(0).standard_normal((1, 2, {n}, 64), dtype=np.float32)
_, report = trivium.attention(q, q, q, strategy="streaming", recent=64, sink=64, return_report=True)
print(report.density, report.notes)
"""


def call(cache: Path, n: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CALL.format(n=n)], capture_output=True, text=True, timeout=120, env={**os.environ, "XDG_CACHE_HOME": str(cache)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tune_writes_what_it_returns(tmp_path: Path) -> None:
    path, seen = tmp_path / "crossover.json", []
    found = tuning.tune(["streaming", "xattention"], lengths=(128, 256), path=path, progress=lambda *at: seen.append(at))
    assert json.loads(path.read_text()) == found and seen[-1] == (8, 8)
    assert found["backend"].startswith("cpu:")
    assert set(found["dense_up_to"]) == {"streaming", "xattention"}
    limits = [limit for row in found["dense_up_to"].values() for limit in row.values()]
    assert len(limits) == 8 and set(limits) <= {0, 128, 256}


def test_the_limit_is_the_longest_that_does_not_pay() -> None:
    assert tuning._limit((1, 2, 4), (False, True, True)) == 1
    assert tuning._limit((1, 2, 4), (True, False, True)) == 2
    assert tuning._limit((1, 2, 4), (True, True, True)) == 0


def test_short_prompts_are_dense_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "trivium").mkdir()
    backend = trivium.doctor().machine["kernels"]
    (tmp_path / "trivium/crossover.json").write_text(json.dumps({"backend": backend, "dense_up_to": {"streaming": {"float32/64": 700}}}))
    short, long = call(tmp_path, 700), call(tmp_path, 900)
    assert float(short.split()[0]) == 1 and "up to 700 tokens dense is the faster" in short
    assert float(long.split()[0]) < 1 and "faster" not in long
