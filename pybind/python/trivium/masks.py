"""Block masks: which tiles of queries and keys are attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trivium._errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class BlockExtent(NamedTuple):
    """The part of the block grid that one sequence covers."""

    first_query_block: int
    query_blocks: int
    key_blocks: int

    def tiles(self, causal: bool) -> int:
        """Tiles that hold at least one visible pair: the denominator of density."""
        if not causal:
            return self.query_blocks * self.key_blocks
        rows = np.arange(self.first_query_block, self.first_query_block + self.query_blocks) + 1
        return int(np.minimum(rows, self.key_blocks).sum())


@dataclass(frozen=True, eq=False)
class BlockMask:
    """Which tiles of queries and keys are attended to, in compressed rows.

    Rows are ordered by sequence, head, query block; row ``r`` keeps the key blocks
    ``columns[row_ptr[r]:row_ptr[r + 1]]``, sorted. Blocks are cut from the start of
    each sequence, so chunks, padding and packing do not move them.

    Attributes
    ----------
    block_size : int
        Tokens to a side of a tile.
    heads : int
        Query heads.
    sequences : tuple of BlockExtent
        One for each batch row or packed sequence.
    row_ptr : int64 [rows + 1]
    columns : int32 [kept tiles]
    causal : bool
        Whether density counts only the tiles on and below the diagonal.
    """

    block_size: int
    heads: int
    sequences: tuple[BlockExtent, ...]
    row_ptr: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int32]
    causal: bool = True

    @property
    def density(self) -> float:
        """Kept tiles over all (causal) tiles."""
        tiles = self.heads * sum(s.tiles(self.causal) for s in self.sequences)
        return len(self.columns) / tiles if tiles else 0.0

    def head_density(self, batch: int, head: int) -> float:
        """Kept tiles over all (causal) tiles of one head."""
        return len(self.blocks(batch, head)) / max(self.sequences[batch].tiles(self.causal), 1)

    def blocks(self, batch: int = 0, head: int = 0) -> npt.NDArray[np.int64]:
        """Give the kept tiles of one head as sorted pairs [kept, 2] of (query block, key block).

        Both are counted from the start of the sequence.
        """
        first = self._first_row(batch, head)
        extent = self.sequences[batch]
        pointers = self.row_ptr[first : first + extent.query_blocks + 1]
        rows = np.repeat(np.arange(extent.query_blocks) + extent.first_query_block, np.diff(pointers))
        return np.stack([rows, self.columns[pointers[0] : pointers[-1]].astype(np.int64)], axis=1)

    def to_dense(self) -> npt.NDArray[np.bool_]:
        """Give a bool array [batch, heads, query blocks, key blocks].

        Row 0 of a sequence is its first query block; shorter sequences are padded
        with False.
        """
        shape = (
            len(self.sequences),
            self.heads,
            max((s.query_blocks for s in self.sequences), default=0),
            max((s.key_blocks for s in self.sequences), default=0),
        )
        dense = np.zeros(shape, dtype=np.bool_)
        for b, extent in enumerate(self.sequences):
            for h in range(self.heads):
                pairs = self.blocks(b, h)
                dense[b, h, pairs[:, 0] - extent.first_query_block, pairs[:, 1]] = True
        return dense

    @classmethod
    def from_blocks(
        cls,
        rows: Sequence[Sequence[Sequence[int]]],
        *,
        block_size: int,
        key_blocks: int,
        first_query_block: int = 0,
        causal: bool = True,
    ) -> BlockMask:
        """Make the mask of one sequence from lists ``rows[head][query block]`` of key blocks."""
        flat = [sorted(set(columns)) for head in rows for columns in head]
        lengths = [len(head) for head in rows]
        if not lengths or len(set(lengths)) != 1:
            raise InvalidArgument(f"rows of {lengths} query blocks: want as many for each head")
        extent = BlockExtent(first_query_block, lengths[0], key_blocks)
        return cls(
            block_size=block_size,
            heads=len(rows),
            sequences=(extent,),
            row_ptr=np.cumsum([0] + [len(r) for r in flat], dtype=np.int64),
            columns=np.array([c for r in flat for c in r], dtype=np.int32),
            causal=causal,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask to an ``.npz`` file."""
        np.savez_compressed(
            path,
            block_size=self.block_size,
            heads=self.heads,
            sequences=np.array(self.sequences, dtype=np.int64),
            row_ptr=self.row_ptr,
            columns=self.columns,
            causal=self.causal,
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> BlockMask:
        """Read a mask that :meth:`save` wrote."""
        with np.load(path) as file:
            return cls(
                block_size=int(file["block_size"]),
                heads=int(file["heads"]),
                sequences=tuple(BlockExtent(*map(int, s)) for s in file["sequences"]),
                row_ptr=file["row_ptr"],
                columns=file["columns"],
                causal=bool(file["causal"]),
            )

    def plot(self, batch: int = 0, head: int = 0, ax: Axes | None = None) -> Axes:
        """Draw the kept tiles of one head."""
        from trivium.viz import plot_mask

        return plot_mask(self, batch=batch, head=head, ax=ax)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockMask):
            return NotImplemented
        return (
            (self.block_size, self.heads, self.sequences) == (other.block_size, other.heads, other.sequences)
            and np.array_equal(self.row_ptr, other.row_ptr)
            and np.array_equal(self.columns, other.columns)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"BlockMask(block_size={self.block_size}, sequences={len(self.sequences)}, heads={self.heads}, "
            f"kept={len(self.columns)}, density={self.density:.3f})"
        )

    def _repr_html_(self) -> str:
        from trivium._html import mask_html

        return mask_html(self)

    def _first_row(self, batch: int, head: int) -> int:
        if not (0 <= batch < len(self.sequences) and 0 <= head < self.heads):
            raise InvalidArgument(
                f"batch {batch}, head {head}: the mask has {len(self.sequences)} sequences and {self.heads} heads: want one of these"
            )
        before = sum(s.query_blocks for s in self.sequences[:batch]) * self.heads
        return before + head * self.sequences[batch].query_blocks

    @classmethod
    def _from_result(cls, result: dict[str, Any], causal: bool) -> BlockMask:
        from trivium._tensor import take

        return cls(
            block_size=result["block_size"],
            heads=result["heads"],
            sequences=tuple(BlockExtent(**s) for s in result["sequences"]),
            row_ptr=take(result["row_ptr"]),
            columns=take(result["columns"]),
            causal=causal,
        )
