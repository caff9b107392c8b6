"""Half types in a compiled kernel are the numbers that torch says they are."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ssmcourse.kernels.arrays import address, array_at, as_array, empty, narrow, nothing, widen
from ssmcourse.kernels.threads import native

HALVES = [torch.bfloat16, torch.float16]


@native
def _widened(source, target):
    for i in range(len(source)):
        target[i] = widen(source[i])


@native
def _narrowed(source, target):
    for i in range(len(source)):
        target[i] = narrow(source[i], target[i])


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_number_is_widened_exactly(dtype):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    got = np.empty(len(every), np.float32)
    _widened(as_array(every), got)
    assert torch.equal(torch.from_numpy(got).nan_to_num(7), every.float().nan_to_num(7))
    assert np.isnan(got).sum() == every.isnan().sum() > 0


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_that_of_torch(dtype):
    generator = torch.Generator().manual_seed(0)
    every_exponent = torch.randint(-(1 << 31), 1 << 31, (200_000,), generator=generator).to(torch.int32)
    edges = torch.tensor([0.0, -0.0, 65504.0, 65520.0, 1e-8, 3.4e38, torch.inf, -torch.inf, torch.nan])
    halves = torch.arange(1 << 16, dtype=torch.int32) << 16
    ties = torch.cat([halves + 0x8000, halves + 0x7FFF, halves + 0x8001]).view(torch.float32)
    numbers = torch.cat([every_exponent.view(torch.float32), edges, ties, (1 + torch.arange(4096) / 4096)])
    tensor, array = empty(tuple(numbers.shape), dtype)
    _narrowed(numbers.numpy(), array)
    assert torch.equal(tensor.isnan(), numbers.isnan())
    assert torch.equal(tensor.nan_to_num(7), numbers.to(dtype).nan_to_num(7))


def test_half_types_need_no_instructions_of_their_own():
    """Compiled for any processor of the kind: a function of LLVM's that Numba lacks would abort the process."""
    script = (
        "import numpy as np; from ssmcourse.kernels.arrays import narrow, widen; import numba\n"
        "@numba.njit\n"
        "def there_and_back(source, target):\n"
        "    for i in range(len(source)):\n"
        "        target[i] = narrow(widen(source[i]), target[i])\n"
        "for kind in (np.int16, np.uint16):\n"
        "    source, target = np.arange(0x7C00).astype(kind), np.zeros(0x7C00, kind)\n"
        "    there_and_back(source, target)\n"
        "    assert np.array_equal(source, target)"
    )
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", script], env=os.environ | generic, check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_other_types_pass_unchanged(dtype):
    numbers = torch.randn(10, dtype=dtype)
    tensor, array = empty((10,), dtype)
    _narrowed(as_array(numbers), array)
    assert torch.equal(tensor, numbers)


def test_an_array_holds_what_a_lazy_conjugate_means():
    z = torch.tensor([1 + 2j])
    assert as_array(z.conj())[0] == 1 - 2j
    assert as_array(z.conj().imag)[0] == -2
    assert as_array(None) is None


@native
def _doubled(at, rows, columns, like):
    array = array_at(at, (rows, columns), like)
    for row in range(rows):
        for column in range(columns):
            array[row, column] *= 2
    return array.size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_array_at_an_address_is_the_tensor(dtype):
    tensor = torch.arange(6, dtype=dtype).view(2, 3)
    assert _doubled(address(tensor[1:]), 1, 3, nothing(dtype, 1)) == 3
    assert tensor.tolist() == [[0, 1, 2], [6, 8, 10]]
    assert _doubled(address(None), 0, 3, nothing(dtype, 1)) == 0


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_nothing_is_of_the_type_that_an_array_would_have(dtype, ndim):
    array = nothing(dtype, ndim)
    assert (array.size, array.ndim, array.dtype) == (0, ndim, as_array(torch.empty(1, dtype=dtype)).dtype)
