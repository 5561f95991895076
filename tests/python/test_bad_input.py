"""Mistakes: each a typed error that says what was wrong and what to do, and the next call works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch

import trivium
from trivium._engine import BUILTIN_PLUGINS
from trivium.report import Times

Q = np.ones((1, 4, 40, 16), dtype=np.float32)
K = np.ones((1, 2, 40, 16), dtype=np.float32)


def attend(q: Any = Q, k: Any = K, v: Any = K, **call: Any) -> Any:
    return trivium.attention(q, k, v, **{"strategy": "dense", **call})


def closed() -> trivium.Engine:
    engine = trivium.Engine(lock=None)
    engine.close()
    return engine


def plan() -> trivium.PositionPlan:
    return trivium.position("rope").plan(head_dim=8, length=8, rope_theta=1e4)


def cache(states: Any) -> Any:
    from trivium.hf import Cache

    return Cache().update(states, states, 0)


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "three axes": (lambda: attend(Q[0]), trivium.InvalidArgument, "4 axes"),
    "heads do not divide": (lambda: attend(Q[:, :3]), trivium.InvalidArgument, "layout"),
    "head_dim differs": (lambda: attend(Q[..., :8]), trivium.InvalidArgument, "head_dim 8"),
    "batch differs": (lambda: attend(np.concatenate([Q, Q])), trivium.InvalidArgument, "batch 2"),
    "key and value differ": (lambda: attend(v=K[:, :, :20]), trivium.InvalidArgument, "same heads and length"),
    "dtypes differ": (lambda: attend(Q.astype(np.float16)), trivium.InvalidArgument, "float16, float32"),
    "float64": (lambda: attend(*(x.astype(np.float64) for x in (Q, K, K))), trivium.InvalidArgument, "want one of"),
    "complex": (lambda: attend(Q.astype(np.complex64)), trivium.InvalidArgument, "complex64"),
    "objects": (lambda: attend([[1.0]]), trivium.InvalidArgument, "asarray"),
    "no value": (lambda: trivium.attention(Q, K), trivium.InvalidArgument, "value are needed"),
    "zero length": (lambda: attend(Q[:, :, :0]), trivium.InvalidArgument, "no elements"),
    "negative strides": (lambda: attend(Q[:, :, ::-1]), trivium.InvalidArgument, "ascontiguousarray"),
    "last axis strided": (lambda: attend(np.repeat(Q, 2, -1)[..., ::2]), trivium.InvalidArgument, "last axis"),
    "meta tensor": (lambda: attend(torch.empty(1, 4, 40, 16, device="meta")), trivium.DeviceUnavailable, "meta"),
    "unknown strategy": (lambda: attend(strategy="dnse"), trivium.UnknownStrategy, 'did you mean "dense"'),
    "unknown position": (lambda: attend(position="strng", rope_theta=1e4), trivium.UnknownStrategy, '"string"'),
    "position without frequencies": (lambda: attend(position="rope"), trivium.InvalidArgument, "rope_theta"),
    "negative theta": (lambda: attend(position="rope", rope_theta=-1.0), trivium.InvalidArgument, "positive"),
    "unknown parameter": (lambda: attend(gama=1), trivium.InvalidArgument, "unknown parameter"),
    "near parameter": (lambda: attend(strategy="flexprefill", gama=1), trivium.InvalidArgument, 'did you mean "gamma"'),
    "NaN parameter": (lambda: attend(strategy="flexprefill", gamma=float("nan")), trivium.InvalidArgument, "gamma: nan"),
    "parameter out of range": (lambda: attend(strategy="flexprefill", gamma=1.5), trivium.InvalidArgument, "(0, 1]"),
    "parameter of a strange type": (lambda: attend(strategy="flexprefill", gamma=object()), trivium.InvalidArgument, "object"),
    "choice": (lambda: attend(strategy="flexprefill", rule="papr"), trivium.InvalidArgument, '"paper"'),
    "NaN scale": (lambda: attend(scale=float("nan")), trivium.InvalidArgument, "scale"),
    "zero window": (lambda: attend(window=0), trivium.InvalidArgument, "window"),
    "negative softcap": (lambda: attend(softcap=-1), trivium.InvalidArgument, "softcap"),
    "precision": (lambda: attend(precision="medium"), trivium.InvalidArgument, '"highest" or "high"'),
    "too few sinks": (lambda: attend(sinks=[1.0]), trivium.InvalidArgument, "4 query heads"),
    "negative offset": (lambda: attend(q_offset=-1), trivium.InvalidArgument, "q_offset"),
    "offsets for another batch": (lambda: attend(q_offset=[0, 0]), trivium.InvalidArgument, "q_offset"),
    "fractional lengths": (lambda: attend(k_start=[0.5]), trivium.InvalidArgument, "integers"),
    "start after end": (lambda: attend(k_start=[30], k_end=[20]), trivium.InvalidArgument, "after k_end"),
    "cu_seqlens": (lambda: attend(k=Q, v=Q, cu_seqlens=[0, 30]), trivium.InvalidArgument, "cu_seqlens"),
    "layout": (lambda: attend(layout="bndh"), trivium.InvalidArgument, "layout"),
    "device": (lambda: attend(device="cuda:0"), trivium.InvalidArgument, "cuda:0"),
    "timeout": (lambda: attend(timeout=-1), trivium.InvalidArgument, "timeout"),
    "mask without block size": (lambda: attend(strategy="custom", mask=np.ones((4, 1, 1), bool)), trivium.InvalidArgument, "block_size"),
    "mask of another shape": (lambda: attend(strategy="custom", mask=np.ones((4, 9, 9), bool), block_size=16), trivium.InvalidArgument, "9 x 9"),
    "mask of floats": (lambda: attend(strategy="custom", mask=np.ones((4, 3, 3)), block_size=16), trivium.InvalidArgument, "bool"),
    "custom without mask": (lambda: attend(strategy="custom"), trivium.InvalidArgument, "mask"),
    "one path for sources": (lambda: trivium.merge("a", "b"), trivium.InvalidArgument, "list"),
    "no checkpoint": (lambda: trivium.merge(["/nowhere"], "/tmp/out"), trivium.CheckpointError, "/nowhere"),
    "merge method": (lambda: trivium.merge(["/nowhere"], "/tmp/out", method="smaa"), trivium.UnknownStrategy, '"sma"'),
    "strategy to describe": (lambda: trivium.info("flexprefil"), trivium.UnknownStrategy, "flexprefill"),
    "kind to list": (lambda: trivium.list("attentions"), trivium.InvalidArgument, "attention, position or merge"),  # type: ignore[arg-type]
    "head dimension of a plan": (lambda: trivium.position("rope").plan(head_dim=7, length=8, rope_theta=1e4), trivium.InvalidArgument, "head_dim"),
    "name and tensors": (lambda: trivium.attention("dense", K, K), trivium.InvalidArgument, "either"),
    "a mask and a strategy that makes one": (lambda: attend(strategy="python.no_such"), trivium.UnknownStrategy, "subclass"),
    "heads of a per-head list": (lambda: attend(strategy="flexprefill", gamma=[0.9, 0.8]), trivium.InvalidArgument, "each of 4"),
    "wrong log level": (lambda: trivium.Engine(log_level="loud"), trivium.InvalidArgument, "debug"),
    "closed engine": (lambda: attend(engine=closed()), trivium.EngineClosed, "trivium.Engine()"),
    "blocks of another head": (lambda: trivium.select(Q, K, strategy="dense").blocks(0, 9), trivium.InvalidArgument, "4 heads"),
    "a matrix of no tokens": (lambda: plan().relative_positions(0), trivium.InvalidArgument, "want"),
    "unknown bound": (lambda: attend(bound="sure", probe_rows=8), trivium.InvalidArgument, '"proven"'),
    "delta of a normal bound": (lambda: attend(delta=0.1, probe_rows=8), trivium.InvalidArgument, '"proven"'),
    "delta of 1": (lambda: attend(bound="proven", delta=1.0, probe_rows=8), trivium.InvalidArgument, "(0, 1)"),
    "delta of 0": (lambda: attend(bound="proven", delta=0, probe_rows=8), trivium.InvalidArgument, "positive"),
    "NaN delta": (lambda: attend(bound="proven", delta=float("nan"), probe_rows=8), trivium.InvalidArgument, "delta"),
    "a proof without rows": (lambda: attend(strategy="custom", mask=np.eye(3, dtype=bool)[None], block_size=16, bound="proven"), trivium.InvalidArgument, "probe_rows"),
    "no probe rows": (lambda: trivium.Report("x", "cpu", 1, 1.0, Times()).plot(), trivium.InvalidArgument, "probe_rows"),
    "a table of a spreadsheet": (lambda: attend(return_report=True)[1].table("excel"), trivium.InvalidArgument, "pandas"),
    "patch of something else": (lambda: trivium.patch("llama").__enter__(), trivium.InvalidArgument, "transformers model"),
    "cache on another device": (lambda: cache(torch.empty(1, 2, 3, 4, device="meta")), trivium.DeviceUnavailable, "DynamicCache"),
    "plan of no length": (lambda: trivium.position("rope").plan(head_dim=8, length=0, rope_theta=1e4), trivium.InvalidArgument, "length 0"),
}  # fmt: skip


NEXT_STEP = re.compile(r"\b(want|takes|need|needs|needed|excludes|pass|use)\b")
LEAKS = ("goroutine", "rpc error", "Traceback", "json: ", "invalid character", "grpc", "code = ", "desc = ", ".go:")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str) -> None:
    mistake, kind, says = MISTAKES[name]
    with pytest.raises(kind) as caught:
        mistake()
    error = caught.value
    assert isinstance(error, trivium.TriviumError) and error.kind
    assert says in f"{error} {error.hint}"
    assert error.hint or NEXT_STEP.search(str(error)), "says what would be right, or what to do"
    for leak in LEAKS:
        assert leak not in str(error)
    assert attend().shape == Q.shape


def engine_with(tmp_path: Path, change: Callable[[Path], None]) -> trivium.Engine:
    folder = tmp_path / "plugins"
    shutil.copytree(BUILTIN_PLUGINS, folder)
    change(folder)
    return trivium.Engine(builtin=folder)


def tamper(folder: Path) -> None:
    binary = folder / "trivium-builtin"
    content = bytearray(binary.read_bytes())
    content[len(content) // 2] ^= 1
    binary.write_bytes(content)


def lie(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["strategies"][0]["summary"] = "something else"
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("change,kind", [
    (lambda folder: (folder / "trivium-builtin").unlink(), trivium.PluginMissing),
    (lambda folder: (folder / "manifest.json").unlink(), trivium.PluginMissing),
    (lambda folder: (folder / "manifest.json").write_text("{"), trivium.PluginRefused),
    (lambda folder: os.truncate(folder / "trivium-builtin", 1000), trivium.PluginRefused),
    (tamper, trivium.PluginRefused),
    (lie, trivium.PluginRefused),
], ids=["no binary", "no manifest", "broken manifest", "truncated", "tampered", "lying manifest"])  # fmt: skip
def test_bad_plugin(change: Callable[[Path], None], kind: type[trivium.TriviumError], tmp_path: Path) -> None:
    with pytest.raises(kind) as caught, engine_with(tmp_path, change) as engine:
        attend(engine=engine)
    assert caught.value.hint or "want" in str(caught.value)
    assert attend().shape == Q.shape


# The command line: each a process, its status documented, its message with a next step


COMMANDS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no such command": (("lst",), 2, "No such command"),
    "no such option": (("list", "--colour"), 2, "No such option"),
    "no such kind": (("list", "attentions"), 2, "attention"),
    "no such output": (("list", "-o", "xml"), 2, "json"),
    "no such strategy": (("info", "flexprefil"), 1, "flexprefill"),
    "brackets in a name": (("info", "[/red]"), 1, "[/red]"),
    "no sources": (("merge", "--out", "{tmp}/out"), 1, "want checkpoint folders"),
    "nowhere to merge": (("merge", "{tmp}/nowhere", "--out", "{tmp}/out"), 1, "nowhere"),
    "no such method": (("merge", "{tmp}", "--out", "{tmp}/out", "--method", "smaa"), 1, "sma"),
    "parameter without value": (("merge", "{tmp}", "--out", "{tmp}/out", "-p", "alpha"), 1, "name=value"),
    "weights that are no numbers": (("merge", "{tmp}", "--out", "{tmp}/out", "--weights", "a,b"), 1, "numbers"),
    "a demo without a model": (("demo", "--fast", "--model-dir", "{tmp}", "--out", "{tmp}/demo"), 1, "Hugging Face model folder"),
    "a folder that cannot be written": (("plugin", "new", "x", "--kind", "position", "--dir", "/proc/nowhere"), 1, "/proc/nowhere"),
    "a plugin that is not there": (("plugin", "info", "no-such-plugin"), 1, "plugin list"),
    "a plugin of a strange kind": (("plugin", "new", "x", "--kind", "attn", "--dir", "{tmp}/x"), 1, "attention"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_mistake_on_the_command_line(name: str, tmp_path: Path) -> None:
    arguments, status, says = COMMANDS[name]
    done = subprocess.run(
        [sys.executable, "-m", "trivium", *(a.format(tmp=tmp_path) for a in arguments)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert status == 2 or "next:" in done.stderr or NEXT_STEP.search(done.stderr)
    for leak in LEAKS:
        assert leak not in done.stderr.replace("config.json: ", "")


def test_every_status_is_documented() -> None:
    from trivium.cli import EXIT_CODES

    assert {0, 130, *(status for _, status, _ in COMMANDS.values())} == set(EXIT_CODES)


def test_a_bug_is_one_line_and_a_traceback_when_asked_for() -> None:
    source = "import trivium.cli.app as a, trivium; trivium.list = None; a.trivium.list = None; import sys; sys.argv = ['trivium', 'list']; a.run()"
    found = [
        subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env={**os.environ, **extra}).stderr
        for extra in ({}, {"TRIVIUM_TRACEBACK": "1"})
    ]
    assert "Traceback" not in found[0] and "InternalError" in found[0] and "TRIVIUM_TRACEBACK=1" in found[0]
    assert "Traceback" in found[1]
