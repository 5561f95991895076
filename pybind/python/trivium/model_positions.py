"""What a model's ``config.json`` says about positions, layer by layer.

Reads what transformers writes now (``rope_parameters``, flat or by layer type) and
what it wrote before (``rope_theta`` and ``rope_scaling``). Needs no transformers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium._errors import CheckpointError, InvalidArgument, Unsupported
from trivium.positions import Position, PositionPlan, frequencies

CONFIG = "config.json"
DEFAULT_THETA = 10_000.0

# rope_type: our strategy, and what of its parameters the config has.
SCALINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": ("rope", ()),
    "mrope": ("rope", ()),  # of text alone, where all three axes count alike
    "linear": ("linear", ("factor",)),
    "dynamic": ("dynamic", ("factor",)),
    "yarn": ("yarn", ("factor", "attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim")),
    "longrope": ("longrope", ("factor", "attention_factor", "short_factor", "long_factor")),
    "llama3": ("llama3", ("factor", "low_freq_factor", "high_freq_factor")),
    "proportional": ("rope", ()),  # frequencies over the whole head, those beyond a share are 0
}
OLD_NAMES = {"su": "longrope"}
STRETCHED = ("yarn", "longrope", "llama3")  # trained for original_max_position_embeddings

# Models that rotate pairs (0, 1), (2, 3), ...; all others rotate halves. In the
# transformers implementation, whose q and k attention functions get.
INTERLEAVED = frozenset({
    "blt", "codegen", "cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "gptj", "helium", "llama4", "llama4_text",
})  # fmt: skip
# Models whose layers of full attention have no rope where others slide.
ROPE_WHERE_SLIDING = frozenset({"cohere2", "cohere2_moe", "exaone4", "exaone_moe"})


@dataclass(frozen=True)
class LayerPositions:
    """Positions of one attention layer.

    Attributes
    ----------
    position : Position
        The strategy that the config names, with its parameters.
    rope_theta : float
    head_dim, rotary_dim : int
        Where the latter is less, the first dimensions rotate and the others do not.
    base_inv_freq : tuple of float
        Frequencies before scaling, ``rotary_dim / 2`` of them.
    train_length : int or None
        What the scaling starts from.
    interleaved : bool
        Rotary pairs are (0, 1), (2, 3), ... instead of halves.
    """

    position: Position
    rope_theta: float
    head_dim: int
    rotary_dim: int
    base_inv_freq: tuple[float, ...]
    train_length: int | None
    interleaved: bool

    def plan(self, length: int) -> PositionPlan:
        """The plan for queries and keys that are rotated without scaling.

        ``plan.inv_freq`` and ``plan.attention_scale`` are what the model itself
        uses for sequences of ``length`` tokens.
        """
        return self.position.plan(
            head_dim=self.head_dim,
            length=length,
            inv_freq=self.base_inv_freq,
            train_length=self.train_length,
            interleaved=self.interleaved,
        )


@dataclass(frozen=True)
class ModelPositions:
    """Positions of a model; ``None`` among the layers is a layer without rope.

    Attributes
    ----------
    layers : tuple of LayerPositions or None
    train_length : int or None
        Tokens the model was trained for, context extension included.
    """

    model_type: str
    layers: tuple[LayerPositions | None, ...]
    train_length: int | None

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> LayerPositions | None:
        return self.layers[layer]

    @property
    def distinct(self) -> list[tuple[LayerPositions | None, list[int]]]:
        """Different positions, each with the layers that share them."""
        found: list[tuple[LayerPositions | None, list[int]]] = []
        for index, layer in enumerate(self.layers):
            for other, indices in found:
                if other == layer:
                    indices.append(index)
                    break
            else:
                found.append((layer, [index]))
        return found

    def __str__(self) -> str:
        lines = [f"{self.model_type or 'model'}: {len(self.layers)} layers, trained for {self.train_length} tokens"]
        for layer, indices in self.distinct:
            where = ", ".join(map(str, indices))
            if layer is None:
                lines.append(f"  no rope: layers {where}")
                continue
            pairs = "neighbouring pairs" if layer.interleaved else "halves"
            lines.append(
                f"  {layer.position!r}, theta {layer.rope_theta:g}, "
                f"{layer.rotary_dim} of {layer.head_dim} dimensions, {pairs}: layers {where}"
            )
        return "\n".join(lines)


def from_config(source: str | os.PathLike[str] | Mapping[str, Any] | Any) -> ModelPositions:
    """Read the positions of a model from its config.

    Parameters
    ----------
    source : path, mapping or transformers config
        A model folder, its ``config.json``, the content of that file, or a
        ``PreTrainedConfig``.

    Raises
    ------
    Unsupported
        For rope types that are not known, and for attention that rotates a part of
        the head of its own (multi-head latent attention).
    """
    return _Reader(_content(source)).read()


def _content(source: Any) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if hasattr(source, "to_dict"):
        made: Mapping[str, Any] = source.to_dict()
        return made
    path = Path(source).expanduser()
    path = path / CONFIG if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}: want the {CONFIG} of a model") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: want an object, as transformers writes it")
    return content


def rotates(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has a rope, by its number."""
    return _Reader(config).rotates(layer)


class _Reader:
    """One config; ``text_config`` is looked into where the model has several towers."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        text = config.get("text_config")
        if isinstance(text, Mapping) and self._first(config, "num_hidden_layers", "n_layer", "num_layers") is None:
            config = {"model_type": config.get("model_type", ""), **text}
        self._config = config
        self._type = str(config.get("model_type") or "")

    def read(self) -> ModelPositions:
        if self._get("kv_lora_rank"):
            raise Unsupported(
                f"{self._type or 'config'}: multi-head latent attention rotates a part of the head of its own",
                hint="build a plan from the rotary part: trivium.position(...).plan(inv_freq=...)",
            )
        count = self._number("layers", "num_hidden_layers", "n_layer", "num_layers")
        layers = tuple(self._layer(index, count) for index in range(count))
        return ModelPositions(self._type, layers, self._get("max_position_embeddings", "n_positions", "n_ctx"))

    def rotates(self, index: int) -> bool:
        """Whether the layer of this number has a rope."""
        count = self._get("num_hidden_layers", "n_layer", "num_layers") or index + 1
        return self._rotates(index, count, self._kind(index, count))

    def _layer(self, index: int, count: int) -> LayerPositions | None:
        kind = self._kind(index, count)
        if not self._rotates(index, count, kind):
            return None
        rope = self._rope(kind)
        if rope is None:
            return None
        name = OLD_NAMES.get(rope["rope_type"], rope["rope_type"])
        if name not in SCALINGS:
            raise Unsupported(f"rope_type {name!r}: want one of {', '.join(sorted(SCALINGS))}")
        theta, head_dim = float(rope["rope_theta"]), self._head_dim(index, kind)
        base, rotary_dim = self._base(name, rope, theta, head_dim)
        strategy, keys = SCALINGS[name]
        params = {key: rope[key] for key in keys if rope.get(key) is not None}
        train = self._get("max_position_embeddings", "n_positions", "n_ctx")
        if name in STRETCHED:
            original = self._get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or train
            if "factor" in keys and "factor" not in params and train and original:
                params["factor"] = max(train / original, 1.0)
            train = original
        interleaved = self._type in INTERLEAVED
        return LayerPositions(Position(strategy, params), theta, head_dim, rotary_dim, base, train, interleaved)

    def _base(self, name: str, rope: Mapping[str, Any], theta: float, head_dim: int) -> tuple[tuple[float, ...], int]:
        """Frequencies before scaling, and the number of dimensions that they rotate."""
        share = float(rope.get("partial_rotary_factor") or 1.0)
        if name == "proportional":
            rotating = int(share * head_dim // 2)
            stretch = float(rope.get("factor") or 1.0)
            kept = [f / stretch for f in frequencies(head_dim, None, theta)[:rotating]]
            return (*kept, *[0.0] * (head_dim // 2 - rotating)), head_dim
        rotary_dim = int(self._get("rotary_dim") or head_dim * share)
        return tuple(frequencies(rotary_dim, None, theta)), rotary_dim

    def _rope(self, kind: str) -> dict[str, Any] | None:
        """The rope of a layer type with its type, theta and share filled in; None: it has none."""
        given = self._get("rope_parameters", "rope_scaling") or {}
        if any(isinstance(value, Mapping) or value is None for value in given.values()) and kind in given:
            given = given[kind]
            if given is None:
                return None
        elif kind == "sliding_attention" and self._get("rope_local_base_freq"):
            given = {"rope_theta": self._get("rope_local_base_freq")}  # Gemma 3: the local rope is never scaled
        rope = dict(given)
        rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
        if rope.get("rope_theta") is None:
            rope["rope_theta"] = self._get("rope_theta", "rotary_emb_base") or DEFAULT_THETA
        if rope.get("partial_rotary_factor") is None:
            rope["partial_rotary_factor"] = self._get("partial_rotary_factor", "rotary_pct", "rope_pct")
        return rope

    def _kind(self, index: int, count: int) -> str:
        """The attention type of a layer, ``full_attention`` where the config says nothing."""
        types = self._get("layer_types")
        if types:
            return str(types[index])
        pattern = self._get("sliding_window_pattern", "_sliding_window_pattern")
        if isinstance(pattern, str):  # EXAONE 4: L L L G
            return "sliding_attention" if pattern[index % len(pattern)] == "L" and index != count - 1 else "full_attention"
        if pattern and self._get("sliding_window"):
            return "full_attention" if (index + 1) % int(pattern) == 0 else "sliding_attention"
        return "full_attention"

    def _rotates(self, index: int, count: int, kind: str) -> bool:
        flags, interval = self._get("no_rope_layers"), self._get("no_rope_layer_interval")
        if isinstance(flags, Sequence) and len(flags) == count:
            return bool(flags[index])  # 1: with rope, whatever the name says
        if interval:
            return (index + 1) % int(interval) != 0
        if self._type in ROPE_WHERE_SLIDING and self._get("sliding_window"):
            return kind == "sliding_attention"
        return True

    def _head_dim(self, index: int, kind: str) -> int:
        own = self._get("per_layer_config") or {}  # Gemma 4: by layer, or by layer type
        for key in (str(index), index, kind):
            if isinstance(own.get(key), Mapping) and own[key].get("head_dim"):
                return int(own[key]["head_dim"])
        found = self._get("head_dim", "attention_head_dim")
        if found:
            return int(found)
        heads = self._number("attention heads", "num_attention_heads", "n_head")
        return self._number("hidden size", "hidden_size", "n_embd", "d_model") // heads

    def _get(self, *names: str) -> Any:
        return self._first(self._config, *names)

    @staticmethod
    def _first(config: Mapping[str, Any], *names: str) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), None)

    def _number(self, what: str, *names: str) -> int:
        value = self._get(*names)
        if not isinstance(value, int) or value < 1:
            raise InvalidArgument(f"config: {what} {value!r}: want a whole number under {' or '.join(names)}")
        return value
