"""Tensors on NVIDIA GPUs: lent to plugin processes where they lie, in the order of the caller's stream.

The process that owns device memory must export it, and that is this one. A call costs no
wait: the caller's stream writes a number into shared device memory when the inputs are there,
the plugin's queue waits for that number, and the caller's stream waits for another number that
the plugin's queue writes behind its work. When a plugin process ends, its numbers are written here.
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
from bisect import bisect_right
from pathlib import Path
from typing import Any

from trivium import _bridge
from trivium._errors import DeviceUnavailable, InternalError, PluginCrashed, Unsupported
from trivium._tensor import Array

log = logging.getLogger("trivium")

HANDLE_SIZE = 64
# CUpointer_attribute
BUFFER_ID, RANGE_START, RANGE_SIZE = 7, 11, 12
# How many calls may pass before memory that was freed is looked for.
SWEEP_CALLS = 256
# Alignment of what is copied, in bytes.
STAGE_ALIGN = 256
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
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def check(self, code: int, call: str) -> None:
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            raise InternalError(f"{call}: {text.value.decode() if text.value else 'error'} ({code})")

    def block(self, address: int) -> Block | None:
        """The block that an address lies in; None when it is not device memory any more."""
        values = (ctypes.c_uint64 * 3)()
        at = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * 3)(at, at + 8, at + 16)
        code = self.library.cuPointerGetAttributes(3, self._attributes, pointers, ctypes.c_uint64(address))
        return None if code or not values[0] else Block(values[0], values[1], values[2])

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

    def clear(self, ordinal: int, address: int, size: int) -> None:
        with self.context(ordinal):
            code = self.library.cuMemsetD8_v2(ctypes.c_uint64(address), ctypes.c_ubyte(0), ctypes.c_size_t(size))
        self.check(code, "cuMemsetD8")

    def write(self, ordinal: int, stream: int, address: int, value: int) -> None:
        """Write a number behind the work of a stream."""
        with self.context(ordinal):
            code = self.library.cuStreamWriteValue32_v2(
                ctypes.c_void_p(stream), ctypes.c_uint64(address), ctypes.c_uint32(value), ctypes.c_uint(0)
            )
        self.check(code, "cuStreamWriteValue32")

    def wait(self, ordinal: int, stream: int, address: int, value: int) -> None:
        """Let a stream wait until a number is at least this."""
        with self.context(ordinal):
            code = self.library.cuStreamWaitValue32_v2(
                ctypes.c_void_p(stream), ctypes.c_uint64(address), ctypes.c_uint32(value), ctypes.c_uint(0)
            )
        self.check(code, "cuStreamWaitValue32")

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
    """The two numbers of a call, used again and again with values that grow."""

    def __init__(self, ready: int, done: int) -> None:
        self.ready = ready
        self.done = done
        self.value = 0
        self.lost = False  # with the process that was to write the second


class Lease:
    """Tensors lent for one call."""

    def __init__(self, owner: Lender, stream: Any, fences: Fences, back: list[tuple[int, int, int]], note: str) -> None:
        self.owner = owner
        self.stream = stream
        self.fences = fences
        self.back = back
        self.note = note

    def order(self, request: dict[str, Any]) -> None:
        """Say in a request what its work waits for, and what waits for it."""
        owner, fences = self.owner, self.fences
        fences.value = (fences.value + 1) & 0xFFFFFFFF
        owner.driver.write(owner.ordinal, self.stream.cuda_stream, fences.ready, fences.value)
        request["ready"] = {"device": owner.device, "address": fences.ready, "value": fences.value}
        request["done"] = {"device": owner.device, "address": fences.done, "value": fences.value}

    def finish(self) -> None:
        """Let the caller's stream wait for the plugin's work; the caller does not."""
        owner, stream = self.owner, self.stream.cuda_stream
        with _lock:
            if self.fences.lost:
                owner.void = False
                raise PluginCrashed(LOST, hint="the next call starts a new one")
            owner.driver.wait(owner.ordinal, stream, self.fences.done, self.fences.value)
            owner.free.append(self.fences)
        for address, staged, size in self.back:
            owner.driver.copy(owner.ordinal, address, staged, size, stream)


class Lender:
    """Lends tensors of one device."""

    def __init__(self, torch: Any, driver: Driver, shared: Shared, ordinal: int) -> None:
        self.torch = torch
        self.driver = driver
        self.shared = shared
        self.ordinal = ordinal
        self.device = f"cuda:{ordinal}"
        self.uuid = _uuid(torch, ordinal)
        self.free: list[Fences] = []  # of calls that have returned
        self.all: list[Fences] = []
        self.room: list[tuple[int, int]] = []  # addresses for further fences
        self.side = torch.cuda.Stream(ordinal)  # on which nothing ever waits
        self.void = False  # work was lost, and nobody was told
        self.stages: dict[int, Stage] = {}
        self.copied = 0

    def lend(self, inputs: list[tuple[str, Array]], outputs: list[tuple[str, Array]]) -> Lease:
        """Make tensors visible to plugins, by a copy on the device where there is no other way."""
        stream = self.torch.cuda.current_stream(self.ordinal)
        if self.torch.cuda.is_current_stream_capturing():
            raise Unsupported("attention inside the capture of a CUDA graph", hint="call it outside, or capture around it")
        with _lock:
            if self.void:
                self.void = False
                raise PluginCrashed(LOST, hint="the next call starts a new one; compute anew what depends on them")
            self.shared.count()
            homeless = [(name, array, inside) for arrays, inside in ((inputs, True), (outputs, False))
                        for name, array in arrays if self._home(array) is None]  # fmt: skip
            back, note = self._stage(homeless, stream.cuda_stream) if homeless else ([], "")
            fences = self._fences()
        return Lease(self, stream, fences, back, note)

    def _fences(self) -> Fences:
        if self.free:
            return self.free.pop()
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
        lost, returned = self.all, {id(fences) for fences in self.free}
        self.all, self.free = [], []
        for fences in lost:
            fences.lost = True
            reached = self.driver.read(self.ordinal, self.side.cuda_stream, fences.done)
            if (reached - fences.value) & 0x80000000:
                self.void = self.void or id(fences) in returned
                self.driver.write(self.ordinal, self.side.cuda_stream, fences.done, fences.value)

    def _home(self, array: Array) -> Block | None:
        return self.shared.find(self.device, self.ordinal, self.uuid, array.address)

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
    """Notices the end of plugin processes, also while every other thread waits for a device."""

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

    def stop(self) -> None:
        self.over = True
        self.join(2)


def copied_bytes() -> int:
    """How much was copied on devices because its memory could not be exported."""
    return sum(lender.copied for lender in list(_lenders.values()))
