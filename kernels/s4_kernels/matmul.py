"""Kernels of linear systems as matrix products: K_t = C A^t B, a whole block of t at once.

Write t = i + I j. Then A^t B needs the columns A^i B, i < I, and C A^t the rows C A^(I j), j < J, and the
kernel is their product: K_{i + I j} = (C A^(I j)) (A^i B). Each table is made by doubling: when A^i B is known
for i < 2^k, one product with A^(2^k) gives as many again, and A^(2^k) squared is the next power.

Everything is a batched matrix product, in float64 or complex128, so it is as fast as the machine multiplies,
on any device, and differentiable to any order. With I about sqrt(l), the tables are small. At n = 64 and
l = 4096 a dense A takes a twentieth of the time of the Cauchy sums that it replaces: they touch every mode
at every node of the Fourier transform, one division each, and need A^l as well.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TINY = (
    1e-150  # products of what is above stay normal numbers; arithmetic on denormals is a hundred times slower
)
BLOCK = 1 << 16  # elements of the matrices worked on at once on a CPU: a few of them fit into its cache


def dense_kernel(A: Tensor, B: Tensor, C: Tensor, l: int) -> Tensor:
    """C A^t B for t < l.

    Args:
        A: (h, n, n), float64 or complex128, as B (h, n) and C (h, n).
    Returns:
        (h, l).

    Cost: O(n^3 log l + n l) for each of h.
    """
    if l == 0 or A.shape[0] == 0 or A.shape[1] == 0:
        return ((B * C).sum(1)[:, None] * A.sum((1, 2))[:, None]).expand(-1, l)  # nothing, but differentiable
    together = max(1, BLOCK // A.shape[1] ** 2) if A.device.type == "cpu" else A.shape[0]
    parts = zip(A.split(together), B.split(together), C.split(together), strict=True)
    return torch.cat([_dense_kernel(*part, l) for part in parts])


def _dense_kernel(A: Tensor, B: Tensor, C: Tensor, l: int) -> Tensor:
    columns, power = B[:, :, None], A  # (h, n, 1): A^i B; A^(number of columns)
    while columns.shape[2] < _columns(l):
        columns = _flush(torch.cat([columns, power @ columns], 2))
        power = _flush(power @ power)
    rows = C[:, None]  # (h, 1, n): C A^(I j)
    count = -(-l // columns.shape[2])
    while rows.shape[1] < count:
        rows = _flush(torch.cat([rows, rows[:, : count - rows.shape[1]] @ power], 1))
        power = _flush(power @ power) if rows.shape[1] < count else power
    return (rows @ columns).flatten(1)[:, :l]


def vandermonde(weight: Tensor, z: Tensor, l: int) -> Tensor:
    """2 Re sum_n weight_n z_n^t for t < l: half of a real system's modes, diagonal.

    Args:
        weight, z: (h, n), complex128.
    Returns:
        (h, l), float64.

    Cost: O(n l) for each of h.
    """
    if l == 0 or z.numel() == 0:
        return (weight * z).sum(1).real[:, None].expand(-1, l)  # nothing, but differentiable
    together = max(1, BLOCK // (z.shape[1] * _columns(l))) if z.device.type == "cpu" else z.shape[0]
    parts = zip(weight.split(together), z.split(together), strict=True)
    return torch.cat([_vandermonde(*part, l) for part in parts])


def _vandermonde(weight: Tensor, z: Tensor, l: int) -> Tensor:
    inner, leap = _powers(torch.ones_like(z), z, _columns(l))  # (h, I, n): z^i; (h, n): z^I
    outer, _ = _powers(weight, leap, -(-l // inner.shape[1]))  # (h, J, n): weight z^(I j)
    rows, columns = outer.conj().resolve_conj(), inner  # Re(a b) is the scalar product of conj(a) and b
    product = torch.view_as_real(rows).flatten(2) @ torch.view_as_real(columns).flatten(2).mT
    return 2 * product.flatten(1)[:, :l]


def _powers(first: Tensor, z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """first z^i for i < count, (h, count, n), and z to the power of two that is no less than count."""
    table = first[:, None]
    while table.shape[1] < count:
        table = _flush(torch.cat([table, table[:, : count - table.shape[1]] * z[:, None]], 1))
        z = _flush(z * z)
    return table, z


def _columns(l: int) -> int:
    """I: the power of two next above sqrt(l)."""
    return 1 << (l - 1).bit_length() // 2 if l > 1 else 1


def _flush(value: Tensor) -> Tensor:
    """Zero in place of what is all but zero; NaN stays."""
    if value.is_complex():
        return torch.view_as_complex(functional.hardshrink(torch.view_as_real(value), TINY))
    return functional.hardshrink(value, TINY)
