"""How often lower bounds of coverage hold on real queries and keys, and how much they prove.

    python tests/bench/bounds.py --text emma=emma.txt@500000 --out bounds.json

Three parts. Made-up heads of 8,192 rows: how many rows prove .9 in nine draws of ten, and
how often each bound is above the mean. Real heads: for some layers of one forward pass
and each arm, the coverage of every row is known, its LSE over the kept tiles less its
dense LSE; rows are drawn from it many times. Promises: what probe and the enforced
FlexPrefill keep with each bound, over all rows. "normal" is the mean less 3 standard
errors, of one row in each of so many strata, as kernel.StratifiedRows and meanAndBound
have it; "proven" is written again here, from the paper, on uniform draws. Prints all
figures and writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import trivium
from coverage import BLOCK, capture, read
from trivium.demo.download import smollm2
from trivium.demo.model import load_model

ARMS = {
    "flexprefill .9": ("flexprefill", {"rule": "released", "gamma": 0.9}),
    "probe .9": ("probe", {"gamma": 0.9}),
    "xattention": ("xattention", {"stride": 8}),
    "streaming": ("streaming", {"sink": 128, "recent": 1024}),
}
PROMISES = {"probe": ("probe", {}), "flexprefill enforced": ("flexprefill", {"coverage": "enforce"})}
COUNTS = (48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
STAKES, SHARES = np.array([0.3, 0.65, 1.0]), np.array([0.2, 0.3, 0.5])


def excluded(x, population, m, delta):
    """Whether means m [draws] are ruled out by x [draws, count], in the order drawn."""
    before = np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, 1)[:, :-1]], 1)
    expected = (population * m[:, None] - before) / (population - np.arange(x.shape[1]))
    log = np.log(np.maximum(1 - STAKES + STAKES * (x / np.maximum(expected, 1e-12))[..., None], 1e-300)).cumsum(1)
    return (SHARES * np.exp(np.minimum(log, 600))).sum(-1).max(1) >= 1 / delta


def proven(x, population, delta):
    """Lower bounds of means, by betting: x [draws, count] in the order drawn."""
    low, high = x.sum(1) / population, x.mean(1)
    for _ in range(16):
        middle = (low + high) / 2
        out = excluded(x, population, middle, delta)
        low, high = np.where(out, middle, low), np.where(out, high, middle)
    return low


def normal(x):
    """Means less 3 standard errors by the differences of neighbours: x [draws, count] by position."""
    count = x.shape[1]
    return x.mean(1) - 3 * np.sqrt((np.diff(x, axis=1) ** 2).sum(1) / (2 * (count - 1)) / count)


def draws(x, count, times, random):
    """Rows of x for both bounds: one in each stratum, and uniform."""
    edges = np.arange(count + 1) * len(x) // count
    strata = x[edges[:-1] + (random.random((times, count)) * np.diff(edges)).astype(int)]
    uniform = np.stack([x[random.choice(len(x), count, replace=False)] for _ in range(times)])
    return strata, uniform


def kept(qkv, layer, strategy, params):
    """The coverage of each row: [heads, rows], and the density of each head."""
    options = {"return_lse": True, "return_report": True, "layer": layer}
    _, dense, _ = trivium.attention(*qkv, strategy="dense", **options)
    _, lse, report = trivium.attention(*qkv, strategy=strategy, block_size=BLOCK, **params, **options)
    return np.exp(np.minimum(0, (lse - dense)[0].double().numpy())), [h.density for h in report.heads]


def made_up(random):
    """{name: the coverage of each row} of heads whose mean is .93 or .95."""
    heads = {}
    for mean in (0.93, 0.95):
        for deviation in (0.05, 0.1, 0.15):
            spread = mean * (1 - mean) / deviation**2 - 1
            lost = random.beta((1 - mean) * spread, mean * spread, 8192)
            heads[f"{mean}, deviation {deviation}"] = np.clip(1 - lost * (1 - mean) / lost.mean(), 0, 1)
        heads[f"{mean}, all or nothing"] = (random.permutation(8192) < mean * 8192).astype(float)
    return heads


def needed(x, delta, times, random):
    """The rows with which each bound is .9 in nine draws of ten, and how often it is above the mean there and at 64."""
    found = {}
    for bound in ("normal", "proven"):
        for count in COUNTS:
            strata, uniform = draws(x, count, times, random)
            lower = normal(strata) if bound == "normal" else proven(uniform, len(x), delta)
            if count == 64:
                found[bound + " wrong at 64"] = float((lower > x.mean() + 1e-9).mean())
            if (lower >= 0.9).mean() >= 0.9 and bound not in found:
                found[bound], found[bound + " wrong"] = count, float((lower > x.mean() + 1e-9).mean())
            if bound in found and count >= 64:
                break
    return found


def promised(layers, gamma, seeds, bound):
    """What strategies keep that promise gamma: over layers, heads and seeds."""
    found = {}
    for arm, (strategy, params) in PROMISES.items():
        calls = [kept(qkv, x, strategy, {**params, "gamma": gamma, "seed": seed, "bound": bound}) for seed in range(seeds) for x, qkv in layers.items()]
        coverage, density = np.concatenate([rows.mean(1) for rows, _ in calls]), np.concatenate([density for _, density in calls])
        found[arm] = {"gamma": gamma, "bound": bound, "density": float(density.mean()), "coverage": float(coverage.mean()), "heads": len(coverage),
                      "met": int((coverage >= gamma - 1e-6).sum()), "worst": float(coverage.min())}  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="append", required=True, help="name=file[@first character]")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 6, 12, 18, 24, 29])
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--seeds", type=int, default=5, help="of the promises")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--delta", type=float, default=0.01)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    model, tokenizer = load_model(a.model_dir or smollm2(print), a.dtype)
    random = np.random.default_rng(1)
    results = {"delta": a.delta, "draws": a.draws, "made up": {}, "real": [], "promises": []}

    def note(where, what):
        print(where, what, flush=True)
        a.out.write_text(json.dumps(results, indent=1))

    for name, x in made_up(random).items():
        results["made up"][name] = needed(x, a.delta, a.draws, random)
        note(name, results["made up"][name])
    for argument in a.text:
        name, ids = read(argument, tokenizer, a.length)
        layers = capture(model, ids, set(a.layers))
        for bound in ("normal", "proven"):
            results["promises"].append({"text": name, **promised(layers, 0.9, a.seeds, bound)})
            note(name, results["promises"][-1])
        for arm, (strategy, params) in ARMS.items():
            rows, density = zip(*(kept(qkv, x, strategy, params) for x, qkv in layers.items()), strict=True)
            heads = np.concatenate(rows)[np.concatenate(density) < 1]
            for count in a.counts:
                results["real"].append({"text": name, "arm": arm, "rows": count, **held(heads, count, a, random)})
                note(arm, results["real"][-1])


def held(heads, count, a, random):
    """How far below the mean each bound is, how often above it, and how often at least .9."""
    found = {"heads": len(heads), "coverage": float(heads.mean()), "deviation": float(heads.std(1).mean())}
    lower = {"normal": [], "proven": []}
    for x in heads:
        strata, uniform = draws(x, count, a.draws, random)
        lower["normal"].append(normal(strata))
        lower["proven"].append(proven(uniform, len(x), a.delta))
    for bound, of_heads in lower.items():
        gap = heads.mean(1)[:, None] - np.array(of_heads)
        found[bound] = {"gap": float(gap.mean()), "wrong": float((gap < -1e-9).mean()), "at least .9": float((np.array(of_heads) >= 0.9).mean())}
    return found


if __name__ == "__main__":
    main()
