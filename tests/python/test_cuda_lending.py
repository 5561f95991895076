"""How device memory is lent to plugins, with a driver that is made up: no GPU is needed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trivium
from trivium import _again, _bridge, _cuda, _sent
from trivium._tensor import Array

UUID = "12345678-1234-1234-1234-123456789abc"


class Driver:
    """Blocks of 4,096 bytes that can be made and freed; those from 1 << 40 on cannot be exported."""

    def __init__(self) -> None:
        self.blocks: dict[int, _cuda.Block] = {}
        self.ids = 0
        self.log: list[tuple[Any, ...]] = []
        self.numbers: dict[int, int] = {}
        self.exported = 0

    def make(self, base: int, size: int = 4096) -> int:
        self.ids += 1
        self.blocks[base] = _cuda.Block(base, size, self.ids)
        return base

    def block(self, address: int) -> _cuda.Block | None:
        return next((b for b in self.blocks.values() if b.base <= address < b.base + b.size), None)

    def handle(self, ordinal: int, base: int) -> bytes | None:
        self.exported += 1
        return None if base >= 1 << 40 else bytes([self.blocks[base].id]) * 64

    def allocate(self, ordinal: int, size: int) -> int:
        return self.make((1 << 30) + (self.ids << 24), size)

    def free(self, ordinal: int, address: int) -> None:
        del self.blocks[address]

    def clear(self, ordinal: int, address: int, size: int) -> None:
        self.log.append(("clear", address, size))

    def fill(self, ordinal: int, address: int, byte: int, size: int, stream: int) -> None:
        self.log.append(("fill", stream, address, byte, size))

    def copy(self, ordinal: int, to: int, source: int, size: int, stream: int) -> None:
        self.log.append(("copy", to, source, size))

    def write(self, ordinal: int, stream: int, address: int, value: int) -> None:
        self.numbers[address] = value
        self.log.append(("write", stream, address, value))

    def wait(self, ordinal: int, stream: int, address: int, value: int) -> None:
        self.log.append(("wait", stream, address, value))

    def read(self, ordinal: int, stream: int, address: int) -> int:
        return self.numbers.get(address, 0)


class Go:
    """What answers for the Go library: the jobs that were sent to a plugin, and what was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.lane = True  # whether jobs are sent at once
        self.jobs: dict[int, Any] = {}  # by number: the request
        self.answers: dict[int, Any] = {}  # by the order of calls, by default "{}"
        self.log: list[tuple[str, int]] = []
        self.real = _bridge.call

    def __call__(self, name: str, *arguments: Any) -> Any:
        if name == "AwaitLoss":  # the thread of other tests, if they ran on a GPU
            return self.real(name, *arguments)
        if name == "Submit":
            self.jobs[arguments[0]] = arguments[2]
            self.log.append(("sent", len(self.jobs)))
            return int(self.lane)
        if name == "Wait":
            self.log.append(("answered", list(self.jobs).index(arguments[0]) + 1))
            answer = self.answers.get(list(self.jobs).index(arguments[0]) + 1, "{}")
            if isinstance(answer, BaseException):
                raise answer
            return answer
        self.told.append((name, json.loads(arguments[0])))


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Any:
    _sent.settle()  # a call of other tests, if they ran on a GPU
    made = Go()
    monkeypatch.setattr(_bridge, "call", made)
    yield made
    _sent.latest = None


@pytest.fixture
def lender(go: Go) -> Any:
    streams = iter((99, 98))
    now = SimpleNamespace(cuda_stream=7)
    cuda = SimpleNamespace(
        get_device_properties=lambda _: SimpleNamespace(uuid=UUID),
        Stream=lambda _: SimpleNamespace(cuda_stream=next(streams)),
        current_stream=lambda _: now,
        is_current_stream_capturing=lambda: False,
    )
    driver: Any = Driver()
    made = _cuda.Lender(SimpleNamespace(cuda=cuda), driver, _cuda.Shared(driver), 0)
    made.told = go.told  # type: ignore[attr-defined]
    made.now = now  # type: ignore[attr-defined]
    return made


def array(address: int, elements: int = 64) -> Array:
    owner = SimpleNamespace(element_size=lambda: 2)
    return Array(address, "bfloat16", [elements], [1], "torch", owner, "cuda:0")


def told(lender: Any, name: str) -> list[Any]:
    return [what for which, what in lender.told if which == name]


def test_a_block_is_exported_once(lender: Any) -> None:
    base = lender.driver.make(0x10000)
    for _ in range(5):
        lease = lender.lend([("query", array(base)), ("key", array(base + 128))], [("output", array(base + 256))])
        lease.order()
        lease.finish()
    shared = [b for b in told(lender, "ShareDevice") if b["base"] == base]
    assert len(shared) == 1 and shared[0]["size"] == 4096 and shared[0]["device"] == "cuda:0"
    assert lender.driver.exported == 2  # the block, and the memory of fences
    assert len(lender.all) == 1  # the fences are used again


def test_fences_grow_and_order(lender: Any) -> None:
    base = lender.driver.make(0x10000)
    values = []
    for _ in range(3):
        lease = lender.lend([("query", array(base))], [])
        request = lease.order()
        assert lender.driver.log[-1] == ("write", 7, request["ready"]["address"], request["ready"]["value"])
        lease.finish()
        assert lender.driver.log[-1] == ("wait", 7, request["done"]["address"], request["done"]["value"])
        values.append(request["done"]["value"])
    assert values == [1, 2, 3]
    assert abs(request["ready"]["address"] - request["done"]["address"]) == 128


def test_freed_memory_is_forgotten(lender: Any) -> None:
    base, other = lender.driver.make(0x10000), lender.driver.make(0x20000)
    lender.lend([("query", array(base)), ("key", array(other))], [])
    lender.driver.free(0, base)
    lender.driver.make(base)  # the same address, another block
    lender.lend([("query", array(base))], [])
    assert told(lender, "ForgetDevice") == [[base]]
    assert len([b for b in told(lender, "ShareDevice") if b["base"] == base]) == 2
    lender.driver.free(0, other)
    for _ in range(_cuda.SWEEP_CALLS):
        lender.lend([("query", array(base))], [])
    assert told(lender, "ForgetDevice")[1:] == [[other]]
    with pytest.raises(trivium.DeviceUnavailable, match="no memory"):
        lender.lend([("query", array(other))], [])


def test_memory_that_cannot_be_exported_is_copied(lender: Any, caplog: pytest.LogCaptureFixture) -> None:
    base = lender.driver.make(1 << 40)
    for _ in range(3):
        query, output = array(base), array(base + 512)
        lease = lender.lend([("query", query)], [("output", output)])
        stage = next(iter(lender.stages.values()))
        assert query.address == stage.base and output.address == stage.base + 256
        assert ("copy", stage.base, base, 128) in lender.driver.log
        lease.order()
        lease.finish()
        assert lender.driver.log[-1] == ("copy", base + 512, stage.base + 256, 128)
    assert "query, output" in lease.note and lender.copied == 3 * 256
    assert sum("cannot share" in r.message for r in caplog.records) == 1
    assert lender.driver.exported == 3  # asked once of the block; the stage; the fences


def test_streams_go_on_when_a_process_ends(lender: Any) -> None:
    base = lender.driver.make(0x10000)
    returned, running = (lender.lend([("query", array(base))], []) for _ in range(2))
    for lease in (returned, running):
        lease.order()
    returned.finish()
    lender.lose()
    for lease in (returned, running):
        assert ("write", 99, lease.fences.done, lease.fences.value) in lender.driver.log
    assert returned.fences is not running.fences
    with pytest.raises(trivium.PluginCrashed, match="void"):
        running.finish()
    lender.void = True
    with pytest.raises(trivium.PluginCrashed, match="void"):  # told once
        lender.lend([("query", array(base))], [])
    lease = lender.lend([("query", array(base))], [])
    assert not lease.fences.lost and lease.fences not in (returned.fences, running.fences)


def test_a_process_that_ends_idle_is_not_told_of(lender: Any) -> None:
    base = lender.driver.make(0x10000)
    lease = lender.lend([("query", array(base))], [])
    lease.order()
    lease.finish()
    lender.driver.numbers[lease.fences.done] = lease.fences.value  # the plugin's work is done
    lender.lose()
    assert not lender.void
    lender.lend([("query", array(base))], [])


def test_nvrtc_is_found_among_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13", "cu13/lib/libnvrtc-builtins.so.13.0"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.delenv(_cuda.NVRTC, raising=False)
    newest = tmp_path / "cu13" / "lib" / "libnvrtc.so.13"
    assert _cuda.find_nvrtc() == newest and _cuda.environment() == [f"{_cuda.NVRTC}={newest}"]
    monkeypatch.setenv(_cuda.NVRTC, "/mine")
    assert _cuda.environment() == []
    monkeypatch.delenv(_cuda.NVRTC)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _cuda.find_nvrtc() is None and _cuda.environment() == []


def attend(lender: Any, base: int, likeness: Any = "one", **request: Any) -> _cuda.Lease:
    """A call as trivium.attention makes it, with an output of 128 bytes."""
    lease = lender.lend([("query", array(base))], [("output", array(base + 1024))])
    lease.answer = lease.run("attend", request, None, likeness)
    return lease


def test_a_call_like_one_that_succeeded_is_not_waited_for(lender: Any, go: Go) -> None:
    base = lender.driver.make(0x10000)
    answers = [attend(lender, base).answer for _ in range(4)]
    assert answers == [{}, None, None, None]
    # Each is answered before the next is sent, so that the plugin's queue has them in the order of the stream.
    assert go.log == [("sent", 1), ("answered", 1), ("sent", 2), ("answered", 2), ("sent", 3), ("answered", 3), ("sent", 4)]
    assert [name for name, *_ in lender.driver.log if name in ("write", "wait")] == ["write", "wait"] * 4
    assert attend(lender, base, "another").answer == {}
    assert attend(lender, base, None).answer == {} and attend(lender, base, None).answer == {}
    assert _sent.latest is None
    assert len(lender.all) == 1


def test_a_call_that_is_not_sent_at_once_is_waited_for(lender: Any, go: Go) -> None:
    base = lender.driver.make(0x10000)
    attend(lender, base)
    go.lane = False
    assert attend(lender, base).answer == {}
    assert go.log[-1] == ("answered", 2) and _sent.latest is None


def test_what_fails_unwatched_is_nan_and_told_once(lender: Any, go: Go) -> None:
    base = lender.driver.make(0x10000)
    attend(lender, base)
    go.answers[2] = trivium.OutOfMemory("no room", hint="less", plugin="p", strategy="attention.dense")
    lease = attend(lender, base)
    assert lease.answer is None
    value, done = lease.fences.value, lease.fences.done
    with pytest.raises(trivium.OutOfMemory, match="an earlier call on cuda:0 failed, and what it wrote is NaN: no room") as raised:
        attend(lender, base)
    assert raised.value.hint == "less" and raised.value.plugin == "p"
    # Behind the call before it, which may still be at work.
    assert lender.driver.log[-3:] == [("wait", 98, done, value - 1), ("fill", 98, base + 1024, 0xFF, 128), ("write", 98, done, value)]
    assert go.log[-1] == ("answered", 2)  # the third was not sent
    assert attend(lender, base).answer is None
    _sent.settle()
    assert lender.failure is None


def test_a_crash_unwatched_is_told_once(lender: Any, go: Go) -> None:
    base = lender.driver.make(0x10000)
    attend(lender, base)
    go.answers[2] = trivium.PluginCrashed("killed")
    lease = attend(lender, base)
    _sent.settle()
    lender.lose()  # of the watch
    assert ("fill", 99, base + 1024, 0xFF, 128) in lender.driver.log
    assert lender.driver.log[-1] == ("write", 99, lease.fences.done, lease.fences.value)
    with pytest.raises(trivium.PluginCrashed, match="killed"):
        lender.lend([("query", array(base))], [])
    later = attend(lender, base)
    assert later.fences is not lease.fences


def test_an_interrupt_leaves_nothing_unseen(lender: Any, go: Go) -> None:
    base = lender.driver.make(0x10000)
    attend(lender, base)
    attend(lender, base)
    go.answers[2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        attend(lender, base)
    assert _sent.latest is not None and len(go.jobs) == 2  # the third was not sent
    go.answers[2] = "{}"
    assert attend(lender, base).answer is None


def test_streams_have_fences_of_their_own(lender: Any) -> None:
    """A number that one stream is yet to write must not be overtaken by another's."""
    base = lender.driver.make(0x10000)
    first = attend(lender, base)
    lender.now.cuda_stream = 8
    second = attend(lender, base)
    lender.now.cuda_stream = 7
    third = attend(lender, base)
    assert first.fences is third.fences and first.fences is not second.fences


def test_memory_of_one_block_is_asked_for_once_a_call(lender: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = lender.driver.make(0x10000), lender.driver.make(0x20000)
    asked = []
    block = lender.driver.block
    monkeypatch.setattr(lender.driver, "block", lambda address: asked.append(address) or block(address))
    inputs = [("query", array(base)), ("key", array(base + 64)), ("value", array(other))]
    for _ in range(2):
        asked.clear()
        lender.lend(inputs, [("output", array(other + 2048))])
    assert asked == [base, other]


def test_a_call_told_by_its_addresses(lender: Any, go: Go) -> None:
    base = lender.driver.make(0x10000)
    lease = lender.lend_known([base, base + 64, base + 128], [(base + 1024, 128)])
    lease.repeat("5 -1")
    number, layer, ready, done, value = next(iter(go.jobs.values())).split()
    assert (number, layer, value) == ("5", "-1", "1")
    assert lender.driver.log[-2:] == [("write", 7, int(ready), 1), ("wait", 7, int(done), 1)]
    assert go.log == [("sent", 1)]  # and not waited for
    go.answers[1] = trivium.OutOfMemory("no room")
    with pytest.raises(trivium.OutOfMemory, match="an earlier call"):
        lender.lend_known([base], [(base + 1024, 128)]).repeat("6 -1")
    assert ("fill", 98, base + 1024, 0xFF, 128) in lender.driver.log
    assert lender.lend_known([lender.driver.make(1 << 40)], [(base, 128)]) is None  # it has to be copied


def test_what_a_known_call_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls have one key only when a plugin cannot tell them apart but by addresses and the layer."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)

    def key(q: Any, k: Any, v: Any, strategy: Any = "dense", position: Any = None, rows: Any = (0,), other: Any = (1,)) -> Any:
        return _again.key((q, k, v), strategy, position, rows, other)

    def make(*shape: int) -> Any:
        return torch.zeros(shape, dtype=torch.bfloat16)

    q, k = make(1, 4, 8, 64), make(1, 2, 8, 64)
    first = key(q, k, k)
    assert first is not None and first == key(q.clone(), k.clone(), make(1, 2, 8, 64))
    plan = trivium.position("string", train_length=8192).plan(head_dim=64, length=8, rope_theta=1e4)
    different = [
        key(make(1, 4, 9, 64), k, k), key(q, make(1, 2, 9, 64), k), key(q.half(), k, k), key(q.transpose(1, 2).contiguous().transpose(1, 2), k, k),
        key(q, k, k, "flexprefill"), key(q, k, k, trivium.attention("dense")), key(q, k, k, trivium.attention("dense", a=1)),
        key(q, k, k, position="string"), key(q, k, k, position=trivium.position("string", train_length=9)), key(q, k, k, position=plan),
        key(q, k, k, rows=(3,)), key(q, k, k, rows=([0],)), key(q, k, k, other=(2,)),
    ]  # fmt: skip
    assert None not in different and len({first, *different}) == 1 + len(different)
    assert key(q, k, k, "python.mine") is None  # it chooses anew
    assert key(q, k, k, rows=(np.zeros(1),)) is None and key(q, k, k, other=([],)) is None and key(q, k, k, position=3) is None
    assert key(q.to_sparse(), k, k) is None and key([1], k, k) is None
