"""Bytes that Triton kernels load and store, counted where the interpreter runs them."""

from __future__ import annotations

import pytest

from ssmcourse.kernels import runtime


def counted():
    """The watch over the kernels in the `with`: what they move, each access anew, and whether they stay in bounds."""
    if runtime.triton_mode() != "interpreted":
        pytest.skip("bytes are counted where Triton interprets")
    from ssmcourse.kernels.sanitizer.programs import watch_programs

    return watch_programs()
