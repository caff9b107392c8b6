"""Memory for results, used again when its last owner has let go of it.

Fresh memory is slow: the system clears it page by page, and what malloc hands out again lies in small pages. A scan
that fills 8 MB takes 1.9 ms into the one and 1.1 ms into memory that it has filled before. So large results
are kept, up to `KEPT` bytes in all, and handed out for the next result of the same size.
"""

from __future__ import annotations

import math
import weakref

import numpy as np

LINE = 64  # bytes, a line of the cache
LARGE = 1 << 22  # bytes; a smaller result is in the cache anyway
KEPT = 1 << 28  # bytes

_free: dict[int, list[np.ndarray]] = {}  # by size


class _Loan:
    """Memory while an array looks at it. Views of that array hold on to it, so it goes last of all of them."""

    def __init__(self, memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        start = -memory.ctypes.data % LINE
        self.memory = memory
        self.__array_interface__ = memory[start:][: math.prod(shape) * dtype.itemsize].__array_interface__ | {
            "shape": shape,
            "typestr": dtype.str,
        }


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A contiguous array whose values are anything; it begins where a line of the cache does.

    Its memory is handed out again when the array, every view of it and every tensor made of it are gone.
    """
    size = math.prod(shape) * dtype.itemsize
    loan = _Loan(_taken(size + LINE), shape, dtype)
    if size >= LARGE:
        weakref.finalize(loan, _give_back, loan.memory).atexit = False
    return np.asarray(loan)


def _taken(size: int) -> np.ndarray:
    try:
        return _free[size].pop()
    except (KeyError, IndexError):
        return np.empty(size, np.uint8)  # NumPy asks the system for huge pages


def _give_back(memory: np.ndarray) -> None:
    """Called when the array goes, on whichever thread. What no longer fits makes room for it."""
    if memory.nbytes + sum(size * len(free) for size, free in list(_free.items())) > KEPT:
        _free.clear()
    if memory.nbytes <= KEPT:
        _free.setdefault(memory.nbytes, []).append(memory)
