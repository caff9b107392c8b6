"""Kernels of linear systems as matrix products: K_t = C A^t B, a whole block of t at once.

Write t = i + I j. Then A^t B needs the columns A^i B, i < I, and C A^t the rows C A^(I j), j < J, and the
kernel is their product: K_{i + I j} = (C A^(I j)) (A^i B). Each table is made by doubling: when A^i B is known
for i < 2^k, one product with A^(2^k) gives as many again, and A^(2^k) squared is the next power.

Everything is a batched matrix product, in float64 or complex128, so it is as fast as the machine multiplies,
on any device, and differentiable to any order. With I about sqrt(l), the tables are small. For S4 at n = 64
and l = 4096 the n^3 log l of a dense A take a twentieth of the time of Cauchy sums written as a broadcast: these
divide once for every mode at every node of the Fourier transform, and need A^l as well. cpu.py has the same
algorithm for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

TINY = 1e-150  # a product of two numbers above it is no denormal, with which arithmetic is 100 times slower
LEAPS = 16  # so many products of a few rows with one power cost less than to square it on and on
BLOCK = 1 << 16  # elements of the matrices worked on at once on a CPU: a few of them fit into its cache


def dense_kernel(A: Tensor, B: Tensor, C: Tensor, l: int) -> Tensor:
    """C A^t B for t < l.

    Args:
        A: (h, n, n), float64 or complex128, as B (h, n) and C (h, n).
    Returns:
        (h, l), l of 1 or more.

    Cost: O(n^3 log l + n l) for each of h.
    """
    together = _together(A, A.shape[1] ** 2)
    parts = zip(A.split(together), B.split(together), C.split(together), strict=True)
    return torch.cat([_dense_kernel(*part, l) for part in parts])


def _dense_kernel(A: Tensor, B: Tensor, C: Tensor, l: int) -> Tensor:
    powers = doubled(A, torch.matmul)
    columns, power = B[:, :, None], next(powers)  # (h, n, 1): A^i B; A^(number of columns)
    while columns.shape[2] < columns_of(l):
        columns = torch.cat([columns, power @ columns], 2)
        power = next(powers)
    rows, count = C[:, None], -(-l // columns.shape[2])  # (h, 1, n): C A^(I j)
    while rows.shape[1] * LEAPS < count:
        rows = torch.cat([rows, rows @ power], 1)
        power = next(powers)
    leaps = [rows]
    while len(leaps) * rows.shape[1] < count:
        leaps.append(leaps[-1] @ power)
    return (_flush(torch.cat(leaps, 1)) @ _flush(columns)).flatten(1)[:, :l]


def vandermonde(weight: Tensor, z: Tensor, l: int) -> Tensor:
    """2 Re sum_n weight_n z_n^t for t < l: half of a real system's modes, diagonal.

    Args:
        weight, z: (h, n), complex128.
    Returns:
        (h, l), l of 1 or more, float64.

    Cost: O(n l) for each of h.
    """
    together = _together(z, z.shape[1] * columns_of(l))
    parts = zip(weight.split(together), z.split(together), strict=True)
    return torch.cat([_vandermonde(*part, l) for part in parts])


def _vandermonde(weight: Tensor, z: Tensor, l: int) -> Tensor:
    inner, leap = _powers(torch.ones_like(z), z, columns_of(l))  # (h, I, n): z^i; (h, n): z^I
    outer, _ = _powers(weight, leap, -(-l // inner.shape[1]))  # (h, J, n): weight z^(I j)
    rows, columns = outer.conj().resolve_conj(), inner  # Re(a b) is the scalar product of conj(a) and b
    product = torch.view_as_real(rows).flatten(2) @ torch.view_as_real(columns).flatten(2).mT
    return 2 * product.flatten(1)[:, :l]


def _powers(first: Tensor, z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """first z^i for i < count, (h, count, n), and z to the power of two that is no less than count."""
    powers = doubled(z, torch.mul)
    table, power = first[:, None], next(powers)
    while table.shape[1] < count:
        table = torch.cat([table, table[:, : count - table.shape[1]] * power[:, None]], 1)
        power = next(powers)
    return _flush(table), power


def doubled(z: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    """z, z^2, z^4, ... Flushed at every second, and there at the root of TINY: that lasts for two products."""
    while True:
        yield z
        z = product(z, z)
        yield z
        z = _flush(product(z, z), TINY**0.5)


def columns_of(l: int) -> int:
    """I: a power of two next to sqrt(l)."""
    return 1 << (l - 1).bit_length() // 2


def _together(value: Tensor, elements: int) -> int:
    """How many systems to work on at once, a matrix of one having so many elements."""
    return max(1, BLOCK // max(1, elements) if value.device.type == "cpu" else value.shape[0])


def _flush(value: Tensor, below: float = TINY) -> Tensor:
    """Zero in place of what is all but zero, with the gradient of doing nothing; NaN and infinity stay."""
    if value.is_complex():
        return torch.view_as_complex(_flush(torch.view_as_real(value), below))
    return value - value.detach().clamp(-below, below)
