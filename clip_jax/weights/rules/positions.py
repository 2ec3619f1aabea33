"""Interpolation of learned position tables to another input size.

It is bicubic with antialias over the grid of patches and linear over a line of tokens, both with
half-pixel centres, as in open_clip, which made most published resized checkpoints.
"""

import numpy as np

CUBIC_A = -0.5  # Keys' kernel, as in Pillow


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC_A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """(new, old) float64: rows sum to 1. Shrinking widens the kernel (antialias)."""
    scale = old / new
    width = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    samples = np.arange(old)[None] + 0.5
    # Samples outside the rounded support are excluded, although the kernel is not quite 0 there.
    first = np.maximum((centres - 2 * width + 0.5).astype(int), 0)
    last = np.minimum((centres + 2 * width + 0.5).astype(int), old)
    inside = (samples > first) & (samples < last)
    weights = np.where(inside, _cubic((samples - centres) / width), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _linear_weights(old: int, new: int) -> np.ndarray:
    """(new, old) float64: linear interpolation without antialias, clamped at the ends."""
    steps = np.arange(new, dtype=np.float32)  # float32, like the reference
    at = np.clip((steps + 0.5) * np.float32(old / new) - np.float32(0.5), 0, old - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, old - 1)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), low), 1 - (at - low))
    np.add.at(weights, (np.arange(new), high), at - low)
    return weights


def resize_line(table: np.ndarray, rows: int) -> np.ndarray:
    """(old, D) -> (rows, D) float32, linear."""
    return (_linear_weights(len(table), rows) @ table).astype(np.float32)


def resize_grid(table: np.ndarray, rows: int, prefix: int) -> np.ndarray:
    """(prefix + old², D) -> (rows, D) float32, bicubic over a square grid; keeps the prefix."""
    old, new = round((len(table) - prefix) ** 0.5), round((rows - prefix) ** 0.5)
    weights = _cubic_weights(old, new)
    grid = table[prefix:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("ab,cd,bdw->acw", weights, weights, grid, optimize=True)
    return np.concatenate([table[:prefix], resized.reshape(new * new, -1)]).astype(np.float32)
