"""Memory is handed out again only when nothing looks at it any more."""

import numpy as np
import pytest
import torch

from ssmcourse.kernels import memory

SHAPE = (1 << 20,)  # 4 MB of float32: large
FLOAT = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def nothing_free():
    memory._free.clear()
    yield
    memory._free.clear()


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_a_large_result_is_used_again():
    first = memory.empty(SHAPE, FLOAT)
    where = address(first)
    del first
    assert address(memory.empty(SHAPE, FLOAT)) == where


def content(view) -> bytes:
    return (view.numpy() if isinstance(view, torch.Tensor) else np.asarray(view)).tobytes()


VIEWS = {
    "a slice": lambda a: a[10:],
    "a slice of a slice": lambda a: a[10:][5:],
    "another shape": lambda a: a.reshape(4, -1),
    "other numbers": lambda a: a.view(np.int32),
    "a tensor": torch.from_numpy,
    "a view of a tensor": lambda a: torch.from_numpy(a)[3:],
    "the array of a tensor": lambda a: torch.from_numpy(a).numpy()[1:],
    "a detached tensor": lambda a: torch.from_numpy(a).requires_grad_().detach(),
    "a memoryview": memoryview,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_whatever_still_looks_at_it_keeps_it(view):
    first = memory.empty(SHAPE, FLOAT)
    first[:] = 7
    held = view(first)
    before = content(held)
    del first
    memory.empty(SHAPE, FLOAT)[:] = 8
    assert content(held) == before
    del held
    assert sum(len(free) for free in memory._free.values()) >= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.uint16])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (3, 5), (1 << 19, 3)])
def test_it_is_an_array_like_any_other(dtype, shape):
    array = memory.empty(shape, np.dtype(dtype))
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.size == 0 or address(array) % memory.LINE == 0
    array[...] = 1
    assert (array == 1).all()


def test_no_more_is_kept_than_it_says():
    many = [memory.empty((1 << 24,), FLOAT) for _ in range(4)]  # 64 MB each
    del many
    kept = sum(m.nbytes for free in memory._free.values() for m in free)
    assert 0 < kept <= memory.KEPT
    huge = memory.empty((memory.KEPT // 4 + 1,), FLOAT)
    del huge
    assert sum(m.nbytes for free in memory._free.values() for m in free) <= memory.KEPT
