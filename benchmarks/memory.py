"""Lesson 00: a memory of one number, by its matrix and by the scan, against the length."""

from __future__ import annotations

import torch
from record import median_ms, store

from ssmcourse import linear_scan

LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096]


def decay_matrix(a: float, l: int) -> torch.Tensor:
    """(l, l) float64: a ** (i - j) on and below the diagonal."""
    lag = torch.arange(l)[:, None] - torch.arange(l)
    return torch.where(lag >= 0, torch.tensor(a, dtype=torch.float64) ** lag.clamp(min=0), 0.0)


def main() -> None:
    torch.set_num_threads(1)
    dense_ms, scan_ms = [], []
    for l in LENGTHS:
        M, x = decay_matrix(0.9, l), torch.randn(l, dtype=torch.float64)
        a = torch.full((1, l), 0.9, dtype=torch.float64)
        torch.testing.assert_close(linear_scan(a, x[None])[0], M @ x)
        dense, scan = median_ms(lambda M=M, x=x: M @ x, lambda a=a, x=x: linear_scan(a, x[None]), rounds=15)
        dense_ms.append(dense)
        scan_ms.append(scan)
    store("memory", length=LENGTHS, dense_ms=dense_ms, scan_ms=scan_ms, rounds=15)


if __name__ == "__main__":
    main()
