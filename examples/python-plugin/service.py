"""The contract's services, for one strategy."""

from __future__ import annotations

import threading
import time

import grpc

import attention
import status_pb2
from memory import Memory
from trivium.v1 import attention_pb2, catalog_pb2, strategy_pb2


class CallError(Exception):
    """An error of one of the contract's kinds."""

    def __init__(self, kind: int, code: grpc.StatusCode, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.code, self.hint = kind, code, hint


def invalid(message: str, hint: str = "") -> CallError:
    """Make the error for a request that does not fit."""
    return CallError(strategy_pb2.ERROR_KIND_INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT, message, hint)


def unsupported(message: str) -> CallError:
    """Make the error for something that the strategy cannot do."""
    return CallError(strategy_pb2.ERROR_KIND_UNSUPPORTED, grpc.StatusCode.UNIMPLEMENTED, message)


class Calls:
    """Which calls run, so that the host can ask whether one has let go of its memory."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[int] = set()

    def run(self, id: int, do):
        with self._changed:
            self._running.add(id)
        try:
            return do()
        finally:
            with self._changed:
                self._running.discard(id)
                self._changed.notify_all()

    def settle(self, id: int, context: grpc.ServicerContext) -> None:
        with self._changed:
            while id in self._running and context.is_active():
                self._changed.wait(timeout=0.05)


class Service:
    """Answers the host."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.calls = memory, Calls()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Give what a gRPC server serves."""
        catalog = {
            "Describe": _method(self._describe, catalog_pb2.DescribeRequest),
            "Settle": _method(self._settle, catalog_pb2.SettleRequest),
        }
        attend = {
            "Select": _method(self._guarded(self._select), attention_pb2.SelectRequest),
            "Attend": _method(self._guarded(self._attend), attention_pb2.AttendRequest),
        }
        return [
            grpc.method_handlers_generic_handler("trivium.v1.CatalogService", catalog),
            grpc.method_handlers_generic_handler("trivium.v1.AttentionService", attend),
        ]

    def _guarded(self, do):
        """Record the call, and give errors the form in which they travel."""

        def handle(request, context: grpc.ServicerContext):
            try:
                return self.calls.run(request.call_id, lambda: do(request, context))
            except CallError as error:
                _abort(context, error)
            except Exception as error:
                kind = strategy_pb2.ERROR_KIND_INTERNAL
                _abort(context, CallError(kind, grpc.StatusCode.INTERNAL, repr(error), "this is a mistake in the plugin"))

        return handle

    def _describe(self, request, context):
        return catalog_pb2.DescribeResponse(strategies=[described()])

    def _settle(self, request, context):
        self.calls.settle(request.call_id, context)
        return catalog_pb2.SettleResponse()

    def _select(self, request, context):
        reason = "the rule is by token, not by tile"
        return attention_pb2.SelectResponse(selection=attention_pb2.Selection(reason=reason))

    def _attend(self, request, context):
        if request.strategy != attention.NAME:
            raise invalid(f"no strategy {request.strategy!r}")
        a = request.attention
        if not _plain(a.position):
            raise unsupported("a position plan: this strategy attends to queries and keys as they are")
        recent = _recent(a.params)
        began = time.perf_counter()
        q, k, v = (self.memory.array(ref) for ref in (a.query, a.key, a.value))
        out = self.memory.array(a.output, writable=True)
        lse = self.memory.array(a.lse, writable=True) if a.HasField("lse") else None

        def check() -> None:
            if not context.is_active():
                raise CallError(strategy_pb2.ERROR_KIND_CANCELLED, grpc.StatusCode.CANCELLED, "the call was cancelled")

        density = 0.0
        for b in range(q.shape[0]):
            density += attention.attend(
                q[b], k[b], v[b], out[b], None if lse is None else lse[b],
                offset=a.query_offset[b] if a.query_offset else 0,
                recent=k.shape[2] + q.shape[2] + (a.query_offset[b] if a.query_offset else 0) if a.force_dense else recent,
                scale=a.scale, causal=a.causal, window=a.window, softcap=a.softcap, sinks=list(a.sinks) or None, check=check,
            )  # fmt: skip
        took = 1e3 * (time.perf_counter() - began)
        report = attention_pb2.Report(
            strategy=f"attention.{attention.NAME}", backend="numpy", threads=1, density=density / q.shape[0],
            times=attention_pb2.Times(attend_ms=took),
        )  # fmt: skip
        return attention_pb2.AttendResponse(report=report)


def _method(handle, request) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(handle, request.FromString, lambda reply: reply.SerializeToString())


def _abort(context: grpc.ServicerContext, error: CallError) -> None:
    detail = strategy_pb2.ErrorDetail(kind=error.kind, message=str(error), hint=error.hint, strategy=f"attention.{attention.NAME}")
    status = status_pb2.Status(code=error.code.value[0], message=str(error))
    status.details.add().Pack(detail)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(error.code, str(error))


def _plain(plan) -> bool:
    if not plan.bands:
        return True
    return plan.attention_scale == 1 and len(plan.bands) == 1 and list(plan.inv_freq) == list(plan.applied_inv_freq) and all(
        r.scale == 1 and not (r.modulo or r.offset or r.limit) and r.group <= 1 for r in (plan.bands[0].query, plan.bands[0].key)
    )


def _recent(params) -> int:
    """Check the parameters: a host does so too, and a plugin trusts none."""
    for name in params:
        if name != "recent":
            raise invalid(f"unknown parameter {name!r}", "it takes recent")
    value = params["recent"] if "recent" in params else None
    recent = value.int_value if value is not None and value.WhichOneof("value") == "int_value" else 64
    if recent < 1:
        raise invalid(f"recent: {recent}: want [1, inf)")
    return recent


def described() -> strategy_pb2.StrategyInfo:
    """Give the description as a message."""
    info = {k: v for k, v in attention.INFO.items() if k not in ("kind", "parameters", "capabilities")}
    m = strategy_pb2.StrategyInfo(kind=strategy_pb2.STRATEGY_KIND_ATTENTION, capabilities=attention.INFO["capabilities"], **info)
    for p in attention.INFO["parameters"]:
        m.parameters.add(
            name=p["name"], type=strategy_pb2.PARAMETER_TYPE_INT, default=strategy_pb2.Value(int_value=p["default"]),
            unit=p["unit"], doc=p["doc"], min=p["min"],
        )  # fmt: skip
    return m
