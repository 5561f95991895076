"""The Arrow C data interface, without pyarrow, which costs most of an import."""

from __future__ import annotations

import ctypes
import json
from typing import Any

from trivium import _bridge
from trivium._errors import InvalidArgument


class ArrowSchema(ctypes.Structure):
    """``struct ArrowSchema``."""


class ArrowArray(ctypes.Structure):
    """``struct ArrowArray``."""


_RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

ArrowSchema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_void_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p),
    ("release", _RELEASE),
    ("private_data", ctypes.c_void_p),
]
ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.c_void_p),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p),
    ("release", _RELEASE),
    ("private_data", ctypes.c_void_p),
]

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Memory:
    """Memory of Go that Python holds; it goes back when the last view of it is gone.

    ``numpy.asarray(memory)`` is a writable view that keeps it.
    """

    __slots__ = ("_array", "_interface")

    def __init__(self, array: ArrowArray, address: int, shape: tuple[int, ...], typestr: str) -> None:
        self._array = array
        self._interface = {"version": 3, "data": (address, False), "shape": shape, "typestr": typestr}

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._interface

    def __del__(self) -> None:
        # A forked child shares the memory and must neither free it nor enter Go; when
        # the interpreter ends, modules may be gone, and all memory goes with the process.
        if _bridge is not None and not _bridge.forked() and self._array.release:
            self._array.release(ctypes.addressof(self._array))


class Imported:
    """A tensor of another library that Go holds through its Arrow export."""

    __slots__ = ("address", "dtype", "id", "shape", "strides")

    def __init__(self, source: Any) -> None:
        try:
            schema, array = source.__arrow_c_array__()
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InvalidArgument(f"{type(source).__name__} cannot be exported through Arrow: {error}") from error
        described = json.loads(
            _bridge.call(
                "ImportTensor",
                _capsule_pointer(array, b"arrow_array"),
                _capsule_pointer(schema, b"arrow_schema"),
            )
        )
        self.id: int = described["id"]
        self.address: int = described["address"]
        self.dtype: str = described["dtype"]
        self.shape: list[int] = described["shape"]
        self.strides: list[int] = described["strides"]

    def __del__(self) -> None:
        if hasattr(self, "id"):
            _bridge.release("ForgetTensor", self.id)
