"""Attention strategies in Python, for prototypes: choose tiles here, the fast kernel attends to them.

>>> class Nearest(trivium.Strategy):
...     \"""The nearest tiles, and the first one.\"""
...
...     def select(self, q, k, *, recent=4, block_size=64):
...         rows, columns = trivium.strategy.grid(q, k, block_size)
...         return (columns == 0) | (rows - columns < recent)
>>> trivium.attention(q, k, v, strategy=Nearest(recent=2))

A strategy that has proved itself is worth a plugin: ``trivium plugin new``.
"""

from __future__ import annotations

import difflib
import inspect
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from trivium._attention import Attention
from trivium._errors import InvalidArgument, UnknownStrategy
from trivium._params import plain
from trivium.catalog import Info, Parameter
from trivium.masks import BlockExtent, BlockMask
from trivium.report import Report

PREFIX = "python."
DEFAULT_BLOCK = 64
TYPES = {bool: "bool", int: "int", float: "float", str: "string"}

_registered: dict[str, type[Strategy]] = {}


class Strategy(Attention):
    """Derive from it, and write :meth:`select`. The class is then a strategy like any other.

    An object of it goes wherever a strategy is named: ``trivium.attention``,
    ``trivium.select``, ``trivium.patch``, evaluation arms; so does its identifier
    ``python.<name>``. Its parameters are the keyword arguments of ``select`` that
    have a default.

    Attributes
    ----------
    name : str
        Default: the name of the class in lower case, words joined by underscores.
    tensors : {"numpy", "torch"}
        What ``select`` gets: float32 arrays, or tensors as the caller has them.
    block_size : int
        Side of a tile in tokens, unless ``select`` has a parameter of this name.
    chunk_rule : {"same", "superset", ""}
        What a prompt in chunks keeps of what it keeps in one piece: the same tiles,
        those and more, or others.
    """

    name: ClassVar[str] = ""
    tensors: ClassVar[Literal["numpy", "torch"]] = "numpy"
    block_size: ClassVar[int] = DEFAULT_BLOCK
    chunk_rule: ClassVar[Literal["same", "superset", ""]] = "same"

    def __init__(self, **params: Any) -> None:
        super().__init__(PREFIX + self.name, self._checked(params))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        _registered[PREFIX + cls.name] = cls

    def select(self, q: Any, k: Any, **params: Any) -> Any:
        """Choose the tiles of one sequence.

        Padding and packing are taken care of: what arrives is one sequence, whose
        blocks are cut from its first key. ``q`` begins at the border of a block;
        in a chunk its first rows may be repetitions that make it so. Under a causal
        mask the last query is at the last key: row ``i`` is at position
        ``k_len - q_len + i``.

        Parameters
        ----------
        q : [q_heads, q_len, head_dim]
        k : [kv_heads, k_len, head_dim]
            Query head ``h`` looks at key head ``h * kv_heads // q_heads``.
        **params
            Every declared parameter.

        Returns
        -------
        bool [q_heads or 1, query blocks, key blocks], BlockMask or None
            None keeps everything. Tiles of the future are dropped.
        """
        raise NotImplementedError(f"{type(self).__name__}.select")

    @classmethod
    def info(cls) -> Info:
        """Describe the strategy as ``trivium.info`` does."""
        docs = _parameter_docs(cls.select.__doc__ or "")
        summary, _, _ = (inspect.getdoc(cls) or "").partition("\n")
        return Info(
            name=PREFIX + cls.name,
            kind="attention",
            summary=summary,
            license="",
            version="",
            parameters=tuple(
                Parameter(name, TYPES.get(type(default), "float" if default is None else "floats"), default, docs.get(name, ""))
                for name, default in cls._defaults().items()
            ),
            capabilities={"chunk_rule": cls.chunk_rule, "gqa": True, "varlen": True, "chunked": bool(cls.chunk_rule), "deterministic": True},
            plugin="this process",
        )

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """The parameters of ``select`` and their defaults."""
        found = {}
        for parameter in list(inspect.signature(cls.select).parameters.values())[3:]:
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.default is parameter.empty:
                raise InvalidArgument(
                    f"{cls.__name__}.select: its parameter {parameter.name} has no default: want one",
                    hint=f"def select(self, q, k, *, {parameter.name}=...)",
                )
            found[parameter.name] = parameter.default
        return found

    @classmethod
    def _checked(cls, params: dict[str, Any]) -> dict[str, Any]:
        defaults = cls._defaults()
        for name, value in plain(params).items():
            if name not in defaults:
                near = difflib.get_close_matches(name, defaults, 1)
                takes = f'did you mean "{near[0]}"?' if near else f"it takes {', '.join(defaults) or 'no parameters'}"
                raise InvalidArgument(f'unknown parameter "{name}"', hint=takes, strategy=PREFIX + cls.name)
            want = type(defaults[name])
            number = want in (int, float) and type(value) in (int, float) and (want is float or float(value).is_integer())
            if want in TYPES and not (number or type(value) is want):
                raise InvalidArgument(f"{name}: {value!r}: want a {want.__name__}", strategy=PREFIX + cls.name)
            params[name] = want(value) if number else value
        return dict(params)

    def mask(self, call: Call) -> BlockMask | None:
        """The tiles of all sequences of a call; None: everything."""
        params = {**self._defaults(), **self.params}
        size = int(params.get("block_size", self.block_size))
        if size % 16 or not 16 <= size <= 1024:
            raise InvalidArgument(f"block_size {size}: want a multiple of 16 from 16 to 1024", strategy=self.strategy)
        extents = [s.blocks(size) for s in call.sequences]
        kept = [self._kept(call, s, e, size, params) for s, e in zip(call.sequences, extents)]
        if all(tiles is None for tiles in kept):
            return None
        return _assemble([_visible(t, e, call) for t, e in zip(kept, extents)], extents, size, call)

    def _kept(
        self, call: Call, sequence: Span, extent: BlockExtent, size: int, params: dict[str, Any]
    ) -> npt.NDArray[np.bool_] | None:
        if extent.query_blocks == 0 or extent.key_blocks == 0:
            return np.zeros((call.heads, extent.query_blocks, extent.key_blocks), dtype=np.bool_)
        q, k = call.tensors(sequence, size, self.tensors)
        chosen = self.select(q, k, **params)
        columns = -(-k.shape[1] // size)  # keys after the last query were not shown
        tiles = self._tiles(chosen, call.heads, extent.query_blocks, columns, size)
        if tiles is None or columns == extent.key_blocks:
            return tiles
        return np.pad(tiles, ((0, 0), (0, 0), (0, extent.key_blocks - columns)))

    def _tiles(self, chosen: Any, heads: int, rows: int, columns: int, size: int) -> npt.NDArray[np.bool_] | None:
        if chosen is None:
            return None
        if isinstance(chosen, BlockMask):
            if chosen.block_size != size or len(chosen.sequences) != 1:
                raise InvalidArgument(
                    f"select gave a mask of block_size {chosen.block_size} and {len(chosen.sequences)} sequences: want {size} and 1",
                    strategy=self.strategy,
                )
            chosen = chosen.to_dense()[0]
        tiles = np.asarray(chosen)
        if tiles.ndim == 2:
            tiles = tiles[None]
        if tiles.dtype != np.bool_ or tiles.ndim != 3 or tiles.shape[0] not in (1, heads) or tiles.shape[1:] != (rows, columns):
            raise InvalidArgument(
                f"select gave {tiles.dtype}{list(tiles.shape)}: want bool [{heads} or 1, {rows} query blocks, {columns} key blocks]",
                hint="trivium.strategy.grid(q, k, block_size) has the indices of the blocks",
                strategy=self.strategy,
            )
        return np.broadcast_to(tiles, (heads, rows, columns))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.params.items())})"


def grid(q: Any, k: Any, block_size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the blocks of what ``select`` got: rows [query blocks, 1] and columns [1, key blocks].

    A tile with ``columns > rows`` is the future of a causal mask.
    """
    first = max(k.shape[1] - q.shape[1], 0) // block_size
    rows = first + np.arange(-(-q.shape[1] // block_size))
    return rows[:, None], np.arange(-(-k.shape[1] // block_size))[None, :]


def pool(x: Any, block_size: int) -> npt.NDArray[np.float32]:
    """Mean of each block: [heads, len, head_dim] -> float32 [heads, blocks, head_dim]."""
    x = np.asarray(x, dtype=np.float32)
    starts = np.arange(0, x.shape[1], block_size)
    counts = np.minimum(block_size, x.shape[1] - starts)
    means: npt.NDArray[np.float32] = np.add.reduceat(x, starts, axis=1) / counts[:, None].astype(np.float32)
    return means


def find(strategy: Any, params: dict[str, Any]) -> Strategy | None:
    """The Python strategy that is meant, with its parameters; None when it is not one.

    Raises
    ------
    UnknownStrategy
        A ``python.`` identifier of no class, with the nearest one.
    """
    name = strategy.strategy if isinstance(strategy, Attention) else strategy
    if not isinstance(name, str) or not name.startswith(PREFIX):
        return None
    own = strategy.params if isinstance(strategy, Attention) else {}
    if isinstance(strategy, Strategy):
        return type(strategy)(**{**own, **params}) if params else strategy
    return lookup(name)(**{**own, **params})


def lookup(name: str) -> type[Strategy]:
    """The class with an identifier ``python.<name>``."""
    if name not in _registered:
        known = [other.removeprefix(PREFIX) for other in _registered]
        near = difflib.get_close_matches(name.removeprefix(PREFIX), known, 1)
        hint = f'did you mean "{PREFIX}{near[0]}"?' if near else "define a subclass of trivium.Strategy first"
        raise UnknownStrategy(f'no class of this process is "{name}"', hint=hint)
    return _registered[name]


@dataclass(frozen=True)
class Span:
    """Rows of queries and keys of a batch row that belong together, and the position of the first query."""

    batch: int
    queries: slice
    keys: slice
    offset: int

    def blocks(self, size: int) -> BlockExtent:
        """The part of the block grid that it covers."""
        keys = self.keys.stop - self.keys.start
        rows = self.queries.stop - self.queries.start
        if rows == 0:
            return BlockExtent(0, 0, -(-keys // size))
        first, last = self.offset // size, (self.offset + rows - 1) // size
        return BlockExtent(first, last - first + 1, -(-keys // size))


class Call:
    """What ``trivium.attention`` was asked, cut into sequences."""

    def __init__(
        self,
        q: Any,
        k: Any,
        *,
        layout: str,
        causal: bool,
        q_offset: int | Sequence[int],
        k_start: Sequence[int] | None,
        k_end: Sequence[int] | None,
        cu_seqlens: Sequence[int] | None,
    ) -> None:
        self._q, self._k = (x.swapaxes(1, 2) if layout == "bnhd" and x.ndim == 4 else x for x in (_strided(q), _strided(k)))
        _check_shapes(tuple(self._q.shape), tuple(self._k.shape))
        self.causal = causal
        self.heads = int(self._q.shape[1])
        batch, q_len, k_len = int(self._q.shape[0]), int(self._q.shape[2]), int(self._k.shape[2])
        if cu_seqlens is not None:
            borders = list(zip(cu_seqlens, cu_seqlens[1:]))
            self.sequences = [Span(0, slice(int(a), int(b)), slice(int(a), int(b)), 0) for a, b in borders]
            return
        offsets = [int(q_offset)] * batch if np.ndim(q_offset) == 0 else [int(o) for o in q_offset]  # type: ignore[arg-type, union-attr]
        starts = [0] * batch if k_start is None else [int(s) for s in k_start]
        ends = [k_len] * batch if k_end is None else [int(e) for e in k_end]
        self.sequences = [
            _row(b, q_len, start, end, offset, causal) for b, (start, end, offset) in enumerate(zip(starts, ends, offsets))
        ]

    def tensors(self, sequence: Span, size: int, library: str) -> tuple[Any, Any]:
        """Queries and keys of a sequence, both beginning at a border of a block."""
        q = self._q[sequence.batch, :, sequence.queries]
        k = self._k[sequence.batch, :, sequence.keys]
        if self.causal:  # keys after the last query are not there yet
            k = k[:, : sequence.offset + q.shape[1]]
        q, k = (_as_numpy(x) if library == "numpy" else _as_torch(x) for x in (q, k))
        missing = sequence.offset % size
        if missing == 0:
            return q, k
        return _front(q, missing), k


def _row(b: int, q_len: int, start: int, end: int, first: int, causal: bool) -> Span:
    """One batch row without its padding, as the engine cuts it."""
    begin, stop = 0, q_len
    if causal:
        begin = min(max(start - first, 0), stop)
        stop = max(min(end - first, stop), begin)
    return Span(b, slice(begin, stop), slice(start, end), first + begin - start)


def _strided(x: Any) -> Any:
    """Something with slices: numpy and torch are as they are."""
    if hasattr(x, "swapaxes"):
        return x
    if hasattr(x, "__dlpack__"):
        return np.from_dlpack(x)
    raise InvalidArgument(
        f"a strategy in Python cannot read a {type(x).__name__}: want numpy or torch", hint="x.to_numpy_ndarray() is one"
    )


def _check_shapes(q: tuple[int, ...], k: tuple[int, ...]) -> None:
    """What cutting into sequences relies on; the engine checks the rest."""
    if len(q) != 4 or len(k) != 4:
        raise InvalidArgument(f"query {list(q)}, key {list(k)}: want 4 axes [batch, heads, len, head_dim]")
    if q[0] != k[0] or q[1] % k[1]:
        raise InvalidArgument(f"query {list(q)}, key {list(k)}: want the same batch, and a multiple of the kv heads")


def _as_numpy(x: Any) -> npt.NDArray[np.float32]:
    if isinstance(x, np.ndarray):
        return x.astype(np.float32, copy=False)
    made: npt.NDArray[np.float32] = x.detach().float().numpy()
    return made


def _as_torch(x: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x.detach()


def _front(q: Any, missing: int) -> Any:
    """Repeat the first query so often in front of it."""
    if isinstance(q, np.ndarray):
        return np.concatenate([np.repeat(q[:, :1], missing, axis=1), q], axis=1)
    import torch

    return torch.cat([q[:, :1].expand(-1, missing, -1), q], dim=1)


def _visible(tiles: npt.NDArray[np.bool_] | None, extent: BlockExtent, call: Call) -> npt.NDArray[np.bool_]:
    """What of the chosen tiles a causal query can see at all."""
    shape = (call.heads, extent.query_blocks, extent.key_blocks)
    if tiles is None:
        tiles = np.ones(shape, dtype=np.bool_)
    if not call.causal:
        return tiles
    rows = extent.first_query_block + np.arange(extent.query_blocks)
    return tiles & (np.arange(extent.key_blocks) <= rows[:, None])


def _assemble(tiles: list[npt.NDArray[np.bool_]], extents: list[BlockExtent], size: int, call: Call) -> BlockMask:
    counts = np.concatenate([t.sum(axis=2).ravel() for t in tiles])
    return BlockMask(
        block_size=size,
        heads=call.heads,
        sequences=tuple(extents),
        row_ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        columns=np.concatenate([t.nonzero()[2] for t in tiles]).astype(np.int32),
        causal=call.causal,
    )


def relabel(report: Report, strategy: Strategy, select_ms: float) -> Report:
    """A report of the kernel as one of the strategy that chose its tiles."""
    heads = tuple(replace(head, pattern=strategy.name) for head in report.heads)
    times = replace(report.times, select_ms=report.times.select_ms + select_ms)
    return replace(report, strategy=strategy.strategy, heads=heads, times=times)


def choose(strategy: Strategy, call: Call) -> tuple[BlockMask | None, float]:
    """Tiles, and the milliseconds it took."""
    started = time.perf_counter()
    mask = strategy.mask(call)
    return mask, 1e3 * (time.perf_counter() - started)


def _parameter_docs(docstring: str) -> dict[str, str]:
    """The parameters of a numpy docstring: a line each."""
    return dict(_entries(inspect.cleandoc(docstring).splitlines()))


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line, following in zip(lines, lines[1:]):
        name, colon, _ = line.partition(" : ")
        if colon and following.startswith("    "):
            yield name.strip(), following.strip()
