"""Who copies what: tensors of trivium.empty never, other memory once."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

import trivium

SHAPE = (1, 4, 512, 64)


def copied(call: object) -> int:
    before = trivium.stats()["bytes_copied"]
    call()  # type: ignore[operator]
    return int(trivium.stats()["bytes_copied"] - before)


def filled(like: str, dtype: str = "float32") -> object:
    x = trivium.empty(SHAPE, dtype, like=like)
    x[:] = 0.5
    return x


@pytest.mark.parametrize("like,dtype", [("numpy", "float32"), ("torch", "float32"), ("torch", "bfloat16")])
def test_own_memory_is_not_copied(like: str, dtype: str) -> None:
    q, k, v = (filled(like, dtype) for _ in range(3))
    assert copied(lambda: trivium.attention(q, k, v, strategy="dense")) == 0


def test_views_of_own_memory_are_not_copied() -> None:
    q, k, v = (filled("torch") for _ in range(3))
    views = [x[:, ::2, 100:300].transpose(1, 2) for x in (q, k, v)]  # type: ignore[index]
    assert copied(lambda: trivium.attention(*views, strategy="dense", layout="bnhd")) == 0


def test_foreign_memory_is_copied_once() -> None:
    q, k, v = (np.ones(SHAPE, dtype=np.float32) for _ in range(3))
    assert copied(lambda: trivium.attention(q, k, v, strategy="dense")) == q.nbytes + k.nbytes + v.nbytes


def test_transposed_foreign_memory_is_copied_once() -> None:
    q, k, v = (torch.ones(1, 512, 4, 64).transpose(1, 2) for _ in range(3))
    size = q.numel() * q.element_size()
    assert copied(lambda: trivium.attention(q, k, v, strategy="dense")) == 3 * size


def test_output_of_one_call_is_input_of_the_next() -> None:
    q, k, v = (filled("numpy") for _ in range(3))
    out = trivium.attention(q, k, v, strategy="dense")
    assert copied(lambda: trivium.attention(out, k, v, strategy="dense")) == 0


def test_memory_comes_back() -> None:
    def live() -> int:
        gc.collect()
        return int(trivium.stats()["memory"]["live"])

    q, k, v = (filled("numpy") for _ in range(3))
    trivium.attention(q, k, v, strategy="dense")
    before = live()
    views = [trivium.attention(q, k, v, strategy="dense")[0, 0] for _ in range(20)]
    assert live() == before + 20
    del views
    assert live() == before


def test_pointers_are_the_segments(rng: np.random.Generator) -> None:
    x = trivium.empty((3, 5))
    x[:] = rng.standard_normal((3, 5))
    t = torch.from_numpy(x)
    assert t.data_ptr() == x.ctypes.data
    arrow = trivium.empty((3, 5), like="arrow")
    assert arrow.storage.flatten().to_numpy(zero_copy_only=True).ctypes.data == arrow.storage.flatten().buffers()[1].address
