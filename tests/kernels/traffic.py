"""Bytes that Triton kernels load and store, counted while the interpreter runs them: unmasked lanes, each access anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass
class Traffic:
    loaded: int = 0
    stored: int = 0

    @property
    def bytes(self) -> int:
        return self.loaded + self.stored


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Counts what kernels move inside the `with`. What several lanes of one access share is counted once."""
    from triton.runtime.interpreter import InterpreterBuilder

    found = Traffic()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def size(pointers, mask) -> int:
        import numpy as np

        bits = pointers.get_element_ty().primitive_bitwidth
        return len(np.unique(pointers.data[mask.data.astype(bool)])) * bits // 8

    def counting_load(self, ptrs, mask, *rest):
        found.loaded += size(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def counting_store(self, ptrs, value, mask, *rest):
        found.stored += size(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", counting_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", counting_store)
        yield found
