"""The border to Go: jobs, deadlines, Ctrl-C, panics, forks, and that nothing is left behind."""

import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from trivium import _bridge, _tensor
from trivium._errors import Cancelled, DeadlineExceeded, InternalError, InvalidArgument


@pytest.fixture(autouse=True)
def no_job_is_left():
    yield
    for _ in range(100):
        _bridge._sweep()
        if _bridge.call("Jobs") == 0:
            break
        time.sleep(0.05)
    assert _bridge.call("Jobs") == 0
    assert not _bridge._lingering


def check(**request):
    return _bridge.run("bridge.check", request)


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1, 2.5, True, "é\0"]}, "x" * 1_000_000], ids=lambda v: repr(v)[:20])
def test_json_goes_there_and_back(value):
    assert check(echo=value) == value


def test_a_panic_is_an_error_and_the_process_lives(capfd):
    with pytest.raises(InternalError, match="E_INTERNAL: boom"):
        check(panic="boom")
    assert "check.go" in capfd.readouterr().err  # the stack is in the log
    assert check(echo=1) == 1


def test_a_deadline_ends_the_job():
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="timeout"):
        _bridge.run("bridge.check", {"sleep_ms": 10_000}, timeout=0.1)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_timeouts_that_are_none(timeout):
    with pytest.raises(InvalidArgument, match="timeout"):
        _bridge.run("bridge.check", {}, timeout=timeout)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: _bridge.run("no.such", {}), "no.such"),
        (lambda: _bridge.run("bridge.check", {"echo": object()}), "not JSON serializable"),
        (lambda: _bridge.call("Wait", -1, 0), "job -1 is unknown"),
        (lambda: _bridge.call("Wait", "one", 0), "Wait"),
        (lambda: _bridge.call("Wait", 2**70, 0), "Wait"),
        (lambda: _bridge.call("Empty", "float32\0", "[1]", 0, 0), "null"),
    ],
)
def test_bad_calls_are_invalid_arguments(call, text):
    with pytest.raises(InvalidArgument, match=text):
        call()


def interrupt_after(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    return time.monotonic() + seconds


def test_ctrl_c_ends_a_long_call():
    sent = interrupt_after(0.3)
    with pytest.raises(KeyboardInterrupt):
        check(sleep_ms=20_000)
    assert time.monotonic() - sent < 0.2
    assert _bridge.call("Jobs") == 0
    assert check(echo=1) == 1


def test_an_interrupted_job_keeps_its_memory_until_it_has_ended():
    x = np.zeros(4, np.float32)
    holders = sys.getrefcount(x)
    request = {"sleep_ms": 1_000, "deaf": True, "tensor": _tensor.describe(x, "x").request()}
    sent = interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        _bridge.run("bridge.check", request)
    assert time.monotonic() - sent < 0.2
    del request
    gc.collect()
    assert sys.getrefcount(x) > holders
    assert _bridge.call("Jobs") == 1
    time.sleep(1)
    check()
    gc.collect()
    assert sys.getrefcount(x) == holders


def test_a_second_ctrl_c_is_no_worse():
    interrupt_after(0.1)
    interrupt_after(0.14)
    with pytest.raises(KeyboardInterrupt):
        try:
            check(sleep_ms=1_000, deaf=True)
        except KeyboardInterrupt:
            time.sleep(1)
            raise


def test_progress_that_raises_cancels_the_job():
    said = []

    def tell(done, total):
        said.append((done, total))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _bridge.run("bridge.check", {"sleep_ms": 10_000, "progress": [1, 2]}, progress=tell)
    assert said == [(1, 2)]


def test_calls_of_many_threads_do_not_mix():
    results = {}

    def work(n):
        results[n] = [check(echo=[n, i]) for i in range(200)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {n: [[n, i] for i in range(200)] for n in range(8)}


def test_python_runs_while_go_works():
    ticks = 0
    worker = threading.Thread(target=lambda: check(sleep_ms=500))
    worker.start()
    while worker.is_alive():
        ticks += 1
        time.sleep(0.01)
    assert ticks > 10


def test_calls_do_not_leak():
    def calls(n):
        for _ in range(n):
            check(echo="0123456789" * 100)
            with pytest.raises(Cancelled):
                check(error="cancelled", message="m" * 1000)
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    calls(2_000)
    before = calls(2_000)
    assert calls(20_000) - before < 8 << 10  # kilobytes; 20 MB went through


def run_python(source, timeout=60):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_is_refused_and_ends():
    out = run_python(
        """
        import gc, os, sys
        from trivium import _bridge, _tensor
        from trivium._errors import ForkedProcessError
        x = _tensor.empty((1024,))
        held = _tensor.describe(_tensor.empty((2, 2), like="arrow"), "held")
        child = os.fork()
        if child == 0:
            x[:] = 1
            del x, held
            gc.collect()
            try:
                _bridge.run("bridge.check", {})
            except ForkedProcessError as error:
                assert "spawn" in error.hint
                sys.exit(7)
            sys.exit(1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), _bridge.run("bridge.check", {"echo": 1}))
        """
    )
    assert out.split() == ["7", "1"]


def test_a_spawned_child_works():
    out = run_python(
        """
        import multiprocessing as mp, sys
        sys.argv = [""]
        from trivium import _bridge
        _bridge.run("bridge.check", {})
        with mp.get_context("spawn").Pool(1) as pool:
            print(pool.apply(_bridge.run, ("bridge.check", {"echo": 5})))
        """
    )
    assert out.split() == ["5"]


def test_importing_the_bridge_changes_nothing_else():
    run_python(
        """
        import gc, os, signal, sys
        before = (os.getcwd(), list(gc.callbacks), signal.getsignal(signal.SIGINT), sys.getdlopenflags())
        from trivium import _bridge
        assert (os.getcwd(), list(gc.callbacks), signal.getsignal(signal.SIGINT), sys.getdlopenflags()) == before
        assert "torch" not in sys.modules and "pyarrow" not in sys.modules
        """
    )
