"""Which rotary frequencies each attention layer of a model was rotated by."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import Any, Iterator

import torch
from torch import nn

from trivium._errors import InvalidArgument
from trivium.model_positions import rotates


@dataclass(frozen=True)
class Rotary:
    """The buffer that holds one layer's frequencies, read anew at each call.

    Dynamic rope types replace the buffer during a forward pass, so it is looked
    up by name and never copied.
    """

    module: nn.Module
    name: str
    interleaved: bool = False  # pairs (0, 1), (2, 3), ... instead of halves

    def key(self) -> bytes:
        """The frequencies as they are now, to compare with."""
        return _read(getattr(self.module, self.name))

    def inv_freq(self) -> list[float]:
        """Radians per token, rotary_dim/2 of them."""
        buffer: torch.Tensor = getattr(self.module, self.name)
        return torch.frombuffer(bytearray(_read(buffer)), dtype=buffer.dtype).double().tolist()


# What was read of buffers on devices, by the buffer's id: the buffer, its version, its bytes.
_kept: dict[int, tuple[weakref.ref[torch.Tensor], int, bytes]] = {}


def _read(buffer: torch.Tensor) -> bytes:
    """The bytes of a buffer. Reading a device waits for it, so they are kept for as long as they hold."""
    if buffer.device.type == "cpu":
        return _bytes(buffer)
    version = 0 if buffer.is_inference() else buffer._version
    kept = _kept.get(id(buffer))
    if kept is None or kept[0]() is not buffer or kept[1] != version:
        kept = _kept[id(buffer)] = (weakref.ref(buffer), version, _bytes(buffer))
    return kept[2]


def _bytes(buffer: torch.Tensor) -> bytes:
    return bytes(buffer.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def find_rotary(model: nn.Module, layer: nn.Module) -> Rotary | None:
    """The frequencies of one attention layer; None when the layer has no rotation.

    Raises
    ------
    InvalidArgument
        When no rotary embedding can be found, and for multi-head latent attention,
        which rotates a part of the head of its own.
    """
    config = getattr(layer, "config", None)
    if getattr(config, "kv_lora_rank", None):
        raise InvalidArgument(
            f"position: {type(layer).__name__} rotates a part of each head of its own: want a model that rotates "
            "the first dimensions (Llama, Qwen, Mistral, Gemma, Phi, Cohere, GLM)"
        )
    if not getattr(layer, "use_rope", True) or not _has_rope(config, layer):
        return None
    interleaved = _interleaved(layer)
    names = _buffer_names(layer)
    for module in _rotary_modules(model, layer):
        for name in names:
            if isinstance(getattr(module, name, None), torch.Tensor):
                return Rotary(module, name, interleaved)
    raise InvalidArgument(
        f"position: no rotary embedding found for {type(layer).__name__}: want a model with rope",
        hint="position strategies need the frequencies by which queries and keys were rotated",
    )


def _has_rope(config: Any, layer: nn.Module) -> bool:
    """Some models leave the rope out of layers that nothing in the layer tells apart."""
    index = getattr(layer, "layer_idx", None)
    return config is None or not isinstance(index, int) or rotates(config.to_dict(), index)


def train_length(config: Any) -> int | None:
    """The number of tokens the model was trained for, context extension included."""
    length = getattr(config, "max_position_embeddings", None)
    return None if length is None else int(length)


def _buffer_names(layer: nn.Module) -> list[str]:
    """Models with a rope per layer type prefix the buffer with the type."""
    types = getattr(getattr(layer, "config", None), "layer_types", None)
    index = getattr(layer, "layer_idx", None)
    if types is None or not isinstance(index, int):
        return ["inv_freq"]
    return [f"{types[index]}_inv_freq", "inv_freq"]


def _rotary_modules(model: nn.Module, layer: nn.Module) -> Iterator[nn.Module]:
    """Candidates, best first: releases before 5 keep a second rope for sliding layers."""
    if getattr(layer, "is_sliding", False):
        yield from (m for name, m in model.named_modules() if name.endswith("rotary_emb_local"))
    yield from (m for m in model.modules() if _belongs(m, layer))


def _belongs(module: nn.Module, layer: nn.Module) -> bool:
    """Rule out the rotary embedding of another tower, such as a vision encoder."""
    config = getattr(module, "config", None)
    return config is None or config is getattr(layer, "config", None)


def _interleaved(layer: nn.Module) -> bool:
    """Ask the model's own rotate_half which of the two conventions it follows."""
    rotate_half = getattr(sys.modules[type(layer).__module__], "rotate_half", None)
    if rotate_half is None:
        return False
    first = rotate_half(torch.tensor([0.0, 1.0, 2.0, 3.0]))[0]
    return bool(first == -1.0)
