"""mergekit's recipes, run by Trivium."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from trivium._errors import InvalidArgument, Unsupported
from trivium.merging import MergeReport, merge

# mergekit's method: ours, and the parameters whose defaults differ or tell its variants apart.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "slerp": ("slerp", {}),
    "nuslerp": ("nuslerp", {}),
    "karcher": ("karcher", {}),
    "model_stock": ("modelstock", {}),
    "sce": ("sce", {}),
    "task_arithmetic": ("taskarithmetic", {}),
    "ties": ("ties", {"density": 1.0, "normalise": True}),
    "dare_linear": ("dare", {"density": 1.0, "normalise": False, "consensus": False}),
    "dare_ties": ("dare", {"density": 1.0, "normalise": False, "consensus": True}),
    "breadcrumbs": ("breadcrumbs", {"density": 1.0, "normalise": False, "consensus": False}),
    "breadcrumbs_ties": ("breadcrumbs", {"density": 1.0, "normalise": False, "consensus": True}),
    "della_linear": ("della", {"density": 1.0, "epsilon": 0.15, "normalise": False, "consensus": False}),
    "della": ("della", {"density": 1.0, "epsilon": 0.15, "normalise": True, "consensus": True}),
}
NAMES = {"normalize": "normalise", "lambda": "scale", "max_iter": "max_iterations", "tol": "tolerance", "random_seed": "seed"}
# Methods whose sources are all models, the base among them.
OVER_ALL = ("linear", "slerp", "nuslerp", "karcher")


@dataclass(frozen=True)
class Recipe:
    """A merge as :func:`trivium.merge` takes it.

    Attributes
    ----------
    differences : tuple of str
        Where the result is not what mergekit would write.
    """

    sources: tuple[str, ...]
    method: str
    base: str | None
    weights: tuple[float, ...] | None
    dtype: str | None
    params: dict[str, Any]
    differences: tuple[str, ...]

    def run(self, out: str | PathLike[str], **options: Any) -> MergeReport:
        """Merge into ``out``; options as for :func:`trivium.merge`."""
        return merge(
            self.sources, out, method=self.method, base=self.base, weights=self.weights, dtype=self.dtype, **{**self.params, **options}
        )


def load(path: str | PathLike[str]) -> Recipe:
    """Read a mergekit configuration (YAML or JSON)."""
    text = Path(fspath(path)).read_text(encoding="utf-8")
    try:
        config = json.loads(text)
    except json.JSONDecodeError:
        config = _yaml(text)
    if not isinstance(config, dict) or "merge_method" not in config:
        raise InvalidArgument(f"{fspath(path)}: want a mergekit configuration with a merge_method")
    return translate(config)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as missing:
        raise Unsupported("reading YAML needs PyYAML", hint="pip install pyyaml, or write the configuration as JSON") from missing
    return yaml.safe_load(text)


def translate(config: dict[str, Any]) -> Recipe:
    """Make a recipe of a mergekit configuration."""
    name = config["merge_method"]
    if name not in METHODS:
        raise Unsupported(f"merge_method {name!r}: want one of {', '.join(METHODS)}")
    if "models" not in config:
        raise Unsupported("a configuration of slices: want whole models under `models:`")
    method, params = METHODS[name][0], dict(METHODS[name][1])
    base = config.get("base_model")
    models = [(_scalar("model", m["model"]), m.get("parameters") or {}) for m in config["models"]]
    used = models if name in OVER_ALL else [m for m in models if m[0] != base]
    if name == "slerp":
        if len(models) != 2 or base not in (m for m, _ in models):
            raise InvalidArgument("slerp: want two models, one of them the base_model")
        used = sorted(models, key=lambda m: m[0] != base)
    shared = {k: _scalar(k, v) for k, v in (config.get("parameters") or {}).items()}
    notes = _differences(config, shared)
    weights = [float(_scalar("weight", p.get("weight", shared.get("weight", 1.0)))) for _, p in used]
    for key in sorted({k for _, p in used for k in p} - {"weight"}):
        values = {_scalar(key, p.get(key, shared.get(key))) for _, p in used}
        if len(values) > 1:
            raise Unsupported(f"{key} differs between models: want one for all")
        shared[key] = values.pop()
    normalise = shared.pop("normalize", None)
    shared.pop("weight", None)
    if normalise is not None and name not in OVER_ALL:
        params["normalise"] = bool(normalise)
    params.update({NAMES.get(k, k): v for k, v in shared.items()})
    linear = None
    if name == "linear":
        total = sum(weights) if normalise in (None, True) else 1.0
        linear = tuple(w / total for w in weights)
    elif len(set(weights)) > 1 or (weights and weights[0] != 1.0 and name != "slerp"):
        params["source_weights"] = weights
    dtype = config.get("out_dtype") or config.get("dtype")
    return Recipe(tuple(m for m, _ in used), method, None if name in OVER_ALL else base, linear, dtype, params, tuple(notes))


def _scalar(key: str, value: Any) -> Any:
    if isinstance(value, (list, dict)):
        raise Unsupported(f"{key}: {json.dumps(value)[:80]}: gradients and filters are not read, want one value")
    return value


def _differences(config: dict[str, Any], shared: dict[str, Any]) -> list[str]:
    notes = ["config and tokenizer are those of the newest source"]
    if config.get("dtype") not in (None, "float32", "float64") and not config.get("out_dtype"):
        notes.append(f"inputs are not rounded to {config['dtype']} before the sum: only the result is")
    for key in ("tokenizer_source", "tokenizer", "chat_template"):
        if key in config:
            notes.append(f"{key} is not read")
    if shared.pop("int8_mask", None) is not None:
        notes.append("int8_mask changes nothing here")
    return notes
