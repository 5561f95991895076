"""Tensors cross by address: no copy, what cannot be read is refused, and memory goes back once."""

import gc
import json
import threading

import numpy as np
import pytest
import torch

from trivium import _bridge, _tensor
from trivium._errors import DeviceUnavailable, InvalidArgument

pa = pytest.importorskip("pyarrow")


def dlpack_only(inside):
    """Give the tensor of a library that only speaks DLPack."""
    made = type("DLPackOnly", (), {})()
    type(made).__dlpack__ = lambda self, **kwargs: inside.__dlpack__(**kwargs)
    type(made).__dlpack_device__ = lambda self: inside.__dlpack_device__()
    return made


def memory():
    use = json.loads(_bridge.call("MemoryUse"))
    return use["live"], use["live_bytes"]


@pytest.fixture(autouse=True)
def no_memory_is_left():
    gc.collect()  # what earlier tests left in cycles
    before = memory()
    yield
    if memory() != before:
        gc.collect()  # pytest may hold a frame in a cycle
    assert memory() == before


x = np.arange(2 * 3 * 4 * 8, dtype=np.float32).reshape(2, 3, 4, 8)
t = torch.arange(2 * 3 * 4 * 8, dtype=torch.float32).reshape(2, 3, 4, 8)


@pytest.mark.parametrize(
    ("tensor", "address", "dtype", "strides", "kind"),
    [
        pytest.param(x, x.ctypes.data, "float32", [96, 32, 8, 1], "numpy", id="numpy"),
        pytest.param(x[1:], x.ctypes.data + 384, "float32", [96, 32, 8, 1], "numpy", id="numpy slice"),
        pytest.param(x[:, ::2], x.ctypes.data, "float32", [96, 64, 8, 1], "numpy", id="numpy step"),
        pytest.param(x.transpose(0, 2, 1, 3), x.ctypes.data, "float32", [96, 8, 32, 1], "numpy", id="numpy transposed"),
        pytest.param(x[..., 2:5], x.ctypes.data + 8, "float32", [96, 32, 8, 1], "numpy", id="numpy part of a row"),
        pytest.param(np.broadcast_to(x[:1], x.shape), x.ctypes.data, "float32", [0, 32, 8, 1], "numpy", id="numpy broadcast"),
        pytest.param(x[:1, ::-1][:, :1], x[:, -1].ctypes.data, "float32", None, "numpy", id="numpy one position"),
        pytest.param(x[..., :1], x.ctypes.data, "float32", [96, 32, 8, 1], "numpy", id="numpy last axis of one"),
        pytest.param(t, t.data_ptr(), "float32", [96, 32, 8, 1], "torch", id="torch"),
        pytest.param(t.transpose(1, 2), t.data_ptr(), "float32", [96, 8, 32, 1], "torch", id="torch transposed"),
        pytest.param(t.requires_grad_(False)[:, 1], t.data_ptr() + 128, "float32", [96, 8, 1], "torch", id="torch index"),
        pytest.param(dlpack_only(x), x.ctypes.data, "float32", [96, 32, 8, 1], "numpy", id="dlpack"),
        pytest.param(dlpack_only(t), t.data_ptr(), "float32", [96, 32, 8, 1], "numpy", id="dlpack of torch"),
    ],
)
def test_no_tensor_is_copied(tensor, address, dtype, strides, kind):
    array = _tensor.describe(tensor, "q")
    assert (array.address, array.dtype, array.kind, array.device) == (address, dtype, kind, "cpu")
    if strides is not None:
        assert array.strides == strides
    assert json.loads(json.dumps(array.request())) == {
        "address": address,
        "dtype": dtype,
        "shape": array.shape,
        "strides": array.strides,
    }


@pytest.mark.parametrize("dtype", _tensor.NUMPY_NAMES)
def test_numpy_dtypes(dtype):
    assert _tensor.describe(np.zeros(3, dtype), "x").dtype == dtype
    made = _tensor.empty((2, 3), dtype)
    assert (made.dtype, made.shape) == (np.dtype(dtype), (2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_torch_dtypes(dtype):
    made = _tensor.empty((2, 3), dtype, like="torch")
    assert (made.dtype, tuple(made.shape)) == (dtype, (2, 3))
    array = _tensor.describe(made, "x")
    assert array.address == made.data_ptr()
    again = _tensor.empty_like(array)
    assert (again.dtype, again.shape) == (made.dtype, made.shape)


def test_bfloat16_of_dlpack():
    made = torch.zeros(4, 8, dtype=torch.bfloat16)
    array = _tensor.describe(dlpack_only(made), "q")
    assert (array.address, array.dtype, array.kind) == (made.data_ptr(), "bfloat16", "torch")


def test_a_tensor_with_grad_is_read_without_it():
    weights = torch.zeros(4, 8, requires_grad=True)
    array = _tensor.describe(weights, "q")
    assert array.address == weights.data_ptr()
    assert not array.owner.requires_grad
    with pytest.raises(InvalidArgument, match="requires grad"):
        _tensor.describe(weights, "out", writable=True)


unaligned = np.frombuffer(b"\0" * 17, np.uint8)[1:].view(np.float32)
packed = np.zeros(4, np.dtype([("a", np.float32), ("b", np.float16)]))["a"]
read_only = np.broadcast_to(np.zeros((1, 4), np.float32), (3, 4))


@pytest.mark.parametrize(
    ("tensor", "text", "hint"),
    [
        pytest.param(x[:, ::-1], "none below 0", "numpy.ascontiguousarray(q)", id="negative stride"),
        pytest.param(x[..., ::2], "want 1 for the last axis", "numpy.ascontiguousarray(q)", id="last axis strided"),
        pytest.param(np.asfortranarray(x), "want 1 for the last axis", "numpy.ascontiguousarray(q)", id="fortran order"),
        pytest.param(t.mT, "want 1 for the last axis", "q.contiguous()", id="torch last axis strided"),
        pytest.param(x[:0], "no elements: its shape is [0, 3, 4, 8]", "", id="zero length"),
        pytest.param(t[:, :0], "no elements", "", id="torch zero length"),
        pytest.param(x.astype(np.complex64), "dtype complex64", "astype(numpy.float32)", id="complex"),
        pytest.param(x.astype(">f4"), "byte order", "astype(numpy.float32)", id="byte order"),
        pytest.param(np.array(["a"]), "dtype <U1", "astype", id="strings"),
        pytest.param(np.array([object()]), "dtype object", "astype", id="objects"),
        pytest.param(unaligned, "aligned", "q.copy()", id="unaligned"),
        pytest.param(packed, "aligned", "q.copy()", id="stride of half an element"),
        pytest.param(t.to_sparse(), "layout", "to_dense()", id="sparse"),
        pytest.param(torch.view_as_complex(torch.zeros(4, 2)).conj().imag, "negated", "resolve_neg", id="lazily negated"),
        pytest.param([[1.0]], "is a list", "numpy.asarray", id="list"),
        pytest.param(None, "is a NoneType", "numpy.asarray", id="none"),
        pytest.param(pa.array([1.0, None], pa.float32()), "nulls", "", id="arrow nulls"),
        pytest.param(pa.array(["a"]), "want numbers", "", id="arrow strings"),
        pytest.param(pa.array([[1.0], [2.0, 3.0]]), "want a list of numbers of one length", "", id="arrow ragged"),
        pytest.param(pa.array([True]), "want numbers", "", id="arrow bits"),
    ],
)
def test_refused(tensor, text, hint):
    with pytest.raises(InvalidArgument) as caught:
        _tensor.describe(tensor, "q")
    assert text in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("tensor", [read_only, np.lib.stride_tricks.as_strided(x.copy(), (3, 4), (0, 4))])
def test_results_are_not_written_where_they_cannot_be(tensor):
    with pytest.raises(InvalidArgument, match="results are written"):
        _tensor.describe(tensor, "out", writable=True)


def test_another_device():
    with pytest.raises(DeviceUnavailable, match="q is on meta"):
        _tensor.describe(torch.zeros(4, device="meta"), "q")


def test_describing_changes_nothing():
    y = x[:1, ::-1][:, :1]
    shape, strides = y.shape, y.strides
    request = _tensor.describe(y, "q").request()
    request["shape"][0] = 99
    assert (y.shape, y.strides) == (shape, strides)


# Memory of Trivium


def test_empty_is_shared_memory_that_goes_back_once():
    live, size = memory()
    made = _tensor.empty((256, 1024))
    assert memory() == (live + 1, size + (1 << 20))
    made[:] = 3
    view = made[10:20, ::2].T
    del made
    assert memory()[0] == live + 1
    assert view.sum() == 3 * view.size
    del view
    assert memory() == (live, size)


def test_torch_shares_what_numpy_shares():
    live, _ = memory()
    made = _tensor.empty((64, 8), "bfloat16", like="torch")
    made.fill_(2)
    view = made.view(torch.uint16).numpy()
    address = made.data_ptr()
    del made
    assert view.__array_interface__["data"][0] == address
    assert (view == 0x4000).all()
    assert memory()[0] == live + 1
    del view
    assert memory()[0] == live


def test_the_pool_gives_warm_memory_again():
    made = _tensor.empty((1000, 1000))
    address = made.ctypes.data
    del made
    gc.collect()
    assert _tensor.empty((1000, 1000)).ctypes.data == address


@pytest.mark.parametrize(
    ("shape", "dtype", "like", "text"),
    [
        ((0, 4), "float32", "numpy", "want positive extents"),
        ((-1,), "float32", "numpy", "positive extents"),
        ((), "float32", "numpy", "with an axis"),
        ((2**62, 2**62), "float32", "numpy", "positive extents"),
        ((4,), "float31", "numpy", "float31"),
        ((4,), "bfloat16", "numpy", "bfloat16"),
        ((4,), "float8_e4m3", "numpy", "float8_e4m3"),
        ((4,), "bits", "torch", "torch has no dtype bits"),
        ((4,), "Tensor", "torch", "torch has no dtype Tensor"),
    ],
)
def test_memory_that_cannot_be_made(shape, dtype, like, text):
    with pytest.raises(InvalidArgument, match=text):
        _tensor.empty(shape, dtype, like=like)


def test_many_threads_may_make_and_drop_memory():
    def work():
        for i in range(300):
            made = _tensor.empty((1 + i % 7, 64))
            made[:] = i
            assert (made == i).all()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
