"""The colours of every picture of the course: one table for canvas, plotly and matplotlib.

Blue is negative, orange is positive, and zero is as quiet as the page behind it: nearly white
in the light theme, nearly black in the dark one. Blue against orange stays apart for the common
kinds of colour blindness, and lightness alone tells how far a value is from zero.
"""

from __future__ import annotations

import numpy as np

# Nine control points each, from -limit through 0 to +limit; colours in between are interpolated.
DIVERGING = {
    "light": [
        "#0a2f5c", "#1c5d99", "#5597c6", "#a9cde3", "#f8f7f4",
        "#f5cfab", "#e3975a", "#b95f22", "#682a09",
    ],
    "dark": [
        "#a6dbff", "#56a8e4", "#2a6ca5", "#1c4164", "#1b1d21",
        "#53331b", "#9a5825", "#de8944", "#ffc995",
    ],
}  # fmt: skip

# The roles that a line can play, and what each looks like in the two themes.
INK = {
    "light": {
        "text": "#24292f",
        "quiet": "#656d76",
        "grid": "#e6e8eb",
        "back": "#ffffff",
        "main": "#0b66a8",
        "accent": "#cf5f0e",
        "signal": "#8a929b",
        "faint": "#c9ced4",
        "third": "#0a7f5c",
    },
    "dark": {
        "text": "#e6e8ea",
        "quiet": "#a4abb3",
        "grid": "#33373c",
        "back": "#111111",
        "main": "#5fb4f2",
        "accent": "#ff9f50",
        "signal": "#8d959e",
        "faint": "#4b5157",
        "third": "#4fcfa3",
    },
}
# A plotly figure is stored and cannot follow the theme: transparent, in tones that both pages carry.
ON_BOTH = {
    "text": "#767d86",
    "quiet": "#767d86",
    "grid": "rgba(128, 134, 142, 0.25)",
    "main": "#2b83c6",
    "accent": "#d9701f",
    "signal": "#8a929b",
    "faint": "#9aa1a9",
    "third": "#1f9872",
}
ROLES = ("main", "accent", "signal", "faint", "third")


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)], dtype=float)


def scale_colors(scale: str, theme: str = "light", count: int = 257) -> np.ndarray:
    """The colour scale as a table.

    Args:
        scale: "diverging" (-limit to limit) or "sequential" (0 to limit, its upper half).
        theme: "light" or "dark".
        count: number of colours.
    Returns:
        (count, 3) floats in [0, 1].
    """
    if scale not in ("diverging", "sequential"):
        raise ValueError(f"scale: got {scale!r}, expected 'diverging' or 'sequential'")
    points = np.stack([_rgb(color) for color in DIVERGING[theme]]) / 255
    if scale == "sequential":
        points = points[len(points) // 2 :]
    at = np.linspace(0, len(points) - 1, count)
    return np.stack([np.interp(at, np.arange(len(points)), points[:, k]) for k in range(3)], axis=1)
