"""The Arrow C data interface: pointers equal both ways, permutations kept, released once."""

import gc
import json
import weakref

import numpy as np
import pytest

from trivium import _bridge, _tensor
from trivium._errors import InvalidArgument

pa = pytest.importorskip("pyarrow")


class Owner(np.ndarray):
    """An array that a weak reference can watch."""


def watched(shape, dtype=np.float32):
    made = np.arange(np.prod(shape)).astype(dtype).reshape(shape).view(Owner)
    return made, weakref.ref(made)


def live():
    return json.loads(_bridge.call("MemoryUse"))["live"]


def address(array):
    return array.__array_interface__["data"][0]


def test_a_plain_array_comes_in_without_a_copy_and_goes_back():
    source, alive = watched((12,))
    want = address(source)
    held = _tensor.describe(pa.array(source), "x")
    del source
    gc.collect()
    assert (held.address, held.dtype, held.shape, held.strides, held.kind) == (want, "float32", [12], [1], "arrow")
    assert alive() is not None
    del held
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "uint8", "uint16"])
def test_a_tensor_comes_in_with_its_shape(dtype):
    source, alive = watched((2, 3, 4), dtype)
    want = address(source)
    held = _tensor.describe(pa.FixedShapeTensorArray.from_numpy_ndarray(source), "x")
    del source
    assert (held.address, held.dtype, held.shape, held.strides) == (want, dtype, [2, 3, 4], [12, 4, 1])
    request = held.request()
    del held
    gc.collect()
    assert alive() is not None  # the request keeps it
    del request
    gc.collect()
    assert alive() is None


def test_a_slice_starts_where_it_starts():
    source = np.arange(24, dtype=np.float32).reshape(4, 6)
    held = _tensor.describe(pa.FixedShapeTensorArray.from_numpy_ndarray(source)[1:3], "x")
    assert (held.address, held.shape) == (address(source[1:]), [2, 6])
    held = _tensor.describe(pa.array(source.ravel())[5:], "x")
    assert (held.address, held.shape) == (address(source.ravel()[5:]), [19])


def test_a_permutation_is_seen():
    turned = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(0, 2, 1)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(turned)
    assert tensor.type.permutation == [1, 0]
    with pytest.raises(InvalidArgument, match=r"strides \[12, 1, 4\]"):
        _tensor.describe(tensor, "x")


def test_a_permutation_of_outer_axes_needs_no_copy():
    source = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    held = _tensor.describe(pa.FixedShapeTensorArray.from_numpy_ndarray(source.transpose(0, 2, 1, 3)), "x")
    assert (held.address, held.shape, held.strides) == (address(source), [2, 4, 3, 5], [60, 5, 20, 1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "uint8"])
def test_our_memory_goes_out_as_a_tensor_array(dtype):
    before = live()
    made = _tensor.empty((2, 3, 4), dtype, like="arrow")
    assert isinstance(made, pa.FixedShapeTensorArray)
    assert made.type.shape == [3, 4]
    view = made.to_numpy_ndarray()
    assert (view.shape, view.dtype) == ((2, 3, 4), np.dtype(dtype))
    held = _tensor.describe(made, "x")
    assert held.address == address(view)
    del made, held
    assert live() == before + 1  # numpy's view keeps it
    del view
    assert live() == before


def test_bfloat16_goes_out_as_its_bits():
    before = live()
    made = _tensor.empty((2, 4), "bfloat16", like="arrow")
    assert made.type.value_type == pa.uint16()
    del made
    assert live() == before


def test_one_axis_stays_one():
    made = _tensor.empty((5,), like="arrow")
    assert _tensor.describe(made, "x").shape == [5]


def test_an_array_can_be_described_twice():
    tensor = pa.array(np.zeros(4, np.float32))
    first, second = _tensor.describe(tensor, "a"), _tensor.describe(tensor, "b")
    assert first.address == second.address
    del first
    gc.collect()
    assert _bridge.run("bridge.check", {"echo": second.request()})["address"] == second.address


def test_what_crosses_does_not_leak():
    source, alive = watched((64,))
    tensor = pa.array(source)
    before = live()
    for _ in range(5_000):
        _tensor.describe(tensor, "x")
        _tensor.empty((2, 2), like="arrow")
        _tensor.empty((2, 2))
    assert live() == before
    del source, tensor
    gc.collect()
    assert alive() is None
