"""Tensors of numpy, torch, DLPack and Arrow as addresses, without a copy, and memory for results."""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trivium import _bridge
from trivium._arrow import ArrowArray, ArrowSchema, Imported, Memory
from trivium._errors import DeviceUnavailable, InvalidArgument

Kind = Literal["numpy", "torch", "arrow"]

# numpy's names are Go's.
NUMPY_NAMES = "float32 float16 float64 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()

# By dtype, since a dtype is slow to say its name. bfloat16 joins when it is met:
# ml_dtypes, which need not be there, gives it to numpy.
_NUMPY_DTYPES: dict[np.dtype[Any], str] = {np.dtype(name): name for name in NUMPY_NAMES}

# Go's names where torch spells them differently.
TORCH_NAMES = {"float8_e4m3fn": "float8_e4m3"}


class Request(dict[str, Any]):
    """What crosses to Go: the array as JSON. It keeps the memory alive."""

    __slots__ = ("owner",)

    owner: Any


class Array:
    """A tensor of the caller: where it lies, what it is, and the object that owns it.

    Attributes
    ----------
    address : int
        Of element zero.
    dtype : str
    shape, strides : list of int
        Strides count elements.
    kind : {"numpy", "torch", "arrow"}
        What results look like that go with it.
    device : str
    owner : object
        Keeps the memory alive.
    """

    __slots__ = ("address", "device", "dtype", "kind", "owner", "shape", "strides")

    def __init__(
        self, address: int, dtype: str, shape: list[int], strides: list[int], kind: Kind, owner: Any, device: str = "cpu"
    ) -> None:
        self.address = address
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.kind = kind
        self.owner = owner
        self.device = device

    def span(self) -> int:
        """Bytes from the first element to the end of the last."""
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return (last + 1) * int(self.owner.element_size() if self.kind == "torch" else self.owner.itemsize)

    def request(self) -> Request:
        """Give the array as Go reads it."""
        request = Request(address=self.address, dtype=self.dtype, shape=list(self.shape), strides=list(self.strides))
        if self.device != "cpu":
            request["device"] = self.device
        request.owner = self.owner
        return request


def describe(x: Any, name: str, *, writable: bool = False, empty: bool = False) -> Array:
    """Find the memory of a tensor. Nothing is copied and nothing is kept but a reference.

    Parameters
    ----------
    x : numpy array, torch tensor (CPU or CUDA), or object with ``__arrow_c_array__`` or ``__dlpack__``
    name : str
        What to call it in errors.
    writable : bool
        Whether results are written into it.
    empty : bool
        Whether it may have no elements.

    Raises
    ------
    InvalidArgument
        No tensor, a dtype or strides that Trivium cannot read, or no elements.
    DeviceUnavailable
        A tensor that is neither in the CPU's memory nor on a CUDA device.
    """
    array = _find(x, name, writable)
    if array is None:
        raise InvalidArgument(
            f"{name} is a {type(x).__name__}: want a numpy array, a torch tensor, or __arrow_c_array__ or __dlpack__",
            hint="numpy.asarray(x, dtype=numpy.float32) makes one",
        )
    if 0 in array.shape and not empty:
        raise InvalidArgument(f"{name} has no elements: its shape is {array.shape}: want at least one along each axis")
    _check_strides(array, name, writable)
    return array


def refuse_gradients(**inputs: Any) -> None:
    """Raise InvalidArgument for a torch tensor whose gradient would silently end here."""
    wanting = next((name for name, x in inputs.items() if getattr(x, "requires_grad", False)), None)
    if wanting is None:
        return
    import torch

    if torch.is_grad_enabled():
        raise InvalidArgument(
            f"{wanting} requires grad, and there is no gradient of attention: want a forward pass without one",
            hint="call under torch.no_grad() or torch.inference_mode()",
        )


def _find(x: Any, name: str, writable: bool) -> Array | None:
    if isinstance(x, np.ndarray):
        return _describe_numpy(x, name, writable)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _describe_torch(x, name, writable)
    if hasattr(x, "__arrow_c_array__"):
        held = Imported(x)
        return Array(held.address, held.dtype, held.shape, held.strides, "arrow", held)
    if hasattr(x, "__dlpack__"):
        return _describe_dlpack(x, name, writable)
    return None


def _describe_numpy(x: npt.NDArray[Any], name: str, writable: bool) -> Array:
    dtype = x.dtype
    spelled = _NUMPY_DTYPES.get(dtype) or _numpy_name(dtype, name)
    flags = x.flags
    if writable and not flags.writeable:
        raise InvalidArgument(f"{name} is read-only: results are written into it")
    if not flags.aligned:
        raise InvalidArgument(f"{name} is not aligned to its elements", hint=f"{name}.copy() is")
    size = dtype.itemsize  # divides the strides of aligned arrays
    strides = [stride // size for stride in x.strides]
    return Array(x.__array_interface__["data"][0], spelled, list(x.shape), strides, "numpy", x)


def _numpy_name(dtype: np.dtype[Any], name: str) -> str:
    if dtype.name != "bfloat16":
        raise InvalidArgument(
            f"{name} has dtype {dtype}: want {', '.join(NUMPY_NAMES)} or bfloat16, in the machine's byte order",
            hint=f"{name}.astype(numpy.float32) converts it",
        )
    _NUMPY_DTYPES[dtype] = dtype.name
    return dtype.name


def _describe_torch(x: Any, name: str, writable: bool) -> Array:
    import torch

    device = "cpu"
    if x.device.type != "cpu":
        device = str(x.device)
        if x.device.type != "cuda" or torch.version.cuda is None:
            raise DeviceUnavailable(f"{name} is on {device}: want cpu or a CUDA device", hint=f"{name}.cpu() copies it there")
    if x.layout is not torch.strided:
        raise InvalidArgument(f"{name} has layout {x.layout}: want torch.strided", hint=f"{name}.to_dense() makes one")
    if x.is_neg() or x.is_conj():
        raise InvalidArgument(f"{name} is a lazily negated view", hint=f"{name}.resolve_neg().resolve_conj() copies it")
    if x.requires_grad:
        if writable:
            raise InvalidArgument(f"{name} requires grad: results are written into it", hint=f"pass {name}.detach()")
        x = x.detach()
    dtype = _TORCH_DTYPES.get(x.dtype) or _torch_name(x.dtype)
    try:
        address = x.data_ptr()
    except RuntimeError as error:  # a tensor that a transform only traces
        raise InvalidArgument(f"{name} has no memory: {error}") from error
    return Array(address, dtype, list(x.shape), list(x.stride()), "torch", x, device)


# Filled as dtypes are met, because torch may not be there.
_TORCH_DTYPES: dict[Any, str] = {}


def _torch_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    name = TORCH_NAMES.get(name, name)
    _TORCH_DTYPES[dtype] = name
    return name


def _describe_dlpack(x: Any, name: str, writable: bool) -> Array:
    device, _ = x.__dlpack_device__()
    if device != 1:  # kDLCPU
        raise DeviceUnavailable(f"{name} is on DLPack device {int(device)}: want the cpu (1)")
    try:
        return _describe_numpy(np.from_dlpack(x), name, writable)
    except (BufferError, RuntimeError, TypeError) as error:
        torch = sys.modules.get("torch")
        if torch is None:
            raise InvalidArgument(
                f"{name} cannot be read through DLPack: {error}", hint="bfloat16 needs torch to be imported"
            ) from error
        return _describe_torch(torch.from_dlpack(x), name, writable)


def _check_strides(array: Array, name: str, writable: bool) -> None:
    shape, strides = array.shape, array.strides
    if not shape:
        return
    # The stride of an axis with one position means nothing; libraries put anything there.
    if shape[-1] == 1:
        strides[-1] = 1
    if strides[-1] != 1:
        raise InvalidArgument(
            f"{name} has strides {strides} in elements: want 1 for the last axis", hint=_contiguous(array, name)
        )
    if min(strides) <= 0:
        _check_sign(array, name, writable)


def _check_sign(array: Array, name: str, writable: bool) -> None:
    for i, (extent, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        if extent <= 1:
            array.strides[i] = max(stride, 0)
        elif stride < 0:
            raise InvalidArgument(
                f"{name} has strides {array.strides} in elements: want none below 0", hint=_contiguous(array, name)
            )
        elif stride == 0 and writable:
            raise InvalidArgument(f"{name} is a broadcast view: results are written into it")


def _contiguous(array: Array, name: str) -> str:
    if array.kind == "torch":
        return f"{name}.contiguous() copies it"
    return f"numpy.ascontiguousarray({name}) copies it"


def empty(shape: int | Sequence[int], dtype: npt.DTypeLike | Any = "float32", *, like: Kind = "numpy") -> Any:
    """Make a tensor in memory that plugins read and write without a copy.

    Parameters
    ----------
    shape : int or sequence of int
        Positive extents.
    dtype : str, numpy dtype or torch dtype
        ``"bfloat16"`` needs ``like="torch"``, because numpy has none.
    like : {"numpy", "torch", "arrow"}
        What to return: a numpy array, a torch tensor, or a pyarrow
        ``FixedShapeTensorArray``.

    Returns
    -------
    tensor
        Not initialised. The memory goes back when the last view of it is gone.
    """
    extents = [int(n) for n in shape] if isinstance(shape, Sequence) else [int(shape)]
    name = _dtype_name(dtype)
    if like == "arrow":
        return _empty_arrow(extents, name)
    if like == "torch":
        return _empty_torch(extents, name)
    if name not in NUMPY_NAMES:
        raise InvalidArgument(f"numpy has no dtype {name}", hint='pass like="torch"')
    return _empty_numpy(extents, name, np.dtype(name))


def empty_like(x: Array) -> Any:
    """Make a dense tensor with the shape, dtype and library of another, as :func:`empty` does."""
    if x.device != "cpu":
        return sys.modules["torch"].empty(x.shape, dtype=x.owner.dtype, device=x.owner.device)
    if x.kind == "numpy" and x.dtype == "bfloat16":
        return _empty_numpy(x.shape, x.dtype, x.owner.dtype)
    return empty(x.shape, x.dtype, like=x.kind)


def _dtype_name(dtype: Any) -> str:
    if isinstance(dtype, str):
        return dtype
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        return _TORCH_DTYPES.get(dtype) or _torch_name(dtype)
    try:
        name: str = np.dtype(dtype).name
    except TypeError as error:
        raise InvalidArgument(f"dtype {dtype!r}: {error}") from None
    return name


def _empty_numpy(shape: list[int], name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    array = ArrowArray()
    address = _bridge.call("Empty", name, str(shape), _address(array), 0)
    if dtype.kind != "V":
        return np.asarray(Memory(array, address, tuple(shape), dtype.str))
    # Types that ml_dtypes registers have no name that other libraries understand.
    stand_in = np.dtype(f"u{dtype.itemsize}")
    return np.asarray(Memory(array, address, tuple(shape), stand_in.str)).view(dtype)


def _empty_torch(shape: list[int], name: str) -> Any:
    import torch

    spelled = next((k for k, v in TORCH_NAMES.items() if v == name), name)
    dtype = getattr(torch, spelled, None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidArgument(f"torch has no dtype {name}")
    if name in NUMPY_NAMES:
        return torch.from_numpy(_empty_numpy(shape, name, np.dtype(name)))
    # numpy lacks it: share signed integers of the same size, which torch always has.
    stand_in = np.dtype(f"int{8 * dtype.itemsize}")
    return torch.from_numpy(_empty_numpy(shape, name, stand_in)).view(dtype)


def _empty_arrow(shape: list[int], name: str) -> Any:
    import pyarrow

    array, schema = ArrowArray(), ArrowSchema()
    _bridge.call("Empty", name, str(shape), _address(array), _address(schema))
    return pyarrow.Array._import_from_c(_address(array), _address(schema))


def take(result: int) -> npt.NDArray[Any]:
    """Take a result that Go holds, as a numpy array over the same memory."""
    array = ArrowArray()
    described = json.loads(_bridge.call("TakeTensor", result, _address(array), 0))
    dtype = np.dtype(described["dtype"])
    memory = Memory(array, described["address"], tuple(described["shape"]), dtype.str)
    if math.prod(described["shape"]) == 0:
        return np.empty(described["shape"], dtype)
    return np.asarray(memory)


def _address(structure: ArrowArray | ArrowSchema) -> int:
    return ctypes.addressof(structure)
