"""Each merge method against float64 and against mergekit, on the same recipes.

    python merging_agreement.py --mergekit-python /path/to/mergekit/bin/python [--output agreement.json]

A base and four checkpoints of a small Llama in float32 are merged by mergekit and by Trivium from one mergekit
configuration, and by the definitions in float64 here. Reported for each: root mean square and largest error against
float64, and the largest difference between the two. Draws differ between programs, so a random method is asked
whether each element is one of the values it may have. Fails when Trivium's error is the larger one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from trivium.mergekit import translate

HIDDEN, VOCAB, LAYERS = 128, 500, 2
MERGEKIT = """
import json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for recipe, out in json.loads(open(sys.argv[1]).read()):
    run_merge(MergeConfiguration.model_validate(recipe), out, MergeOptions(copy_tokenizer=False, random_seed=1))
"""


def make(root: Path) -> list[str]:
    """Base first. The checkpoints went from it in related directions."""
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (300, HIDDEN), "mlp.up_proj": (300, HIDDEN), "mlp.down_proj": (HIDDEN, 300),
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 300,
              "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCAB,
              "tie_word_embeddings": False, "torch_dtype": "float32", "rms_norm_eps": 1e-5}  # fmt: skip
    draw = torch.Generator().manual_seed(3)
    base = {n: 0.02 * torch.randn(s, generator=draw) for n, s in shapes.items()}
    common = {n: 0.004 * torch.randn(s, generator=draw) for n, s in shapes.items()}
    folders = []
    for k in range(5):
        folder = root / f"model{k}"
        folder.mkdir(parents=True)
        own = base if k == 0 else {n: base[n] + common[n] + 0.004 * torch.randn(base[n].shape, generator=draw) for n in shapes}
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        folders.append(str(folder))
    return folders


def recipes(m: list[str]) -> dict[str, dict[str, Any]]:
    def over(method: str, models: list[str], *, base: str | None = None, weights: list[float] | None = None, **parameters: Any) -> dict[str, Any]:
        listed = [{"model": p, **({"parameters": {"weight": w}} if weights else {})} for p, w in zip(models, weights or [0.0] * len(models))]
        return {"merge_method": method, "models": listed, "dtype": "float32", "parameters": parameters, **({"base_model": base} if base else {})}

    w3 = [0.5, 0.3, 0.4]
    return {
        "linear": over("linear", m[1:], weights=[1.0, 2.0, 3.0, 0.5]),
        "slerp": over("slerp", m[1:3], base=m[1], t=0.3),
        "nuslerp": over("nuslerp", m[1:3], weights=[3.0, 1.0]),
        "karcher": over("karcher", m[1:4], max_iter=50, tol=1e-9),
        "model_stock": over("model_stock", m[:4], base=m[0]),
        "task_arithmetic": over("task_arithmetic", m[1:4], base=m[0], weights=w3, **{"lambda": 0.8}),
        "ties": over("ties", m[1:4], base=m[0], weights=w3, density=0.5),
        "breadcrumbs": over("breadcrumbs", m[1:4], base=m[0], weights=w3, density=0.5, gamma=0.25),
        "breadcrumbs_ties": over("breadcrumbs_ties", m[1:4], base=m[0], weights=w3, density=0.5, gamma=0.25),
        "sce": over("sce", m[1:4], base=m[0], select_topk=0.5),
        "dare_linear": over("dare_linear", m[1:2], base=m[0], weights=[1.0], density=0.5),
        "dare_ties": over("dare_ties", m[1:2], base=m[0], weights=[1.0], density=0.5),
        "della": over("della", m[1:2], base=m[0], weights=[1.0], density=0.5, epsilon=0.1, normalize=False),
    }


Arrays = list[np.ndarray[Any, np.dtype[np.float64]]]


def arc(a: Any, b: Any, t: float) -> Any:
    angle = np.arccos(np.clip((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), -1, 1))
    if np.abs(np.cos(angle)) > 0.9995:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def keep(d: Any, first: float, last: float) -> Any:
    """The elements of rank [first, last) by magnitude, as shares, from the largest."""
    order = np.argsort(-np.abs(d.ravel()), kind="stable")
    out = np.zeros(d.size)
    chosen = order[round(first * d.size) : round(last * d.size)]
    out[chosen] = d.ravel()[chosen]
    return out.reshape(d.shape)


def agreed(weights: list[float], d: Arrays, consensus: bool, normalise: bool) -> Any:
    w = np.array(weights).reshape(-1, *[1] * d[0].ndim)
    terms = w * np.stack(d)
    ok = terms != 0
    if consensus:
        ok &= (terms > 0) == (terms.sum(0) >= 0)
    total = (terms * ok).sum(0)
    weight = (w * ok).sum(0)
    return np.where(weight != 0, total / np.where(weight != 0, weight, 1), total) if normalise else total


def karcher(x: Arrays) -> Any:
    norms = [np.sqrt((a * a).sum()) for a in x]
    units = [a / n for a, n in zip(x, norms)]
    mean = sum(units)
    mean = mean / np.sqrt((mean * mean).sum())
    for _ in range(100):
        tangent = np.zeros_like(mean)
        for u in units:
            cosine = (u * mean).sum()
            angle = np.arccos(np.clip(cosine, -1, 1))
            tangent += angle / np.sin(angle) * (u - cosine * mean) / len(units)
        step = np.sqrt((tangent * tangent).sum())
        if step < 1e-14:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
    return mean * np.mean(norms)


def reference(name: str, x: Arrays) -> Any:
    """What a method gives for one tensor; x[0] is the base."""
    base, w3 = x[0], [0.5, 0.3, 0.4]
    d = [a - base for a in x[1:4]]
    if name == "linear":
        return sum(w * a for w, a in zip(np.array([1.0, 2.0, 3.0, 0.5]) / 6.5, x[1:]))
    if name == "slerp":
        return arc(x[1], x[2], 0.3)
    if name == "nuslerp":
        return arc(x[1], x[2], 0.25)
    if name == "karcher":
        return karcher(x[1:4])
    if name == "model_stock":
        pairs = [(i, j) for i in range(3) for j in range(i)]
        cosine = np.mean([(d[i] * d[j]).sum() / np.sqrt((d[i] ** 2).sum() * (d[j] ** 2).sum()) for i, j in pairs])
        return base + 3 * cosine / (1 + 2 * cosine) * sum(d) / 3
    if name == "task_arithmetic":
        return base + 0.8 * sum(w * a for w, a in zip(w3, d))
    if name == "ties":
        return base + agreed(w3, [keep(a, 0, 0.5) for a in d], True, True)
    if name.startswith("breadcrumbs"):
        return base + agreed(w3, [keep(a, 0.25, 0.75) for a in d], name.endswith("ties"), False)
    if name == "sce":
        stacked = np.stack(d)
        chosen = keep(stacked.var(0), 0, 0.5) != 0
        kept = stacked * chosen
        shares = (kept**2).reshape(3, -1).sum(1)
        signs = np.sign(kept) * (kept.sum(0) >= 0) - np.sign(kept) * (kept.sum(0) < 0)
        w = (shares / shares.sum()).reshape(-1, *[1] * base.ndim) * (signs > 0)
        return base + (w * kept).sum(0) / np.where(w.sum(0) > 0, w.sum(0), 1)
    raise ValueError(name)


def nearest(name: str, x: Arrays, got: Any, by_norm: bool) -> Any:
    """The value that a random method may give which is nearest to what it gave.

    mergekit scales what it kept to the norm (sum of magnitudes) that there was before; the papers divide by the chance.
    """
    base, d = x[0], x[1] - x[0]
    if by_norm:
        mask = np.abs(got - base) > np.abs(d) / 2
        return base + d * mask * np.abs(d).sum() / max(np.abs(d * mask).sum(), 1e-30)
    if name == "della":  # its chance depends on its rank in the row
        rank = np.argsort(np.argsort(np.abs(d), axis=-1, kind="stable"), axis=-1)
        chance = 0.4 + 0.2 * rank / max(1, d.shape[-1] - 1)
    else:
        chance = np.full(d.shape, 0.5)
    scaled = base + d / chance
    return np.where(np.abs(got - base) < np.abs(got - scaled), base, scaled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit-python", required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = make(root / "models")
        wanted = recipes(models)
        (root / "jobs.json").write_text(json.dumps([(r, str(root / "mergekit" / n)) for n, r in wanted.items()]))
        done = subprocess.run([args.mergekit_python, "-c", MERGEKIT, str(root / "jobs.json")], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        inputs = [load_file(Path(m) / "model.safetensors") for m in models]
        rows, worse = {}, []
        for name, recipe in wanted.items():
            translate(recipe).run(root / "trivium" / name)
            theirs, ours = load_all(root / "mergekit" / name), load_all(root / "trivium" / name)
            errors: dict[str, list[Any]] = {"trivium": [], "mergekit": [], "between": []}
            for tensor, got in ours.items():
                x = [i[tensor].double().numpy() for i in inputs]
                drawn = name.startswith(("dare", "della"))
                for who, result in (("trivium", got), ("mergekit", theirs[tensor])):
                    errors[who].append((result - (nearest(name, x, result, who == "mergekit") if drawn else reference(name, x))).ravel())
                errors["between"].append((got - theirs[tensor]).ravel())
            flat = {who: np.concatenate(e) for who, e in errors.items()}
            row = {who: {"rms": float(np.sqrt((e * e).mean())), "largest": float(np.abs(e).max())} for who, e in flat.items()}
            row["between"]["share beyond 1e-6"] = float((np.abs(flat["between"]) > 1e-6).mean())
            rows[name] = row
            if row["trivium"]["rms"] > row["mergekit"]["rms"] * 1.001:
                worse.append(name)
            print(f"{name:18} trivium {row['trivium']['rms']:.2e} / {row['trivium']['largest']:.2e}  mergekit {row['mergekit']['rms']:.2e} / "
                  f"{row['mergekit']['largest']:.2e}  between {row['between']['largest']:.2e}, {row['between']['share beyond 1e-6']:.2e} beyond 1e-6")  # fmt: skip
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    if worse:
        sys.exit(f"a larger error than mergekit's: {', '.join(worse)}")


def load_all(folder: Path) -> dict[str, Any]:
    return {n: t.double().numpy() for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


if __name__ == "__main__":
    main()
