"""What a transformers model lets its queries see, as numbers instead of a matrix.

transformers builds its masks by calling a *mask function* registered beside the
attention function. Ours builds no mask: it returns a :class:`Visibility`, which
travels through the model to the attention function in the mask's place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable

import torch

from trivium._errors import InvalidArgument

Pairs = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

PROBE_ROWS = 32  # query rows on which a mask is checked against its description


@dataclass(frozen=True)
class Visibility:
    """Which keys a query may see.

    Query row ``i`` has index ``q_offset + i`` among the keys that are passed to
    the attention function. Row ``b`` of the batch is the keys
    ``[starts[b], ends[b])``. ``segments`` are the borders of sequences packed
    into batch row 0.
    """

    q_offset: int
    causal: bool = True
    window: int | None = None
    starts: tuple[int, ...] | None = None
    ends: tuple[int, ...] | None = None
    segments: tuple[int, ...] | None = None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``trivium.attention`` that say the same."""
        if self.segments is not None:
            return {"causal": self.causal, "window": self.window, "cu_seqlens": list(self.segments)}
        return {
            "causal": self.causal,
            "window": self.window,
            "q_offset": self.q_offset,
            "k_start": None if self.starts is None else list(self.starts),
            "k_end": None if self.ends is None else list(self.ends),
        }


def visibility(
    batch_size: int,
    kv_length: int,
    q_length: int | None = None,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Pairs | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    cache_position: torch.Tensor | None = None,
    **unused: Any,
) -> Visibility:
    """The mask function: describe a mask, or refuse one that has no description.

    Parameters are those of ``transformers.masking_utils.sdpa_mask``; releases
    before 5 pass ``cache_position`` instead of ``q_length`` and ``q_offset``.
    """
    if cache_position is not None:
        q_length, q_offset = int(cache_position.numel()), int(cache_position[0])
    if q_length is None:
        raise InvalidArgument("mask: neither q_length nor cache_position was given: want one of them")
    q_offset, kv_offset = int(q_offset), int(kv_offset)
    starts, ends = _extent(attention_mask, kv_length, kv_offset)
    plain = Visibility(q_offset - kv_offset, True, None, starts, ends)
    if mask_function is None or _is_plain_causal(mask_function):
        return plain
    if use_vmap:
        raise _unsupported("the model adds its own rule to the causal mask (images, prefixes)")
    grid = _Grid(mask_function, batch_size, q_length, kv_length, q_offset, kv_offset)
    return _describe(grid, plain, local_size)


def _is_plain_causal(mask_function: object) -> bool:
    from transformers import masking_utils

    return mask_function is masking_utils.causal_mask_function


def _extent(
    padding: torch.Tensor | None, kv_length: int, kv_offset: int
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """First and last key of each batch row, from the 2-d padding mask."""
    if padding is None:
        return None, None
    kept = padding[:, kv_offset : kv_offset + kv_length].bool()
    if kept.shape[1] == kv_length and bool(kept.all()):
        return None, None
    count = kept.sum(dim=1)
    first = kept.int().argmax(dim=1)
    last = kept.shape[1] - kept.flip(1).int().argmax(dim=1)
    last = torch.where(count > 0, last, first)
    if bool((last - first != count).any()):
        row = int((last - first != count).nonzero()[0])
        raise InvalidArgument(
            f"mask: batch row {row} of the attention mask has gaps between its tokens: "
            "want one run of ones per row",
            hint="pad on the left when you generate (tokenizer.padding_side = 'left')",
        )
    return tuple(first.tolist()), tuple(last.tolist())


@dataclass(frozen=True)
class _Grid:
    """A mask function over queries and keys counted from the first key passed."""

    function: Pairs
    batch: int
    q_length: int
    k_length: int
    q_offset: int
    kv_offset: int

    def at(self, batch: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Visible or not, elementwise over broadcast index tensors."""
        head = torch.zeros((), dtype=torch.long)
        seen = self.function(batch, head, q + self.q_offset, k + self.kv_offset)
        return seen.expand(torch.broadcast_shapes(batch.shape, q.shape, k.shape)).bool()


def _describe(grid: _Grid, plain: Visibility, window: int | None) -> Visibility:
    future = plain.q_offset + 1
    hidden = future >= grid.k_length or not bool(grid.at(torch.tensor(0), torch.tensor(0), torch.tensor(future)))
    segments = _segments(grid) if plain.starts is None and plain.q_offset == 0 else None
    found = replace(plain, causal=hidden, window=window, segments=segments)
    _check(grid, found)
    return found


def _segments(grid: _Grid) -> tuple[int, ...] | None:
    """Borders of packed sequences: a token that does not see its left neighbour opens one."""
    if grid.q_length != grid.k_length or grid.q_length < 2:
        return None
    right = torch.arange(1, grid.q_length)
    apart = torch.stack([~grid.at(torch.tensor(b), right, right - 1) for b in range(grid.batch)])
    if not bool(apart.any()):
        return None
    if grid.batch > 1:
        raise _unsupported(f"{grid.batch} batch rows of packed sequences", "pack them into one row")
    return (0, *right[apart[0]].tolist(), grid.q_length)


def _check(grid: _Grid, found: Visibility) -> None:
    """Compare the description with the mask function on rows spread over the queries."""
    rows = torch.linspace(0, grid.q_length - 1, min(PROBE_ROWS, grid.q_length)).round().long().unique()
    q, k = rows[:, None], torch.arange(grid.k_length)[None, :]
    distance = q + found.q_offset - k
    want = torch.ones_like(distance, dtype=torch.bool)
    if found.causal:
        want &= distance >= 0
    if found.window is not None:
        want &= distance < found.window
    if found.segments is not None:
        borders = torch.tensor(found.segments[1:-1])
        want &= torch.bucketize(q, borders, right=True) == torch.bucketize(k, borders, right=True)
    for b in range(grid.batch):
        if not torch.equal(grid.at(torch.tensor(b), q, k), want):
            raise _unsupported("its mask is not causal, windowed, padded or packed")


def _unsupported(what: str, hint: str = "use attn_implementation='eager' for this model") -> InvalidArgument:
    return InvalidArgument(f"mask: {what}, which trivium's attention cannot follow", hint=hint)
