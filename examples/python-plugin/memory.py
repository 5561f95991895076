"""Memory that the host shares: descriptors over the side channel, arrays on them."""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import threading

import numpy as np

# One packet for each descriptor; see package shm: version, kind, flags, zero, id, offset, size.
_PACKET = struct.Struct("<BBHIQQQ")
_SEGMENT, _FILE, _DROP = 1, 2, 3

_DTYPES = {1: np.float32, 3: np.float16, 4: np.float64}


class Memory:
    """What the host has announced and not yet dropped."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._changed = threading.Condition()
        self._descriptors: dict[int, tuple[int, int]] = {}
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        while True:
            packet, controls, _, _ = self._socket.recvmsg(_PACKET.size + 1, socket.CMSG_LEN(4))
            if not packet:
                os._exit(1)  # the host has closed the channel
            _, kind, _, _, id, _, size = _PACKET.unpack(packet)
            with self._changed:
                if kind == _DROP:
                    os.close(self._descriptors.pop(id)[0])
                else:
                    numbers = array.array("i")
                    numbers.frombytes(controls[0][2][:4])
                    self._descriptors[id] = (numbers[0], size)
                self._changed.notify_all()

    def array(self, ref, writable: bool = False) -> np.ndarray:
        """View a tensor. It stays mapped as long as the array lives."""
        with self._changed:
            if not self._changed.wait_for(lambda: ref.segment_id in self._descriptors, timeout=5):
                raise ValueError(f"segment {ref.segment_id} was not announced")
            descriptor, size = self._descriptors[ref.segment_id]
            pages = mmap.mmap(descriptor, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        if ref.dtype not in _DTYPES:
            raise NotImplementedError(f"dtype {ref.dtype}: want float32 or float16")
        dtype = np.dtype(_DTYPES[ref.dtype])
        strides = [s * dtype.itemsize for s in ref.strides]
        return np.ndarray(tuple(ref.shape), dtype, buffer=pages, offset=ref.offset, strides=strides)
