"""Tensors on NVIDIA GPUs: lent to plugin processes where they lie, in the order of the caller's stream.

The process that owns device memory must export it, and that is this one. A call costs no
wait: the caller's stream writes a number into shared device memory when the inputs are there,
the plugin's queue waits for that number, and the caller's stream waits for another number that
the plugin's queue writes behind its work. When a plugin process ends, its numbers are written here.

A call like one that succeeded is not even answered before it returns. Should it fail, its outputs
are filled with NaN, its stream goes on, and the next call on the device raises its error.
"""

from __future__ import annotations

import atexit
import base64
import ctypes
import importlib.util
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from trivium import _bridge, _sent
from trivium._errors import DeviceUnavailable, InternalError, PluginCrashed, TriviumError, Unsupported
from trivium._tensor import Array

log = logging.getLogger("trivium")

HANDLE_SIZE = 64
# CUpointer_attribute
BUFFER_ID, RANGE_START, RANGE_SIZE = 7, 11, 12
# How many calls may pass before memory that was freed is looked for.
SWEEP_CALLS = 256
# Alignment of what is copied, in bytes.
STAGE_ALIGN = 256
# How many kinds of calls are remembered as such that a plugin takes.
MOST_KNOWN = 1024
# Of the memory of fences: a pair has a line of 128 bytes for each of its numbers.
FENCE_BYTES, PAIR_BYTES = 1 << 16, 256

NVRTC = "TRIVIUM_NVRTC"


def environment() -> list[str]:
    """What plugin processes are told of this Python: where its libnvrtc is."""
    if os.environ.get(NVRTC):
        return []
    found = find_nvrtc()
    return [f"{NVRTC}={found}"] if found else []


def find_nvrtc() -> Path | None:
    """Find the newest libnvrtc among the installed packages; torch brings one."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return None
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*") if "builtins" not in path.name]
    return max(found, key=_library_version, default=None)


def _library_version(path: Path) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", path.name)]


class Block:
    """A block of device memory as the driver knows it."""

    __slots__ = ("base", "id", "size")

    def __init__(self, base: int, size: int, id: int) -> None:
        self.base = base
        self.size = size
        self.id = id


class Driver:
    """The few functions of libcuda that exporting needs; torch has loaded it already."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DeviceUnavailable(f"the CUDA driver is not there: {error}") from None
        self._attributes = (ctypes.c_int * 3)(RANGE_START, RANGE_SIZE, BUFFER_ID)
        self._values = (ctypes.c_uint64 * 3)()
        at = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * 3)(at, at + 8, at + 16)
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._popped = ctypes.byref(ctypes.c_void_p())  # nobody looks at it
        # Of the functions of every call, for which ctypes need not look at what it is given.
        self.library.cuPointerGetAttributes.argtypes = (ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
        for name in ("cuStreamWriteValue32_v2", "cuStreamWaitValue32_v2"):
            getattr(self.library, name).argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint)

    def check(self, code: int, call: str) -> None:
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            raise InternalError(f"{call}: {text.value.decode() if text.value else 'error'} ({code})")

    def block(self, address: int) -> Block | None:
        """The block that an address lies in; None when it is not device memory any more. One thread at a time."""
        if self.library.cuPointerGetAttributes(3, self._attributes, self._pointers, address):
            return None
        base, size, id = self._values
        return Block(base, size, id) if base else None

    def handle(self, ordinal: int, base: int) -> bytes | None:
        """The handle by which other processes open a block; None when it cannot be exported."""
        exported = (ctypes.c_char * HANDLE_SIZE)()
        with self.context(ordinal):
            code = self.library.cuIpcGetMemHandle(exported, ctypes.c_uint64(base))
        return None if code else bytes(exported)

    def allocate(self, ordinal: int, size: int) -> int:
        address = ctypes.c_uint64()
        with self.context(ordinal):
            self.check(self.library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)), "cuMemAlloc")
        return address.value

    def free(self, ordinal: int, address: int) -> None:
        with self.context(ordinal):
            self.check(self.library.cuMemFree_v2(ctypes.c_uint64(address)), "cuMemFree")

    def copy(self, ordinal: int, to: int, source: int, size: int, stream: int) -> None:
        with self.context(ordinal):
            code = self.library.cuMemcpyDtoDAsync_v2(
                ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(size), ctypes.c_void_p(stream)
            )
        self.check(code, "cuMemcpyDtoDAsync")

    def fill(self, ordinal: int, address: int, byte: int, size: int, stream: int) -> None:
        with self.context(ordinal):
            code = self.library.cuMemsetD8Async(
                ctypes.c_uint64(address), ctypes.c_ubyte(byte), ctypes.c_size_t(size), ctypes.c_void_p(stream)
            )
        self.check(code, "cuMemsetD8Async")

    def clear(self, ordinal: int, address: int, size: int) -> None:
        with self.context(ordinal):
            code = self.library.cuMemsetD8_v2(ctypes.c_uint64(address), ctypes.c_ubyte(0), ctypes.c_size_t(size))
        self.check(code, "cuMemsetD8")

    def write(self, ordinal: int, stream: int, address: int, value: int) -> None:
        """Write a number behind the work of a stream."""
        self._order("cuStreamWriteValue32", self.library.cuStreamWriteValue32_v2, ordinal, stream, address, value)

    def wait(self, ordinal: int, stream: int, address: int, value: int) -> None:
        """Let a stream wait until a number is at least this."""
        self._order("cuStreamWaitValue32", self.library.cuStreamWaitValue32_v2, ordinal, stream, address, value)

    def _order(self, name: str, function: Any, ordinal: int, stream: int, address: int, value: int) -> None:
        # As in a with block of context(), in a third of its time: this is part of every call.
        context = self._contexts.get(ordinal) or self.context(ordinal).context
        self.check(self.library.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
        code = function(stream, address, value, 0)
        self.library.cuCtxPopCurrent_v2(self._popped)
        self.check(code, name)

    def read(self, ordinal: int, stream: int, address: int) -> int:
        """Read a number behind the work of a stream."""
        value = ctypes.c_uint32()
        with self.context(ordinal):
            code = self.library.cuMemcpyDtoHAsync_v2(
                ctypes.byref(value), ctypes.c_uint64(address), ctypes.c_size_t(4), ctypes.c_void_p(stream)
            )
            self.check(code or self.library.cuStreamSynchronize(ctypes.c_void_p(stream)), "cuMemcpyDtoHAsync")
        return value.value

    def context(self, ordinal: int) -> _Context:
        """A ``with`` block in which the device's primary context is current."""
        if ordinal not in self._contexts:
            context = ctypes.c_void_p()
            self.check(self.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal), "cuDevicePrimaryCtxRetain")
            self._contexts[ordinal] = context
        return _Context(self, self._contexts[ordinal])


class _Context:
    def __init__(self, driver: Driver, context: ctypes.c_void_p) -> None:
        self.driver = driver
        self.context = context

    def __enter__(self) -> None:
        self.driver.check(self.driver.library.cuCtxPushCurrent_v2(self.context), "cuCtxPushCurrent")

    def __exit__(self, *_: Any) -> None:
        self.driver.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


class Shared:
    """The blocks that plugins may open. One that was freed is forgotten when it is noticed.

    The driver says of an address which block it lies in, and tells two blocks apart that had
    the same address one after another. So what was exported is known for certain at each call.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.known: dict[int, Block] = {}  # exported, by base
        self.refused: dict[int, int] = {}  # cannot be exported: id by base
        self.calls = 0

    def find(self, device: str, ordinal: int, uuid: bytes, address: int) -> Block | None:
        """The exported block of an address, None when its memory cannot be exported."""
        block = self.driver.block(address)
        if block is None:
            raise DeviceUnavailable(f"no memory of {device} at {address:#x}")
        known = self.known.get(block.base)
        if known is not None and known.id == block.id:
            return known
        if self.refused.get(block.base) == block.id:
            return None
        self.sweep()
        handle = self.driver.handle(ordinal, block.base)
        if handle is None:
            self.refused[block.base] = block.id
            return None
        self.share(device, uuid, block, handle)
        return block

    def share(self, device: str, uuid: bytes, block: Block, handle: bytes) -> None:
        self.known[block.base] = block
        described = {"device": device, "uuid": _text(uuid), "base": block.base, "size": block.size, "handle": _text(handle)}
        _bridge.call("ShareDevice", json.dumps(described))

    def forget(self, bases: list[int]) -> None:
        if not bases:
            return
        for base in bases:
            del self.known[base]
        _bridge.call("ForgetDevice", json.dumps(bases))

    def sweep(self) -> None:
        """Let plugins go of blocks that were freed: until then their memory is not free."""
        self.forget([base for base, block in self.known.items() if not self.alive(block)])

    def alive(self, block: Block) -> bool:
        now = self.driver.block(block.base)
        return now is not None and now.base == block.base and now.id == block.id

    def count(self) -> None:
        self.calls += 1
        if self.calls % SWEEP_CALLS == 0:
            self.sweep()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class Stage:
    """Memory that can be exported, for tensors whose own cannot. One for each stream, whose order keeps calls apart."""

    def __init__(self, owner: Lender, stream: int) -> None:
        self.owner = owner
        self.stream = stream
        self.base = 0
        self.size = 0

    def reserve(self, size: int) -> None:
        if size <= self.size:
            return
        shared, driver, ordinal = self.owner.shared, self.owner.driver, self.owner.ordinal
        if self.base:
            shared.forget([self.base])
            driver.free(ordinal, self.base)  # waits for what uses it
            self.base = self.size = 0
        size = 1 << (size - 1).bit_length()
        self.base = driver.allocate(ordinal, size)
        self.size = size
        if shared.find(self.owner.device, ordinal, self.owner.uuid, self.base) is None:
            raise DeviceUnavailable(f"memory of {self.owner.device} cannot be exported to other processes")


class Fences:
    """The two numbers of a call, used again and again by one stream with values that grow."""

    __slots__ = ("done", "lost", "outputs", "ready", "value")

    def __init__(self, ready: int, done: int) -> None:
        self.ready = ready
        self.done = done
        self.value = 0
        self.lost = False  # with the process that was to write the second
        # What the call writes: address and bytes. Set once the stream waits for it, since nobody else uses it until then.
        self.outputs: list[tuple[int, int]] = []


class Lease:
    """Tensors lent for one call."""

    def __init__(
        self,
        owner: Lender,
        stream: int,
        fences: Fences,
        outputs: list[tuple[int, int]],
        back: list[tuple[int, int, int]],
        note: str,
    ) -> None:
        self.owner = owner
        self.stream = stream
        self.fences = fences
        self.outputs = outputs
        self.back = back
        self.note = note

    def run(self, operation: str, request: dict[str, Any], timeout: float | None, likeness: Hashable = None) -> Any:
        """Run an operation on what was lent and give its result.

        Parameters
        ----------
        likeness : hashable, optional
            What a plugin could refuse of the call. When a call with the same was not refused, this
            one is sent and not waited for: the result is None. None: always wait.
        """
        with _sent.turn:
            request.update(self._next())
            job = _bridge.Job(operation, request, timeout)
            if self._start(job, likeness in self.owner.known):
                return None
        result = self._wait(job)
        if likeness is not None:
            if len(self.owner.known) >= MOST_KNOWN:
                self.owner.known.clear()
            self.owner.known.add(likeness)
        return result

    def repeat(self, text: str) -> None:
        """Attend as in a call that succeeded: text is what differs, without fences. It is not waited for."""
        with _sent.turn:
            self._next()
            fences = self.fences
            job = _bridge.Job("again", {}, None, f"{text} {fences.ready} {fences.done} {fences.value}")
            if self._start(job, True):
                return
        self._wait(job)

    def _next(self) -> dict[str, Any]:
        """Wait until the plugin has taken the call before this one, and order this one behind it."""
        _sent.settle()
        self.owner.check()
        return self.order()

    def _wait(self, job: _bridge.Job) -> Any:
        try:
            result = job.wait()
        except TriviumError:
            raise
        except BaseException:
            job.abandon()
            raise
        self.finish()  # after an error nothing is under way, and the fences are not used again
        return result

    def _start(self, job: _bridge.Job, known: bool) -> bool:
        """Start a call; True when it need not be waited for."""
        try:
            if not job.start() or not known:
                return False
            job.request = {}  # the stream keeps its tensors from being used for anything else
            _sent.latest = _sent.Sent(job, self)  # before the stream waits, so that somebody sees to it
        except TriviumError:
            raise
        except BaseException:
            job.abandon()
            raise
        try:
            self.finish()
        except PluginCrashed:
            _sent.latest = None
            job.abandon()
            raise
        return True

    def order(self) -> dict[str, Any]:
        """What a request says of its order: what its work waits for, and what waits for it."""
        owner, fences = self.owner, self.fences
        fences.value = (fences.value + 1) & 0xFFFFFFFF
        fences.outputs = []
        owner.driver.write(owner.ordinal, self.stream, fences.ready, fences.value)
        return {
            "ready": {"device": owner.device, "address": fences.ready, "value": fences.value},
            "done": {"device": owner.device, "address": fences.done, "value": fences.value},
        }

    def finish(self) -> None:
        """Let the caller's stream wait for the plugin's work; the caller does not."""
        owner, fences = self.owner, self.fences
        with _lock:
            if fences.lost:
                owner.void = False
                raise PluginCrashed(LOST, hint="the next call starts a new one")
            owner.driver.wait(owner.ordinal, self.stream, fences.done, fences.value)
            fences.outputs = self.outputs
            owner.free.setdefault(self.stream, []).append(fences)
        for address, staged, size in self.back:
            owner.driver.copy(owner.ordinal, address, staged, size, self.stream)

    def fail(self, error: TriviumError) -> None:
        """Note that a call failed whose stream waits, and let the stream go on."""
        owner, fences = self.owner, self.fences
        with _lock:
            if isinstance(error, PluginCrashed):
                owner.lose()  # the watch would, a moment later, and tell of it once more
                owner.void = False
            if not fences.lost:
                stream = owner.failed.cuda_stream
                owner.driver.wait(owner.ordinal, stream, fences.done, (fences.value - 1) & 0xFFFFFFFF)  # of the call before
                owner.release(fences, stream)
                owner.failures += 1
            owner.failure = error


class Lender:
    """Lends tensors of one device."""

    def __init__(self, torch: Any, driver: Driver, shared: Shared, ordinal: int) -> None:
        self.torch = torch
        self.driver = driver
        self.shared = shared
        self.ordinal = ordinal
        self.device = f"cuda:{ordinal}"
        self.uuid = _uuid(torch, ordinal)
        self.free: dict[int, list[Fences]] = {}  # of calls that have returned, by stream
        self.all: list[Fences] = []
        self.room: list[tuple[int, int]] = []  # addresses for further fences
        self.side = torch.cuda.Stream(ordinal)  # on which nothing ever waits
        self.failed = torch.cuda.Stream(ordinal)  # ends calls that failed, behind those before them
        self.failures = 0
        self.void = False  # work was lost, and nobody was told
        self.failure: TriviumError | None = None  # of a call that was not waited for, of which nobody was told
        self.known: set[Hashable] = set()  # what calls were like that a plugin took
        self.stages: dict[int, Stage] = {}
        self.copied = 0

    def lend(self, inputs: list[tuple[str, Array]], outputs: list[tuple[str, Array]]) -> Lease:
        """Make tensors visible to plugins, by a copy on the device where there is no other way."""
        stream = self._open_stream()
        with _lock:
            self.shared.count()
            homeless = self._homeless(inputs, outputs)
            back, note = self._stage(homeless, stream) if homeless else ([], "")
            written = [(array.address, array.span()) for _, array in outputs]
            return Lease(self, stream, self._fences(stream), written, back, note)

    def lend_known(self, inputs: list[int], written: list[tuple[int, int]]) -> Lease | None:
        """Lend tensors by their addresses, and the bytes of those that are written; None when one has to be copied."""
        stream = self._open_stream()
        with _lock:
            self.shared.count()
            found: list[Block] = []
            for address in (*inputs, *(address for address, _ in written)):
                if not self._has_home(found, address):
                    return None
            return Lease(self, stream, self._fences(stream), written, [], "")

    def _open_stream(self) -> int:
        """The caller's stream, when calls on it may go on."""
        stream: int = self.torch.cuda.current_stream(self.ordinal).cuda_stream
        if self.torch.cuda.is_current_stream_capturing():
            raise Unsupported(CAPTURING, hint="call it outside, or capture around it")
        self.check()
        return stream

    def check(self) -> None:
        """Raise what is to be told of calls that have returned."""
        if self.failure is None and not self.void:
            return
        with _lock:
            failure, void = self.failure, self.void
            self.failure, self.void = None, False
        if failure is not None:
            text = f"{FAILED % self.device}: {failure.message}"
            raise type(failure)(text, hint=failure.hint, plugin=failure.plugin, strategy=failure.strategy) from failure
        if void:
            raise PluginCrashed(LOST, hint="the next call starts a new one; compute anew what depends on them")

    def _homeless(self, inputs: list[tuple[str, Array]], outputs: list[tuple[str, Array]]) -> list[tuple[str, Array, bool]]:
        """The tensors whose memory cannot be exported, and whether they are inputs."""
        found: list[Block] = []  # that lived a moment ago, and are held by tensors of this call
        homeless = []
        for arrays, inside in ((inputs, True), (outputs, False)):
            for name, array in arrays:
                if not self._has_home(found, array.address):
                    homeless.append((name, array, inside))
        return homeless

    def _has_home(self, found: list[Block], address: int) -> bool:
        """Whether an address lies in memory that can be exported: in a block of `found`, or in one that is added to it."""
        if any(block.base <= address < block.base + block.size for block in found):
            return True
        block = self.shared.find(self.device, self.ordinal, self.uuid, address)
        if block is None:
            return False
        found.append(block)
        return True

    def _fences(self, stream: int) -> Fences:
        free = self.free.get(stream)
        if free:
            return free.pop()
        if not self.room:
            base = self.driver.allocate(self.ordinal, FENCE_BYTES)
            self.driver.clear(self.ordinal, base, FENCE_BYTES)
            if self.shared.find(self.device, self.ordinal, self.uuid, base) is None:
                raise DeviceUnavailable(f"memory of {self.device} cannot be exported to other processes")
            self.room = [(at, at + PAIR_BYTES // 2) for at in range(base, base + FENCE_BYTES, PAIR_BYTES)]
        fences = Fences(*self.room.pop())
        self.all.append(fences)
        return fences

    def lose(self) -> None:
        """Free the streams that wait for work of a process that ended: it would never end.

        Its fences are not used again. A call that has not returned fails by itself; of
        one that has, nobody would be told.
        """
        lost, returned = self.all, {id(fences) for free in self.free.values() for fences in free}
        self.all, self.free = [], {}
        side, waiting = self.side.cuda_stream, []
        for fences in lost:
            fences.lost = True
            if (self.driver.read(self.ordinal, side, fences.done) - fences.value) & 0x80000000:
                self.void = self.void or id(fences) in returned
                self.release(fences, side)
                waiting.append(fences)
        if self.failures and waiting:
            # What the other stream had to write comes now that it need not wait, and may be a smaller number.
            self.driver.read(self.ordinal, self.failed.cuda_stream, waiting[0].done)
            for fences in waiting:
                self.driver.write(self.ordinal, side, fences.done, fences.value)

    def release(self, fences: Fences, stream: int) -> None:
        """Let a stream go on whose work will not be done: what it waits for becomes NaN."""
        for address, size in fences.outputs:
            self.driver.fill(self.ordinal, address, NAN_BYTE, size, stream)
        self.driver.write(self.ordinal, stream, fences.done, fences.value)

    def _stage(self, homeless: list[tuple[str, Array, bool]], stream: int) -> tuple[list[tuple[int, int, int]], str]:
        sizes = [array.span() for _, array, _ in homeless]
        stage = self.stages.setdefault(stream, Stage(self, stream))
        stage.reserve(sum(-(-size // STAGE_ALIGN) * STAGE_ALIGN for size in sizes))
        back = []
        at = stage.base
        for (_, array, inside), size in zip(homeless, sizes, strict=True):
            if inside:
                self.driver.copy(self.ordinal, at, array.address, size, stream)
            else:
                back.append((array.address, at, size))
            array.address = at
            at += -(-size // STAGE_ALIGN) * STAGE_ALIGN
        if not self.copied:
            log.warning(
                "tensors on %s lie in memory that CUDA cannot share with other processes (expandable_segments, "
                "cudaMallocAsync): each call copies them on the device", self.device,
            )  # fmt: skip
        self.copied += sum(sizes)
        names = ", ".join(name for name, _, _ in homeless)
        return back, f"copied {sum(sizes)} bytes on the device: {names} in memory that cannot be shared with other processes"


def _uuid(torch: Any, ordinal: int) -> bytes:
    return bytes.fromhex(str(torch.cuda.get_device_properties(ordinal).uuid).replace("-", ""))


# Of which every floating-point number is NaN, whatever its size.
NAN_BYTE = 0xFF

CAPTURING = "attention inside the capture of a CUDA graph"
FAILED = "an earlier call on %s failed, and what it wrote is NaN"
LOST = "the plugin process ended with work under way on the device: what the calls before wrote is void"

_lock = threading.Lock()
_shared: Shared | None = None
_lenders: dict[str, Lender] = {}


def lender(device: str) -> Lender:
    """The lender of a device such as ``"cuda:0"``."""
    global _shared
    with _lock:
        found = _lenders.get(device)
        if found is None:
            if _shared is None:
                _shared = Shared(Driver())
                _Watch().start()
            found = _lenders[device] = Lender(sys.modules["torch"], _shared.driver, _shared, int(device.partition(":")[2]))
    return found


class _Watch(threading.Thread):
    """Notices the end of plugin processes, and of calls, also while every other thread waits for a device."""

    STEP = 500  # milliseconds

    def __init__(self) -> None:
        super().__init__(name="trivium-cuda", daemon=True)
        self.over = False
        atexit.register(self.stop)

    def run(self) -> None:
        seen = _bridge.call("AwaitLoss", 0, 0)
        while not self.over and not _bridge.forked():
            now = _bridge.call("AwaitLoss", seen, self.STEP)
            if now != seen:
                with _lock:
                    for lender in _lenders.values():
                        lender.lose()
                seen = now
            _sent.settle_unless_busy()

    def stop(self) -> None:
        self.over = True
        self.join(2)
        _sent.settle()  # or the engine would wait for it when it closes


def copied_bytes() -> int:
    """How much was copied on devices because its memory could not be exported."""
    return sum(lender.copied for lender in list(_lenders.values()))
