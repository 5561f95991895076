"""Calls into the Go library: errors as exceptions, jobs that Ctrl-C ends, no Go after fork."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
from collections.abc import Callable
from typing import Any

from trivium._errors import ForkedProcessError, InvalidArgument, TriviumError, decode

# The C extension itself. The wrapper that gopy writes around it changes the working
# directory during import and runs Go's collector after each of Python's, which
# hangs a forked child.
_go: Any = importlib.import_module("trivium._native._pybind")

# How long one wait keeps Python from noticing Ctrl-C, and how long a cancelled job
# may take before Ctrl-C no longer waits for it, in milliseconds.
STEP = 50
GRACE = 100

_encode = json.JSONEncoder(separators=(",", ":")).encode

# The caller numbers its jobs, see Submit in Go.
_numbers = itertools.count(1)

# Requests of jobs that were abandoned and have not ended, by job.
_lingering: dict[int, dict[str, Any]] = {}

# Set in a child process after fork, where Go's threads do not exist.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


def forked() -> bool:
    """Whether this process is a fork of the one that loaded Trivium."""
    return _forked


def call(function: str, *arguments: str | int) -> Any:
    """Call an exported Go function, which must be quick: Ctrl-C waits for it.

    Raises
    ------
    TriviumError
        The error that Go returned.
    """
    if _forked:
        raise ForkedProcessError(
            "this process was forked after trivium was imported, and a fork has none of its threads",
            hint='import trivium in the child only, or use multiprocessing\'s "spawn" start method',
        )
    try:
        return getattr(_go, "pybind_" + function)(*arguments)
    except RuntimeError as error:
        raise decode(str(error)) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"{function}: {error}") from None


def release(function: str, handle: int) -> None:
    """Call an exported Go function from a finalizer: does nothing in a forked child."""
    if not _forked:
        call(function, handle)


def run(
    operation: str,
    request: dict[str, Any],
    timeout: float | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Run an operation as a job and give its result.

    ``request`` is kept until the job has ended, and with it the tensors it names.

    Parameters
    ----------
    timeout : float, optional
        Seconds until :class:`DeadlineExceeded`; default none.
    progress : callable, optional
        Called with the parts done and in all, for operations that tell.
    """
    job = Job(operation, request, timeout)
    try:
        job.start()
        return job.wait(progress)
    except TriviumError:
        raise
    except BaseException:
        job.abandon()
        raise


class Job:
    """An operation under way. Whoever starts one waits for it, or abandons it.

    ``text`` is the request in the operation's own form; by default it is JSON.
    """

    __slots__ = ("number", "operation", "request", "text", "timeout")

    def __init__(self, operation: str, request: dict[str, Any], timeout: float | None = None, text: str = "") -> None:
        try:
            self.text = text or _encode(request)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"{operation}: {error}", hint="parameters are numbers, strings, booleans or lists") from None
        if _lingering:
            _sweep()
        self.operation = operation
        self.request = request
        self.timeout = _milliseconds(timeout)
        self.number = next(_numbers)

    def start(self) -> bool:
        """Start it; True when the plugin has been sent it, and takes it before all that is sent later."""
        return bool(call("Submit", self.number, self.operation, self.text, self.timeout))

    def wait(self, progress: Callable[[int, int], None] | None = None) -> Any:
        """Give its result. An interrupted wait can be taken up again."""
        result = call("Wait", self.number, STEP)
        while not result:
            if progress is not None:
                _tell(self.number, progress)
            result = call("Wait", self.number, STEP)
        return json.loads(result)

    def abandon(self) -> None:
        """Cancel it, for nobody waits for it. Its tensors stay alive until it has really ended."""
        _lingering[self.number] = self.request  # first, since the next Ctrl-C may come at any time
        try:
            call("Cancel", self.number)
        except TriviumError:  # it was not submitted yet, or has ended
            del _lingering[self.number]
            return
        _collect(self.number, GRACE)


def _tell(job: int, progress: Callable[[int, int], None]) -> None:
    said = call("Progress", job)
    if said:
        latest = json.loads(said)
        progress(latest["done"], latest["total"])


def _milliseconds(timeout: float | None) -> int:
    if timeout is None:
        return 0
    if not 0 < timeout < 2**40:  # also not NaN
        raise InvalidArgument(f"timeout {timeout}: want a positive number of seconds, or None")
    return math.ceil(timeout * 1000)


def _sweep() -> None:
    for job in list(_lingering):
        _collect(job, 0)


def _collect(job: int, milliseconds: int) -> None:
    """Let go of an abandoned job's tensors if it ends in this time."""
    try:
        ended = bool(call("Wait", job, milliseconds))
    except TriviumError:
        ended = True
    if ended:
        _lingering.pop(job, None)
