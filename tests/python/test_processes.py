"""Plugin processes that die, hang or are left behind; Ctrl-C; fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import trivium

KILLS = int(os.environ.get("TRIVIUM_KILLS", "5"))

# Long enough to be in the middle of it.
LONG = "q = np.ones((1, 8, 16384, 64), dtype=np.float32)"


def plugin() -> trivium.Plugin:
    return next(p for p in trivium.plugins() if p.kind == "attention")


def small() -> np.ndarray:
    q = np.ones((1, 2, 64, 16), dtype=np.float32)
    return trivium.attention(q, q, q, strategy="dense")


def test_killed_plugin_is_a_typed_error_and_the_next_call_works() -> None:
    want = small()
    q = np.ones((1, 8, 16384, 64), dtype=np.float32)
    late = []
    for _ in range(KILLS):
        victim = plugin().pid
        killed = []

        def kill(pid: int = victim, at: list[float] = killed) -> None:
            time.sleep(0.15)
            os.kill(pid, signal.SIGKILL)
            at.append(time.perf_counter())

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(trivium.PluginCrashed) as caught:
            trivium.attention(q, q, q, strategy="dense")
        late.append(time.perf_counter() - killed[0])
        thread.join()
        assert caught.value.plugin and caught.value.hint
        np.testing.assert_array_equal(small(), want)
    print(f"seconds from kill to error: median {np.median(late):.4f}, slowest of {KILLS} {max(late):.4f}")
    assert max(late) < 2


def test_deadline() -> None:
    q = np.ones((1, 8, 16384, 64), dtype=np.float32)
    began = time.perf_counter()
    with pytest.raises(trivium.DeadlineExceeded):
        trivium.attention(q, q, q, strategy="dense", timeout=0.1)
    assert time.perf_counter() - began < 5
    assert small().shape == (1, 2, 64, 16)


INTERRUPTED = f"""
import threading, time, signal, os, sys
import numpy as np, trivium
{LONG}
trivium.attention(q[:, :, :64], q[:, :, :64], q[:, :, :64], strategy="dense")
sent = []
def interrupt():
    time.sleep(0.3)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    trivium.attention(q, q, q, strategy="dense")
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
    trivium.attention(q[:, :, :64], q[:, :, :64], q[:, :, :64], strategy="dense")
    sys.exit(0)
sys.exit("not interrupted")
"""


def test_ctrl_c() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    print(f"seconds from Ctrl-C to KeyboardInterrupt: {float(done.stdout):.4f}")
    assert float(done.stdout) < 2

ORPHAN = """
import sys, time
import numpy as np, trivium
q = np.ones((1, 2, 64, 16), dtype=np.float32)
trivium.attention(q, q, q, strategy="dense")
trivium.position("rope").plan(head_dim=16, length=9, rope_theta=1e4)
print(*[p.pid for p in trivium.plugins()], flush=True)
{end}
"""


@pytest.mark.parametrize("end,how", [("time.sleep(60)", signal.SIGKILL), ("time.sleep(60)", signal.SIGTERM), ("", None)])
def test_no_plugin_outlives_python(end: str, how: signal.Signals | None) -> None:
    for _ in range(KILLS if how is signal.SIGKILL else 1):
        process = subprocess.Popen([sys.executable, "-c", ORPHAN.format(end=end)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        pids = [int(p) for p in process.stdout.readline().split()]
        assert len(pids) == 2
        if how is not None:
            process.send_signal(how)
        process.wait(timeout=30)
        process.stdout.close()
        deadline = time.monotonic() + 2
        while any(Path(f"/proc/{p}").exists() for p in pids):
            assert time.monotonic() < deadline, f"{pids} are alive 2 s after their host"
            time.sleep(0.005)


def test_forked_child_is_refused_and_the_parent_goes_on() -> None:
    small()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            small()
        except trivium.ForkedProcessError as error:
            status = 0 if error.hint else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert small().shape == (1, 2, 64, 16)


def test_threads_share_an_engine() -> None:
    want = small()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                np.testing.assert_array_equal(small(), want)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
