"""Attention calls on a device that are like an earlier one, of which only addresses are sent.

A model makes the same call in each of its layers. Describing it, writing it as JSON and
reading that in Go would take longer than all else.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

from trivium.positions import Position, PositionPlan

if TYPE_CHECKING:
    from trivium._cuda import Lender

# How many kinds of calls are known. Go keeps twice as many, so that one that is being made is still there.
MOST = 256
# Tensors that lie off it are described and refused.
ALIGNMENT = 16

_numbers = itertools.count(1)
_known: dict[Hashable, Known] = {}


class Known(NamedTuple):
    """A call that a plugin took: by what number Go knows its request, and who lends its tensors."""

    number: int
    lender: Lender


def number() -> int:
    """A number for a request that Go is to keep."""
    return next(_numbers)


def remember(key: Hashable, number: int, lender: Lender) -> None:
    """Note that a plugin took a call. Numbers grow, and Go forgets the oldest."""
    if len(_known) >= MOST:
        _known.clear()
    _known[key] = Known(number, lender)


def key(tensors: tuple[Any, Any, Any], strategy: Any, position: Any, rows: tuple[Any, ...], other: tuple[Hashable, ...]) -> Hashable:
    """All that a call is, but for the addresses of its tensors; None for tensors or arguments that have no short form.

    Parameters
    ----------
    tensors : query, key, value
    strategy : str or Attention
        Not one in Python, which chooses anew in each call.
    position : str, Position, PositionPlan or None
    rows : numbers or lists of numbers
    other : hashable arguments
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    for x in tensors:
        if not isinstance(x, torch.Tensor) or not x.is_cuda or x.layout is not torch.strided or x.is_neg():
            return None
    if not isinstance(strategy, str):
        other = (*other, str(strategy.params))
        strategy = strategy.strategy
    if strategy.startswith("python."):
        return None
    if isinstance(position, Position):
        position = (position.strategy, str(position.params))
    elif isinstance(position, PositionPlan):
        position = position._handle
    elif position is not None and not isinstance(position, str):
        return None
    short = []
    for row in rows:
        if isinstance(row, list):
            row = tuple(row)
        elif row is not None and not isinstance(row, int | tuple):
            return None
        short.append(row)
    q, k, v = tensors
    made = (
        strategy, other, position, tuple(short), q.dtype, k.dtype, v.dtype, q.device, k.device, v.device,
        q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(),
    )  # fmt: skip
    try:
        hash(made)
    except TypeError:  # of an argument that is none of ours
        return None
    return made


def attend(key: Hashable, tensors: tuple[Any, Any, Any], layer: int, lse_shape: Any) -> tuple[Any, Any] | None:
    """Make a call that is known, without waiting for the answer; None when it is not, or has to be told in full.

    Returns
    -------
    out, lse
        As the caller's query; float32 [batch, q_heads, q_len], or None without `lse_shape`.
    """
    known = _known.get(key)
    if known is None:
        return None
    torch = sys.modules["torch"]
    query = tensors[0]
    try:
        addresses = [x.data_ptr() for x in tensors]
    except RuntimeError:  # one that a transform only traces
        return None
    if (addresses[0] | addresses[1] | addresses[2]) % ALIGNMENT:
        return None
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    written = [(out.data_ptr(), out.nbytes)]
    lse = None
    if lse_shape is not None:
        lse = torch.empty(lse_shape, dtype=torch.float32, device=query.device)
        written.append((lse.data_ptr(), lse.nbytes))
    lease = known.lender.lend_known(addresses, written)
    if lease is None:
        return None
    numbers = [known.number, layer, *addresses, written[0][0], written[1][0] if lse is not None else 0]
    lease.repeat(" ".join(map(str, numbers)))
    return out, lse
