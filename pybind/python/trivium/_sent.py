"""The call on a device that a plugin was sent and whose answer nobody has waited for.

Such a call need not be waited for: its stream waits. But the plugin's queue must get calls in
the order in which streams wait for them, or two of them wait for each other for ever. So one call
at most is unanswered, and it is settled before anything else is sent.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from trivium._errors import TriviumError

if TYPE_CHECKING:
    from trivium._bridge import Job
    from trivium._cuda import Lease


class Sent(NamedTuple):
    """A call, and what was lent for it."""

    job: Job
    lease: Lease


# Held by whoever sends a call, until the stream of the call waits for it.
turn = threading.RLock()
latest: Sent | None = None


def settle() -> None:
    """Wait for the answer to the call, if there is one. Its error goes to the next call on the device."""
    global latest
    if latest is None:
        return
    with turn:
        sent = latest
        if sent is None:
            return
        try:
            sent.job.wait()
        except TriviumError as error:
            sent.lease.fail(error)
        latest = None


def settle_unless_busy() -> None:
    """Settle unless somebody is about to: who sends settles first."""
    if turn.acquire(blocking=False):
        try:
            settle()
        finally:
            turn.release()
