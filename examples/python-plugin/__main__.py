"""A Trivium plugin in Python, over the same contract as those in Go.

The host gives it descriptor 3 (shared memory), 4 (one line that says where it listens)
and a directory for its socket. It ends when the host does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

SIDE_CHANNEL, HANDSHAKE = 3, 4
PROTOCOL = 1


def main() -> None:
    """Describe, or serve until the host ends."""
    import attention

    if sys.argv[1:] == ["--describe"]:
        print(json.dumps([attention.INFO], indent=2))
        return
    if os.environ.get("TRIVIUM_PLUGIN") != "7d0f0b5e-trivium-plugin":
        sys.exit("this is a Trivium plugin: it is started by a host; --describe prints its strategies")
    end_with(int(os.environ["TRIVIUM_HOST_PID"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's: it cancels calls
    serve()


def end_with(host: int) -> None:
    """End as soon as the host has ended, however that happens."""
    descriptor = os.pidfd_open(host)
    if os.getppid() != host:
        sys.exit(1)

    def watch() -> None:
        select.select([descriptor], [], [])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def serve() -> None:
    """Serve at a unix socket and tell the host where."""
    import grpc

    from memory import Memory
    from service import Service

    # Calls, and a thread more for the question whether one has ended.
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 16 << 20)])
    server.add_generic_rpc_handlers(Service(Memory(SIDE_CHANNEL)).handlers())
    path = tempfile.mktemp(prefix="plugin", dir=os.environ["PLUGIN_UNIX_SOCKET_DIR"])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    os.write(HANDSHAKE, f"1|{PROTOCOL}|unix|{path}|grpc\n".encode())
    server.wait_for_termination()


if __name__ == "__main__":
    main()
