"""FlexPrefill's released index search, from the authors' code: the same blocks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import trivium
from conftest import ROOT

HERE = ROOT / "tests" / "golden" / "flexprefill"
SHARED = Path(os.environ.get("TRIVIUM_SHARED", ROOT.parent / "shared")) / "data" / "golden" / "flexprefill"
INDEX: list[dict[str, Any]] = json.loads((HERE / "index.json").read_text())


def load(case: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    for folder in (HERE, SHARED):
        if (folder / case["file"]).exists():
            return load_file(folder / case["file"])
    pytest.skip(f"{case['file']} is not shipped with the project; TRIVIUM_SHARED names the folder that has it")


@pytest.mark.parametrize("case", INDEX, ids=[c["file"] for c in INDEX])
def test_released_rule(case: dict[str, Any]) -> None:
    data = load(case)
    q, k, v = (data[x][None].astype(np.float32) for x in "qkv")
    params = {p: case[p] for p in ("gamma", "tau", "min_budget", "max_budget", "block_size", "gqa_interleave")}
    out, lse, report = trivium.attention(
        q, k, v, strategy="flexprefill", rule="released", return_lse=True, return_report=True, return_mask=True, **params
    )
    for head in range(case["q_heads"]):
        pairs = report.mask.blocks(0, head)
        start, end = data["head_offsets"][head : head + 2]
        np.testing.assert_array_equal(pairs[:, 0] * case["num_blocks"] + pairs[:, 1], data["blocks"][start:end])
    np.testing.assert_allclose([h.js_distance for h in report.heads], data["js_distance"], atol=1e-4)
    assert [h.pattern == "query_aware" for h in report.heads] == case["query_aware"]
    assert report.density == pytest.approx(case["density"])
    np.testing.assert_allclose(out[0], data["output"], atol=2e-3)
    np.testing.assert_allclose(lse[0], data["lse"], atol=1e-3)
