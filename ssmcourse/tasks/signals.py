"""Signals for a memory to remember (lesson 01)."""

from __future__ import annotations

import torch
from torch import Tensor


def band_limited_noise(l: int, cycles: int = 16, seed: int = 0) -> Tensor:
    """Noise with no frequency above `cycles` periods in the whole record.

    A sum of `cycles` sines of random phase and Gaussian amplitude. The same seed is the same
    curve at every length, sampled at the end of each of `l` equal steps: that is what makes a
    change of the sampling rate testable.

    Args:
        l: number of samples, at least 1.
        cycles: the highest frequency, in periods per record, at least 1.
        seed: chooses the curve.
    Returns:
        (l,) float64, mean about 0, variance about 1.
    """
    if l < 1 or cycles < 1:
        raise ValueError(f"l, cycles: got {l} and {cycles}, expected both to be 1 or more")
    generator = torch.Generator().manual_seed(seed)
    amplitude = torch.randn(cycles, generator=generator, dtype=torch.float64)
    phase = 2 * torch.pi * torch.rand(cycles, generator=generator, dtype=torch.float64)
    time = torch.arange(1, l + 1, dtype=torch.float64) / l
    frequency = torch.arange(1, cycles + 1, dtype=torch.float64)
    waves = torch.sin(2 * torch.pi * time[:, None] * frequency + phase)  # (l, cycles)
    return waves @ amplitude / (amplitude.square().sum() / 2).sqrt()


def photo_row(row: int = 200) -> Tensor:
    """The brightness along one row of scikit-learn's photograph of a temple in China.

    Args:
        row: 0 (top) to 426 (bottom).
    Returns:
        (640,) float64, mean 0, variance 1.
    """
    from sklearn.datasets import load_sample_image  # slow to import, needed here only

    image = load_sample_image("china.jpg")  # (427, 640, 3)
    if not 0 <= row < image.shape[0]:
        raise ValueError(f"row: got {row}, expected 0 to {image.shape[0] - 1}")
    brightness = torch.from_numpy(image[row].mean(-1))
    return (brightness - brightness.mean()) / brightness.std(correction=0)
