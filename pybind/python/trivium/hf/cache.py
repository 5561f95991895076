"""A key-value cache in memory that plugins see: decode and chunked prefill copy no key and no value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from trivium._errors import DeviceUnavailable, InvalidArgument
from trivium._tensor import empty, refuse_gradients

if TYPE_CHECKING:
    from transformers.cache_utils import CacheLayerMixin as _LayerBase
else:  # releases before 4.54 have no layers
    _LayerBase = getattr(transformers.cache_utils, "CacheLayerMixin", object)

GROWTH = 2  # capacity over need when memory runs out: each token is moved at most once on average
SMALLEST = 256  # tokens
FULL, SLIDING = "full_attention", "sliding_attention"


class Layer(_LayerBase):
    """Keys and values of one layer, ``[batch, kv_heads, tokens, head_dim]``, in two shared segments.

    The segments hold ``capacity`` tokens, of which the first are valid; what
    :meth:`update` gives out are views of them. A layer with a ``window`` lets go of
    tokens that no query sees any more when its memory is full, not before.
    """

    is_compileable = False
    is_croppable = True

    def __init__(self, window: int | None = None, capacity: int = 0) -> None:
        self.sliding_window = window
        self.record_past = False
        self.is_initialized = False
        self._reserve = capacity
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._end = 0  # tokens in the buffers
        self._dropped = 0  # tokens of the sequence before the first of them

    @property
    def is_sliding(self) -> bool:
        """Whether old tokens are let go of."""
        return self.sliding_window is not None

    @property
    def keys(self) -> torch.Tensor | None:  # type: ignore[override]
        """The keys that are held; None before the first."""
        return self._view(0, 0)

    @property
    def values(self) -> torch.Tensor | None:  # type: ignore[override]
        """The values that are held; None before the first."""
        return self._view(1, 0)

    @property
    def capacity(self) -> int:
        """Tokens that fit into the segments."""
        return 0 if self._buffers is None else self._buffers[0].shape[2]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, kv_heads, new, head_dim]``; give what the new queries may see."""
        _refuse(key_states)
        seen = self._seen()
        new = key_states.shape[2]
        self._make_room(key_states, value_states, new)
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, self._end : self._end + new].copy_(states)
        first = self._end - seen
        self._end += new
        keys, values = self._view(0, first), self._view(1, first)
        assert keys is not None and values is not None
        return keys, values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take memory for the shapes of these states."""
        self._make_room(key_states, value_states, 0)

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, those let go of included."""
        return self._dropped + self._end

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """Number of keys the next ``query`` tokens are shown, and the index of the first.

        Early releases pass the queries' positions, later ones their number.
        """
        length = int(query.shape[0]) if isinstance(query, torch.Tensor) else int(query)
        seen = self._seen()
        return seen + length, self.get_seq_length() - seen

    def get_max_length(self) -> int:
        """The window, or -1 for no limit."""
        return -1 if self.sliding_window is None else self.sliding_window

    def activate_past_recording(self) -> None:
        """Let nothing go until :meth:`crop`, so that it can go back."""
        self.record_past = True

    def crop(self, tokens: int) -> None:
        """Forget the last ``-tokens`` tokens; a positive number is the length that remains."""
        length = self.get_seq_length()
        remain = max(length + tokens, 0) if tokens <= 0 else min(tokens, length)
        if remain < length and self._first_seen(remain) < self._dropped:
            raise InvalidArgument(
                f"crop: {length} tokens to {remain}: the window of {self.sliding_window} before them was let go of",
                hint="call activate_past_recording() before the tokens that may be taken back",
            )
        self._end -= length - remain

    def reset(self) -> None:
        """Forget every token; the memory stays."""
        self._end = self._dropped = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Batch row ``i`` becomes row ``beam_idx[i]``."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these batch rows, in this order."""
        if self._buffers is None:
            return
        rows = torch.arange(self._buffers[0].shape[0])[indices.cpu()]
        if torch.equal(rows, torch.arange(self._buffers[0].shape[0])):
            return
        held = [buffer[:, :, : self._end].index_select(0, rows) for buffer in self._buffers]
        if len(rows) != self._buffers[0].shape[0]:
            self._buffers = _segments(self._buffers, self.capacity, batch=len(rows))
        for buffer, content in zip(self._buffers, held):
            buffer[:, :, : self._end].copy_(content)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each batch row."""
        if self._buffers is not None:
            self.batch_select_indices(torch.arange(self._buffers[0].shape[0]).repeat_interleave(repeats))

    def offload(self) -> None:
        """Nothing to do: the memory is the CPU's."""

    def prefetch(self) -> None:
        """Nothing to do: the memory is the CPU's."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        """Copy into segments of its own, so that the copy is free of copies too."""
        made = Layer(self.sliding_window, self._reserve)
        made.__dict__.update(self.__dict__)
        if self._buffers is not None:
            made._buffers = _segments(self._buffers, self.capacity)
            _move(self._buffers, made._buffers, 0, self._end)
        return made

    def __repr__(self) -> str:
        window = "" if self.sliding_window is None else f", window={self.sliding_window}"
        return f"Layer(tokens={self.get_seq_length()}, capacity={self.capacity}{window})"

    def _view(self, which: int, first: int) -> torch.Tensor | None:
        return None if self._buffers is None else self._buffers[which][:, :, first : self._end]

    def _first_seen(self, length: int) -> int:
        """Index of the first token that a query at index ``length`` sees."""
        return 0 if self.sliding_window is None else max(length - self.sliding_window + 1, 0)

    def _seen(self) -> int:
        """Held tokens that the next query sees."""
        length = self.get_seq_length()
        return length - self._first_seen(length)

    def _make_room(self, keys: torch.Tensor, values: torch.Tensor, new: int) -> None:
        if self._buffers is None:
            capacity = max(self._reserve, new + new // 8, SMALLEST)
            self._buffers = _segments((keys, values), capacity)
            self.is_initialized = True
        elif keys.shape[0] != self._buffers[0].shape[0]:
            raise InvalidArgument(
                f"cache: batch of {keys.shape[0]} after one of {self._buffers[0].shape[0]}: want the same",
                hint="make a new trivium.hf.Cache(model.config) for each batch",
            )
        if self._end + new > self.capacity:
            self._compact(new)

    def _compact(self, new: int) -> None:
        """Move what is still needed to the front, of larger segments where it takes up half of these."""
        assert self._buffers is not None
        kept = self._end if self.record_past else self._seen()
        first = self._end - kept
        target = self._buffers
        if GROWTH * kept + new > self.capacity:
            target = _segments(self._buffers, GROWTH * kept + new)
        _move(self._buffers, target, first, self._end)
        self._dropped += first
        self._buffers, self._end = target, kept


class Cache(transformers.Cache):
    """Keys and values of every layer of a model, in memory that plugins see as it is.

    A cache of transformers lies in torch's memory, which is copied for each call of
    each layer, and grown by copying. Here a token is written once, where the plugin
    reads it: per call only the queries are copied, whatever the length of the cache
    (``trivium.stats()["bytes_copied"]`` counts). Growth is amortised, sliding layers
    hold a few windows, and transformers' own attention can use the cache as well.

    Parameters
    ----------
    config : transformers.PretrainedConfig, optional
        Of the model: says which layers slide. Without it every layer keeps all tokens.
    capacity : int
        Tokens to make room for at once; the default grows.

    Raises
    ------
    InvalidArgument
        When a layer of the model is neither full nor sliding attention.

    Examples
    --------
    >>> with trivium.patch(model, attention="flexprefill"):
    ...     model.generate(**inputs, past_key_values=trivium.hf.Cache(model.config))
    """

    is_compileable = False

    def __init__(self, config: Any = None, *, capacity: int = 0) -> None:
        # Not the parent's: its arguments differ from release to release.
        windows = [] if config is None else _windows(config)
        self.layers: list[Layer] = [Layer(window, capacity) for window in windows]  # type: ignore[assignment]
        self.layer_class_to_replicate = None
        self.offloading = False
        self._capacity = capacity

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, kv_heads, new, head_dim]`` to a layer; give what the new queries may see."""
        while len(self.layers) <= layer_idx:
            self.layers.append(Layer(None, self._capacity))
        return self.layers[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Tokens of the sequence so far."""
        layer = layer_idx or 0
        return self.layers[layer].get_seq_length() if layer < len(self.layers) else 0

    def get_mask_sizes(self, query: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Number of keys that a layer shows the next queries, and the index of the first."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else Layer()
        return layer.get_mask_sizes(query)

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        """-1: the cache grows."""
        return -1

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the cache grows."""
        return -1

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Index of the next query."""
        return self.get_seq_length(layer_idx)

    def reset(self) -> None:
        """Forget every token; the memory stays."""
        for layer in self.layers:
            layer.reset()

    def crop(self, tokens: int) -> None:
        """Forget the last ``-tokens`` tokens; a positive number is the length that remains."""
        for layer in self.layers:
            layer.crop(tokens)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Batch row ``i`` becomes row ``beam_idx[i]``."""
        for layer in self.layers:
            layer.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each batch row."""
        for layer in self.layers:
            layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these batch rows, in this order."""
        for layer in self.layers:
            layer.batch_select_indices(indices)

    def activate_past_recording(self) -> None:
        """Let nothing go until :meth:`crop`, so that it can go back."""
        for layer in self.layers:
            layer.activate_past_recording()

    @property
    def is_sliding(self) -> list[bool]:
        """Whether each layer lets go of old tokens."""
        return [layer.is_sliding for layer in self.layers]

    @property
    def is_initialized(self) -> bool:
        """Whether each layer has memory."""
        return bool(self.layers) and all(layer.is_initialized for layer in self.layers)

    @property
    def batch_size(self) -> int:
        """Batch rows, or -1 before the first update."""
        keys = self.layers[0].keys if self.layers else None
        return -1 if keys is None else int(keys.shape[0])

    @property
    def nbytes(self) -> int:
        """Memory of all segments."""
        return sum(b.numel() * b.element_size() for layer in self.layers for b in layer._buffers or ())

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.layers[layer_idx].keys, self.layers[layer_idx].values

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"trivium.hf.Cache(layers={len(self)}, tokens={self.get_seq_length()}, MiB={self.nbytes / 2**20:.1f})"


Pair = tuple[torch.Tensor, torch.Tensor]


def _windows(config: Any) -> list[int | None]:
    """The window of each layer of a model; None where it attends to everything."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    window: int | None = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        # Without layer types the window, where there is one, is every layer's (Mistral, Phi-3).
        uses = window is not None and getattr(text, "use_sliding_window", True) and not hasattr(text, "max_window_layers")
        return [window if uses else None] * int(text.num_hidden_layers)
    strange = sorted(set(kinds) - {FULL, SLIDING})
    if strange:
        raise InvalidArgument(
            f"cache: layers of type {', '.join(strange)}: want {FULL} or {SLIDING}",
            hint="use transformers.DynamicCache(config=config) with this model",
        )
    return [window if kind == SLIDING else None for kind in kinds]


def _refuse(states: torch.Tensor) -> None:
    if states.device.type != "cpu":
        raise DeviceUnavailable(f"cache: keys are on {states.device}: want the cpu", hint="use transformers.DynamicCache()")
    refuse_gradients(key=states)


@torch.inference_mode(False)  # else the tensors could not be written to outside of it
def _segments(like: Pair, capacity: int, batch: int | None = None) -> Pair:
    """Two segments of ``capacity`` tokens with the other extents and the dtypes of ``like``."""
    made = []
    for tensor in like:
        rows, heads, _, width = tensor.shape
        made.append(empty((batch or rows, heads, capacity, width), tensor.dtype, like="torch"))
    return made[0], made[1]


def _move(source: Pair, target: Pair, first: int, end: int) -> None:
    """Copy the tokens [first, end) to the front of ``target``, which may be ``source``."""
    kept = end - first
    for old, new in zip(source, target):
        held = old[:, :, first:end]
        if old is new and kept > first:
            held = held.clone()
        new[:, :, :kept].copy_(held)
