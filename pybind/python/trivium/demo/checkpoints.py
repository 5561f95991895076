"""The merge of the demo: the last four checkpoints of a real training run."""

from __future__ import annotations

import io
import lzma
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

import trivium
from trivium.demo.progress import quiet_transformers

STEPS = ("step-02400", "step-02600", "step-02800", "step-03000")
ANNEALED = "annealed-03000"
BATCH = 32  # documents to a forward pass


@dataclass(frozen=True)
class MergeOutcome:
    """Held-out loss, natural log per token, of three sets of weights."""

    last: float
    merged: float
    annealed: float
    method: str
    sources: tuple[str, ...]
    documents: int
    merge_s: float


def unpack(folder: Path) -> None:
    """Write the checkpoints and the held-out tokens that ship with the demo."""
    packed = (files("trivium.demo") / "data" / "pma-tiny.tar.xz").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed))) as archive:
        archive.extractall(folder, filter="data")


def held_out_loss(folder: Path, tokens: torch.Tensor, step: Callable[[], None] = lambda: None) -> float:
    """Mean cross-entropy of tokens 1.. given those before; ``tokens`` [documents, 513] int."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = 0.0
    with torch.inference_mode():
        for batch in tokens.long().split(BATCH):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
            step()
    return total / tokens[:, 1:].numel()


def batches(documents: int) -> int:
    """Forward passes of one loss."""
    return -(-documents // BATCH)


def run_merge(documents: int, step: Callable[[], None] = lambda: None) -> MergeOutcome:
    """Merge the checkpoints with equal weights and compare losses on ``documents`` held-out documents."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="checkpoints-") as name:
        folder = Path(name)
        unpack(folder)
        tokens = load_file(folder / "eval.safetensors")["tokens"][:documents]
        report = trivium.merge([folder / step_name for step_name in STEPS], folder / "merged", method="sma")
        with quiet_transformers():
            losses = [held_out_loss(folder / made, tokens, step) for made in (STEPS[-1], "merged", ANNEALED)]
    last, merged, annealed = losses
    return MergeOutcome(last, merged, annealed, report.method, STEPS, len(tokens), report.seconds)
