"""What coverage selectors promise, and what they keep, on real queries and keys.

    python tests/bench/coverage.py --text emma=emma.txt@500000 --text gpl=GPL-3 --out coverage.json

For each text the queries and keys of some layers are captured from one forward pass;
the mass of every tile, over all rows, is computed exactly, in float32, and each arm's
blocks are held against it. Arms that draw rows, 256 of 8,192, are run with every seed.
Prints a table and writes all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import trivium
from rich.console import Console
from rich.table import Table
from trivium.demo.download import smollm2
from trivium.demo.model import load_model
from trivium.hf.observing import observing

BLOCK = 128
# name: strategy, parameters, promises gamma, draws rows
ARMS = {
    "probe": ("probe", {}, True),
    "oracle": ("oracle", {}, False),
    "flexprefill released": ("flexprefill", {"rule": "released"}, False),
    "flexprefill enforced": ("flexprefill", {"coverage": "enforce"}, True),
    "flexprefill paper": ("flexprefill", {"rule": "paper"}, False),
    "xattention s8": ("xattention", {"stride": 8}, False),
    "xattention enforced": ("xattention", {"stride": 8, "coverage": "enforce"}, True),
    "flashprefill .12": ("flashprefill", {}, False),
    "flashprefill enforced": ("flashprefill", {"coverage": "enforce"}, True),
}
SWEEP = (0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)  # of the released rule, for its density at a measured coverage


class Enough(Exception):
    """Ends the forward pass behind the last layer that is wanted."""


def capture(model, ids, layers):
    """{layer: (q, k, v)} in bfloat16 of the one sequence."""
    seen = {}

    def see(layer, q, k, v, scale):
        if layer in layers:
            seen[layer] = tuple(t.detach().to(torch.bfloat16).contiguous() for t in (q, k, v))
        if layer >= max(layers):
            raise Enough

    with torch.no_grad(), observing(model, see):
        try:
            model(input_ids=ids, use_cache=False)
        except Enough:
            pass
    return seen


def tile_mass(q, k):
    """The exact mass of each tile, as a share of all rows': [heads, query blocks, key blocks]."""
    heads, n, d = q.shape[1:]
    blocks = (n + BLOCK - 1) // BLOCK
    mass = np.zeros((heads, blocks, blocks))
    for h in range(heads):
        key = k[0, h * k.shape[1] // heads].float()
        for i in range(blocks):
            first, last = i * BLOCK, min(n, (i + 1) * BLOCK)
            scores = q[0, h, first:last].float() @ key[:last].T / d**0.5
            scores.masked_fill_(torch.arange(last)[None] > torch.arange(first, last)[:, None], -torch.inf)
            p = torch.nn.functional.pad(scores.softmax(-1).sum(0), (0, (i + 1) * BLOCK - last))
            mass[h, i, : i + 1] = p.view(i + 1, BLOCK).sum(-1).double().numpy()
    return mass / n


def run(arm, qkv, truth, gamma, seed, layer):
    """One call: for each head density and true coverage, and the times."""
    strategy, params, _ = arm
    known = {p.name for p in trivium.info(strategy).parameters}
    own = {"gamma": gamma} if "gamma" in known and gamma else {}
    started = time.perf_counter()
    _, report = trivium.attention(
        *qkv, strategy=strategy, **params, **own, block_size=BLOCK, seed=seed, layer=layer, return_report=True, return_mask=True
    )
    seconds = time.perf_counter() - started
    coverage, density = np.ones(len(truth)), np.array([h.density for h in report.heads])
    if report.mask is not None:
        coverage = (truth * report.mask.to_dense()[0]).sum((1, 2))
    return {"coverage": coverage.tolist(), "density": density.tolist(), "select_ms": report.times.select_ms,
            "attend_ms": report.times.attend_ms, "call_ms": 1e3 * seconds}  # fmt: skip


def summary(runs, gamma):
    coverage, density = np.concatenate([r["coverage"] for r in runs]), np.concatenate([r["density"] for r in runs])
    return {"density": float(density.mean()), "coverage": float(coverage.mean()), "met": int((coverage >= gamma - 1e-6).sum()) if gamma else None,
            "heads": len(coverage), "worst": float(coverage.min()), "select_ms": mean(r["select_ms"] for r in runs),
            "attend_ms": mean(r["attend_ms"] for r in runs)}  # fmt: skip


def read(argument, tokenizer, length):
    name, _, where = argument.partition("=")
    path, _, start = where.partition("@")
    text = Path(path).read_text(errors="replace")[int(start or 0) :]
    ids = tokenizer(text[: 16 * length], return_tensors="pt").input_ids[:, :length]
    if ids.shape[1] < length:
        raise SystemExit(f"{path} has {ids.shape[1]} tokens: want {length}")
    return name, ids


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="append", required=True, help="name=file[@first character]")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 6, 12, 18, 24, 29])
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--dtype", default="bfloat16", help="the model runs in; queries and keys are bfloat16")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    model, tokenizer = load_model(a.model_dir or smollm2(print), a.dtype)
    results, console = [], Console()
    for argument in a.text:
        name, ids = read(argument, tokenizer, a.length)
        layers = capture(model, ids, set(a.layers))
        truths = {layer: tile_mass(q, k) for layer, (q, k, _) in layers.items()}

        def over_layers(arm, gamma, seeds):
            return [run(arm, layers[x], truths[x], gamma, s, x) for s in range(seeds) for x in a.layers]

        sweep = [summary(over_layers(ARMS["flexprefill released"], g, 1), g) for g in SWEEP]
        for gamma in a.gammas:
            for label in a.arms:
                arm = ARMS[label]
                threshold = gamma if "gamma" in {p.name for p in trivium.info(arm[0]).parameters} else None
                if arm[1].get("coverage") is None and arm[0] in ("xattention", "flashprefill"):
                    if gamma != a.gammas[0]:
                        continue  # they take no gamma: once is enough
                    threshold = None
                s = summary(over_layers(arm, threshold, a.seeds if arm[2] else 1), gamma)
                # The density the released rule needs for the coverage that was measured here.
                s["released_density_there"] = float(np.interp(s["coverage"], [x["coverage"] for x in sweep], [x["density"] for x in sweep]))
                results.append({"text": name, "arm": label, "gamma": gamma, "seeds": a.seeds if arm[2] else 1, **s})
                console.print(json.dumps(results[-1]), soft_wrap=True, highlight=False)
                a.out.write_text(json.dumps({"length": a.length, "layers": a.layers, "results": results, "sweep": sweep}, indent=1))
    table = Table("text", "arm", "gamma", "density", "coverage", "met", "worst", "released needs", "select ms", box=None)
    for r in results:
        table.add_row(r["text"], r["arm"], str(r["gamma"]), f"{r['density']:.3f}", f"{r['coverage']:.3f}", f"{r['met']} of {r['heads']}",
                      f"{r['worst']:.3f}", f"{r['released_density_there']:.3f}", f"{r['select_ms']:.0f}")  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
