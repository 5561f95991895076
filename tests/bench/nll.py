"""What selecting costs in likelihood, on whole windows of text, beside density and coverage.

    python tests/bench/nll.py --text code=server.go --out nll.json

One forward pass for each arm; the negative log-likelihood of every token, and its rise
over dense attention by the mean and the standard error of the paired differences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import trivium
from coverage import read
from trivium.demo.download import smollm2
from trivium.demo.model import load_model

ARMS = {
    "dense": ("dense", {}),
    "probe .9": ("probe", {"gamma": 0.9}),
    "probe .95": ("probe", {"gamma": 0.95}),
    "flexprefill released .9": ("flexprefill", {"rule": "released", "gamma": 0.9}),
    "flexprefill enforced .9": ("flexprefill", {"coverage": "enforce", "gamma": 0.9}),
    "xattention s8": ("xattention", {"stride": 8}),
    "flashprefill .12": ("flashprefill", {}),
    "flashprefill .12, mean correction": ("flashprefill", {"mean_correction": True}),
    "flexprefill paper .9": ("flexprefill", {"rule": "paper", "gamma": 0.9}),
    "oracle .9": ("oracle", {"gamma": 0.9}),
}


def losses(model, ids, strategy, params, probe_rows):
    """The loss of each token but the first, and density and coverage over layers."""
    with torch.no_grad(), trivium.trace(probe_rows=probe_rows) as trace, trivium.patch(model, attention=strategy, **params):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
        parts = [
            torch.nn.functional.cross_entropy(model.lm_head(h).float(), t, reduction="none")
            for h, t in zip(hidden.split(512), ids[0, 1:].split(512))
        ]
    reports = [c.report for c in trace.prefill]
    coverage = [r.coverage for r in reports if r.coverage is not None]
    return torch.cat(parts), sum(r.density for r in reports) / len(reports), sum(coverage) / max(1, len(coverage))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="append", required=True, help="name=file[@first character]")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--probe-rows", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    model, tokenizer = load_model(a.model_dir or smollm2(print), a.dtype)
    results = []
    for argument in a.text:
        name, ids = read(argument, tokenizer, a.length)
        dense = None
        for arm in a.arms:
            loss, density, coverage = losses(model, ids, *ARMS[arm], a.probe_rows)
            dense = loss if dense is None else dense  # the first arm is what the others rise over
            rise = loss - dense
            results.append({"text": name, "arm": arm, "nll": loss.mean().item(), "rise": rise.mean().item(),
                            "error": rise.std().item() / len(rise) ** 0.5, "density": density, "coverage": coverage})  # fmt: skip
            print(json.dumps(results[-1]), flush=True)
            a.out.write_text(json.dumps({"length": a.length, "dtype": a.dtype, "results": results}, indent=1))


if __name__ == "__main__":
    main()
