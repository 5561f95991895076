"""Attention over numpy, torch and Arrow tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from trivium import _again, _bridge, _sent, _tensor
from trivium._engine import Engine, default_engine
from trivium._errors import InvalidArgument
from trivium._params import plain
from trivium.masks import BlockMask
from trivium.positions import Position, PositionPlan, position as position_strategy
from trivium.report import Report

if TYPE_CHECKING:
    from trivium._cuda import Lease

Layout = Literal["bhnd", "bnhd"]
Precision = Literal["highest", "high"]
Bound = Literal["normal", "proven"]
Tensor = Any  # numpy, torch (CPU or CUDA), or anything with __dlpack__ or __arrow_c_array__


@dataclass(frozen=True)
class Attention:
    """An attention strategy with its parameters, for :func:`trivium.patch` and evaluation arms."""

    strategy: str
    params: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        params = "".join(f", {k}={v!r}" for k, v in self.params.items())
        return f"trivium.attention({self.strategy!r}{params})"


@overload
def attention(q: str, **params: Any) -> Attention: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    strategy: str | Attention = ...,
    position: str | Position | PositionPlan | None = ...,
    causal: bool = ...,
    scale: float | None = ...,
    q_offset: int | Sequence[int] = ...,
    k_start: Sequence[int] | None = ...,
    k_end: Sequence[int] | None = ...,
    cu_seqlens: Sequence[int] | None = ...,
    window: int | None = ...,
    softcap: float | None = ...,
    precision: Precision | None = ...,
    sinks: Sequence[float] | npt.NDArray[Any] | None = ...,
    inv_freq: Sequence[float] | npt.NDArray[Any] | None = ...,
    rope_theta: float | None = ...,
    layout: Layout = ...,
    mask: BlockMask | npt.NDArray[np.bool_] | None = ...,
    block_size: int | None = ...,
    probe_rows: int = ...,
    bound: Bound = ...,
    delta: float | None = ...,
    return_lse: bool = ...,
    return_report: bool = ...,
    return_mask: bool = ...,
    device: str | None = ...,
    timeout: float | None = ...,
    threads: int = ...,
    seed: int = ...,
    layer: int | None = ...,
    engine: Engine | None = ...,
    **params: Any,
) -> Any: ...


def attention(
    q: Tensor,
    k: Tensor = None,
    v: Tensor = None,
    *,
    strategy: str | Attention = "flexprefill",
    position: str | Position | PositionPlan | None = None,
    causal: bool = True,
    scale: float | None = None,
    q_offset: int | Sequence[int] = 0,
    k_start: Sequence[int] | None = None,
    k_end: Sequence[int] | None = None,
    cu_seqlens: Sequence[int] | None = None,
    window: int | None = None,
    softcap: float | None = None,
    precision: Precision | None = None,
    sinks: Sequence[float] | npt.NDArray[Any] | None = None,
    inv_freq: Sequence[float] | npt.NDArray[Any] | None = None,
    rope_theta: float | None = None,
    layout: Layout = "bhnd",
    mask: BlockMask | npt.NDArray[np.bool_] | None = None,
    block_size: int | None = None,
    probe_rows: int = 0,
    bound: Bound = "normal",
    delta: float | None = None,
    return_lse: bool = False,
    return_report: bool = False,
    return_mask: bool = False,
    device: str | None = None,
    timeout: float | None = None,
    threads: int = 0,
    seed: int = 0,
    layer: int | None = None,
    engine: Engine | None = None,
    **params: Any,
) -> Any:
    """Attend, with a strategy that decides which keys a query looks at.

    Query row ``i`` of batch row ``b`` has index ``q_offset[b] + i`` on the axis of the
    keys; it sees key ``j`` when ``k_start[b] <= j < k_end[b]``, ``j`` is not after it
    (causal) and their distance is below ``window``. Causal queries outside of
    ``[k_start, k_end)`` are padding: zeros, with an lse of -inf.

    Parameters
    ----------
    q : tensor [batch, q_heads, q_len, head_dim], or str
        float32, bfloat16 or float16 on the CPU; bfloat16 or float16 on a CUDA device,
        where the work is done in the order of the current stream and the call does not
        wait for it. A call like one before is not answered either: should it fail, its
        outputs are NaN and the next call on the device raises its error. A string alone names a strategy and
        gives an :class:`Attention` for :func:`trivium.patch`.
    k, v : tensor [batch, kv_heads, k_len, head_dim]
        ``q_heads`` must be a multiple of ``kv_heads``.
    strategy : str or Attention
        ``trivium.list("attention")`` shows what there is and ``trivium.info(name)``
        the parameters that ``**params`` takes.
    position : str, Position or PositionPlan, optional
        How positions enter the scores. Query and key come rotated at their true
        positions, by ``inv_freq`` (radians per token) or ``rope_theta``.
    scale : float, optional
        Of the scores; default 1 / sqrt(head_dim).
    q_offset : int or a value for each batch row
        Index of the first query: the length of the cache before this chunk.
    k_start, k_end : a value for each batch row, optional
        The keys that are there: padding lies outside.
    cu_seqlens : sequence of int, optional
        Packed sequences in batch row 0: boundaries 0, ..., q_len.
    window : int, optional
        Keys at this distance or farther are not seen.
    softcap : float, optional
        Scores become ``softcap * tanh(score / softcap)``.
    precision : {"highest", "high"}, optional
        Of products of float32, in the words of ``torch.set_float32_matmul_precision``.
        ``"highest"``, the default, makes them in float32. ``"high"`` permits three products
        of bfloat16 halves where those are faster, which is on CPUs with AMX: each is off
        by 2^-15 of itself at most. The report says which were made.
    sinks : float [q_heads], optional
        A logit for each head that joins the softmax without a value.
    layout : {"bhnd", "bnhd"}
        Order of the axes; neither costs a copy.
    mask : BlockMask or bool [(batch,) heads, query blocks, key blocks], optional
        For ``strategy="custom"``; a bool array needs ``block_size``.
    probe_rows : int
        Measure coverage on so many random rows of each head.
    bound : {"normal", "proven"}
        How the lower bound of coverage is made. Normal: 3 standard errors below the
        mean of rows drawn one from each stretch of the sequence. Proven: by betting
        (Waudby-Smith and Ramdas, 2024) on ``probe_rows`` rows drawn uniformly, for this
        alone, which supposes nothing of their coverage. What promises ``gamma``, as
        ``probe`` and ``coverage="enforce"`` do, then proves it by rows that only check.
    delta : float, optional
        The probability, over the draw of the rows, that a head's proven bound does not
        hold; default 0.01.
    return_lse, return_report, return_mask : bool
        Return also the log-sum-exp [batch, q_heads, q_len] float32 (natural), the
        :class:`Report`, the :class:`BlockMask` (in the report).
    device : str, optional
        Default: where the tensors are.
    timeout : float, optional
        Seconds until :class:`DeadlineExceeded`; default none.

    Returns
    -------
    out, or (out, lse), (out, report), (out, lse, report)
        Tensors are of the caller's type, ``out`` in the layout of ``q``.

    Raises
    ------
    InvalidArgument
        Shapes, dtypes or parameters that do not fit, with what would; a tensor that requires
        grad while torch records gradients, since there are none of attention.
    UnknownStrategy, PluginCrashed, PluginRefused, DeadlineExceeded
    """
    if isinstance(q, str):
        if k is not None or v is not None:
            raise InvalidArgument("a strategy name and tensors: want either", hint="pass strategy= for the name")
        return Attention(q, params if precision is None else {**params, "precision": precision})
    if k is None or v is None:
        raise InvalidArgument("query, key and value are needed")
    _tensor.refuse_gradients(query=q, key=k, value=v)
    strategy, own_precision = _apart(strategy)
    precision = precision or own_precision
    if mask is not None and not isinstance(mask, BlockMask):
        mask = np.ascontiguousarray(mask)  # held until the call has ended
    engine = engine or default_engine()
    known = None
    if mask is None and sinks is None and inv_freq is None and device is None and timeout is None and not (return_report or return_mask):
        known = _again.key(
            (q, k, v), strategy, position, (q_offset, k_start, k_end, cu_seqlens),
            (engine.handle, str(params) if params else "", block_size, layout, causal, window, scale, softcap, seed, threads, rope_theta,
             return_lse, probe_rows, bound, delta, precision),
        )  # fmt: skip
    if known is not None:
        made = _again.attend(known, (q, k, v), -1 if layer is None else layer, _lse_shape(q.shape, layout) if return_lse else None)
        if made is not None:
            return made if return_lse else made[0]
    query = _tensor.describe(q, "query")
    inputs = [query, _tensor.describe(k, "key"), _tensor.describe(v, "value")]
    prototype, select_ms = _prototype(strategy, params), 0.0
    if prototype is not None:
        mask, select_ms = _chosen(prototype, mask, q, k, layout, causal, q_offset, k_start, k_end, cu_seqlens, block_size)
        strategy, params, block_size = "dense" if mask is None else "custom", {}, None
    _check_device(device, query)
    out = _tensor.empty_like(query)
    outputs = [_tensor.describe(out, "output", writable=True)]
    lse = None
    if return_lse:
        lse = _empty_lse(query, layout)
        outputs.append(_tensor.describe(lse, "lse", writable=True))
    lease = _lend(inputs, outputs)
    request = _request(
        engine, strategy, inputs, layout, position, inv_freq, rope_theta, q_offset, k_start, k_end, cu_seqlens,
        scale, causal, window, softcap, sinks, mask, block_size, probe_rows, threads, seed, layer, params,
    )
    if precision is not None:
        request["precision"] = str(precision)
    if bound != "normal":
        request["bound"] = str(bound)
    if delta is not None:
        request["delta"] = _positive("delta", delta)
    request["output"] = _axes(outputs[0], layout)
    if return_lse:
        request["lse"] = outputs[1].request()
    if return_report:
        request["report"] = True
    if return_mask:
        request["want_mask"] = True
    if known is not None:
        request["keep"] = _again.number()
    result = _run("attend", request, timeout, lease)
    if "keep" in request and lease is not None:
        _again.remember(known, request["keep"], lease.owner)
    if not return_lse and not return_report:
        return out
    answer = [out]
    if return_lse:
        answer.append(lse)
    if return_report:
        kept = result.get("mask")
        if lease is not None and lease.note:
            result["report"].setdefault("notes", []).append(lease.note)
        report = Report._from_result(result["report"], BlockMask._from_result(kept, causal) if kept else None)
        answer.append(report if prototype is None else _relabel(report, prototype, select_ms))
    return tuple(answer)


def select(
    q: Tensor,
    k: Tensor,
    *,
    strategy: str | Attention = "flexprefill",
    position: str | Position | PositionPlan | None = None,
    causal: bool = True,
    scale: float | None = None,
    q_offset: int | Sequence[int] = 0,
    k_start: Sequence[int] | None = None,
    k_end: Sequence[int] | None = None,
    cu_seqlens: Sequence[int] | None = None,
    window: int | None = None,
    softcap: float | None = None,
    inv_freq: Sequence[float] | npt.NDArray[Any] | None = None,
    rope_theta: float | None = None,
    layout: Layout = "bhnd",
    timeout: float | None = None,
    threads: int = 0,
    seed: int = 0,
    layer: int | None = None,
    engine: Engine | None = None,
    **params: Any,
) -> BlockMask:
    """Let a strategy choose blocks without attending to them.

    The arguments are those of :func:`trivium.attention`.

    Returns
    -------
    BlockMask
        Every visible tile when the strategy chose to attend to everything.
    """
    engine = engine or default_engine()
    strategy, _ = _apart(strategy)
    prototype = _prototype(strategy, params)
    if prototype is not None:
        mask, _ = _chosen(prototype, None, q, k, layout, causal, q_offset, k_start, k_end, cu_seqlens, None)
        if mask is not None:
            return mask
        strategy, params = "dense", {}
    key = _tensor.describe(k, "key")
    inputs = [_tensor.describe(q, "query"), key, key]
    lease = _lend(inputs[:2], [])
    request = _request(
        engine, strategy, inputs, layout, position, inv_freq, rope_theta, q_offset, k_start, k_end, cu_seqlens,
        scale, causal, window, softcap, None, None, None, 0, threads, seed, layer, params,
    )
    result = _run("select", request, timeout, lease)
    return BlockMask._from_result(result["mask"], causal)


def _apart(strategy: str | Attention) -> tuple[str | Attention, Precision | None]:
    """A strategy and the precision among its parameters, which is the call's and none of its own."""
    if not isinstance(strategy, Attention) or "precision" not in strategy.params:
        return strategy, None
    params = dict(strategy.params)
    precision = params.pop("precision")
    return Attention(strategy.strategy, params), precision


def _prototype(strategy: str | Attention, params: dict[str, Any]) -> Any:
    """The strategy when it is a Python class, else None: nothing is imported for the others."""
    name = strategy.strategy if isinstance(strategy, Attention) else strategy
    if not isinstance(name, str) or not name.startswith("python."):
        return None
    from trivium.strategy import find

    return find(strategy, params)


def _chosen(
    prototype: Any,
    mask: Any,
    q: Tensor,
    k: Tensor,
    layout: Layout,
    causal: bool,
    q_offset: int | Sequence[int],
    k_start: Sequence[int] | None,
    k_end: Sequence[int] | None,
    cu_seqlens: Sequence[int] | None,
    block_size: int | None,
) -> tuple[BlockMask | None, float]:
    from trivium.strategy import Call, choose, find

    if mask is not None:
        raise InvalidArgument("mask= and a strategy that makes one: want either", hint='pass strategy="custom" for the mask')
    if block_size is not None:
        prototype = find(prototype, {"block_size": block_size})
    call = Call(
        q, k, layout=layout, causal=causal, q_offset=q_offset, k_start=k_start, k_end=k_end, cu_seqlens=cu_seqlens
    )
    return choose(prototype, call)


def _relabel(report: Report, prototype: Any, select_ms: float) -> Report:
    from trivium.strategy import relabel

    return relabel(report, prototype, select_ms)


def _empty_lse(query: _tensor.Array, layout: Layout) -> Any:
    shape = _lse_shape(query.shape, layout)
    if query.device == "cpu":
        return _tensor.empty(shape, "float32", like=query.kind)
    import torch

    return torch.empty(shape, dtype=torch.float32, device=query.owner.device)


def _lse_shape(shape: Sequence[int], layout: Layout) -> Sequence[int]:
    return shape[:3] if layout == "bhnd" or len(shape) != 4 else [shape[i] for i in (0, 2, 1)]


def _lend(inputs: list[_tensor.Array], outputs: list[_tensor.Array]) -> Lease | None:
    """Make tensors of a CUDA device visible to the plugin; tensors on the CPU need nothing."""
    device = inputs[0].device
    if device == "cpu":
        return None
    from trivium import _cuda

    for array in (*inputs, *outputs):
        if array.device != device:
            raise InvalidArgument(f"tensors on {device} and on {array.device}: want one device")
    named = list(zip(("query", "key", "value"), inputs))
    return _cuda.lender(device).lend(named, list(zip(("output", "lse"), outputs)))


def _run(operation: str, request: _tensor.Request, timeout: float | None, lease: Lease | None) -> Any:
    if lease is None:
        _sent.settle()  # a call on a device has the plugin's lane until then
        return _bridge.run(operation, request, timeout)
    answers = timeout is not None or operation != "attend" or "report" in request or "want_mask" in request
    return lease.run(operation, request, timeout, None if answers else _likeness(request))


def _likeness(request: _tensor.Request) -> tuple[Any, ...]:
    """What a plugin looks at to take or refuse an attention call on a device: anything but numbers that vary from call to call."""
    query, key, value = request["query"], request["key"], request["value"]
    steps = 0
    for array in (query, key, value):
        b, h, n, _ = array["strides"]
        steps |= array["address"] | 2 * b | 2 * h | 2 * n
    params, mask, plan = request.get("params"), request.get("mask"), getattr(request, "owner", None)
    batch, heads, _, head_dim = query["shape"]
    return (
        request["engine"], request["strategy"], query["dtype"], batch, heads, key["shape"][1], head_dim, steps % 16, request["causal"],
        tuple(request), str(params) if params else "", mask and mask["block_size"],
        plan and (plan.strategy, len(plan.bands), plan.twice, plan.interleaved),
    )  # fmt: skip


def _request(
    engine: Engine,
    strategy: str | Attention,
    inputs: list[_tensor.Array],
    layout: Layout,
    position: str | Position | PositionPlan | None,
    inv_freq: Sequence[float] | npt.NDArray[Any] | None,
    rope_theta: float | None,
    q_offset: int | Sequence[int],
    k_start: Sequence[int] | None,
    k_end: Sequence[int] | None,
    cu_seqlens: Sequence[int] | None,
    scale: float | None,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: Sequence[float] | npt.NDArray[Any] | None,
    mask: BlockMask | npt.NDArray[np.bool_] | None,
    block_size: int | None,
    probe_rows: int,
    threads: int,
    seed: int,
    layer: int | None,
    params: dict[str, Any],
) -> _tensor.Request:
    if isinstance(strategy, Attention):
        params = {**strategy.params, **params}
        strategy = strategy.strategy
    if block_size is not None and mask is None:
        params = {**params, "block_size": block_size}
    query, key, value = (_axes(t, layout) for t in inputs)
    batch = query["shape"][0]
    request = _tensor.Request(
        engine=engine.handle,
        strategy=strategy,
        query=query,
        key=key,
        value=value,
        causal=causal,
        layer=-1 if layer is None else layer,
    )
    # Most calls have none of these; what is not sent is not parsed.
    if params:
        request["params"] = plain(params)
    for name, count in (("threads", threads), ("seed", seed), ("probe_rows", probe_rows)):
        if count:
            request[name] = count
    if np.ndim(q_offset) or q_offset:
        request["q_offset"] = _per_row(q_offset, batch)
    for name, rows in (("k_start", k_start), ("k_end", k_end), ("cu_seqlens", cu_seqlens)):
        if rows is not None:
            request[name] = _integers(rows)
    if window is not None:
        if window < 1:
            raise InvalidArgument(f"window {window}: want at least 1, or None")
        request["window"] = int(window)
    for name, number in (("scale", scale), ("softcap", softcap)):
        if number is not None:
            request[name] = _positive(name, number)
    if sinks is not None:
        request["sinks"] = np.asarray(sinks, dtype=np.float64).ravel().tolist()
    if mask is not None:
        request["mask"] = _mask(mask, block_size)
    if position is not None:
        length = max(key["shape"][2], query["shape"][2])
        plan = _plan(position, query["shape"][3], length, inv_freq, rope_theta, engine)
        request["plan"] = plan._handle
        request.owner = plan  # whose handle is good for as long as it lives
    return request


def _axes(array: _tensor.Array, layout: Layout) -> dict[str, Any]:
    """Describe a tensor with its axes in the order batch, heads, length, head_dim."""
    request = array.request()
    if layout == "bhnd" or len(request["shape"]) != 4:
        return request
    if layout != "bnhd":
        raise InvalidArgument(f'layout {layout!r}: want "bhnd" or "bnhd"')
    for axes in ("shape", "strides"):
        b, n, h, d = request[axes]
        request[axes] = [b, h, n, d]
    return request


def _integers(rows: Sequence[int]) -> list[int]:
    array = np.asarray(rows)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgument(f"{rows!r}: want a list of integers")
    return [int(r) for r in array]


def _per_row(q_offset: int | Sequence[int], batch: int) -> list[int]:
    if np.ndim(q_offset) == 0:
        return [int(q_offset)] * batch  # type: ignore[arg-type]
    return _integers(q_offset)  # type: ignore[arg-type]


def _positive(name: str, number: float) -> float:
    if not (np.isfinite(number) and number > 0):
        raise InvalidArgument(f"{name} {number}: want a positive number")
    return float(number)


def _mask(mask: BlockMask | npt.NDArray[np.bool_], block_size: int | None) -> dict[str, Any]:
    if isinstance(mask, BlockMask):
        return {
            "block_size": mask.block_size,
            "heads": mask.heads,
            "sequences": [s._asdict() for s in mask.sequences],
            "row_ptr": _tensor.describe(mask.row_ptr, "mask").request(),
            "columns": _tensor.describe(mask.columns, "mask", empty=True).request(),
        }
    if mask.dtype != np.bool_ or mask.ndim not in (3, 4):
        raise InvalidArgument(
            f"mask {mask.dtype}{list(mask.shape)}: want a BlockMask or bool [(batch,) heads, query blocks, key blocks]"
        )
    if block_size is None:
        raise InvalidArgument("a bool mask says nothing of its block size", hint="pass block_size=")
    described = _tensor.describe(mask[None] if mask.ndim == 3 else mask, "mask")
    return {"block_size": int(block_size), "dense": described.request()}


def _plan(
    position: str | Position | PositionPlan,
    head_dim: int,
    length: int,
    inv_freq: Sequence[float] | npt.NDArray[Any] | None,
    rope_theta: float | None,
    engine: Engine,
) -> PositionPlan:
    if isinstance(position, PositionPlan):
        return position
    if isinstance(position, str):
        position = position_strategy(position)
    given = None if inv_freq is None else np.asarray(inv_freq, dtype=np.float64).tobytes()
    key = (engine.handle, position.strategy, str(position.params), head_dim, length, given, rope_theta)
    plan = _plans.get(key)
    if plan is None:
        plan = position.plan(head_dim=head_dim, length=length, inv_freq=inv_freq, rope_theta=rope_theta, engine=engine)
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan


# A model asks for the same plan in each of its layers, and finding it in Go takes longer than a small call.
_plans: dict[tuple[Any, ...], PositionPlan] = {}
MOST_PLANS = 64


def _check_device(device: str | None, query: _tensor.Array) -> None:
    if device is not None and device != query.device:
        raise InvalidArgument(
            f"device {device!r} for tensors on {query.device!r}", hint=f"move them there first, or leave device= out"
        )
