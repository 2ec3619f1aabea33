"""Conversion of pixels stored as any numbers to 8-bit levels.

Files, Pillow's images and arrays share one rule. The value that becomes level 255 depends on the
type and the range of all pixels:

- bool: True.
- Integers: 255 if none is above it, else 65535 (16 bits) if none is above that.
- Floats: 1.0 if none is above it, else 255.0 if none is above that.

If a format states its depth, as 16-bit PNG and TIFF do, that takes precedence. Everything else is
ambiguous, and an error rather than a black or white picture: NaN, negative numbers, values above
these ranges, and floats whose maximum is between 1 and 2.
"""

from collections.abc import Iterable

import numpy as np

from clip_jax.errors import DecodeError

SIXTEEN_BITS = 65535
_HALF_LEVEL = 0.5 / 255  # for floats up to 1: rounding hides this excess


def white_of(parts: Iterable[np.ndarray]) -> float:
    """The value that becomes level 255, from pixels in parts, none of them empty.

    Raises DecodeError if their range is ambiguous.
    """
    low, high, is_float = np.inf, -np.inf, False
    for part in parts:
        if part.dtype.kind == "b":
            return 1
        is_float = is_float or part.dtype.kind == "f"
        low = np.minimum(low, part.min())  # unlike min(), these keep NaN
        high = np.maximum(high, part.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DecodeError("image has values that are not numbers, or infinite")
    if is_float:
        if low >= -_HALF_LEVEL and high <= 1 + _HALF_LEVEL:
            return 1
        if low >= -0.5 and 2 <= high <= 255.5:
            return 255
        raise DecodeError(
            f"image has floats from {low:.4g} to {high:.4g}; accepted are 0 to 1 and 0 to 255,"
            " not normalised"
        )
    if low >= 0 and high <= SIXTEEN_BITS:
        return 255 if high <= 255 else SIXTEEN_BITS
    raise DecodeError(
        f"image has integers from {low:.0f} to {high:.0f}; accepted are 0 to 255 and 0 to 65535"
    )


def to_levels(pixels: np.ndarray, white: float) -> np.ndarray:
    """Numbers of any shape -> uint8, rounded; 0 stays 0, `white` becomes 255."""
    if pixels.dtype.kind == "f":
        scaled = pixels.astype(np.float32, copy=False) * np.float32(255 / white)
        return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
    if white == 255:
        return np.clip(pixels, 0, 255).astype(np.uint8)
    scale = int(white)
    bounded = np.clip(pixels, 0, scale).astype(np.uint32)
    return ((bounded * 255 + scale // 2) // scale).astype(np.uint8)


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Numbers of any shape -> uint8 by the module's rule. Raises DecodeError if they are not
    numbers, or their range is ambiguous."""
    if pixels.dtype == np.uint8 or not pixels.size:
        return pixels.astype(np.uint8, copy=False)
    if pixels.dtype.name == "bfloat16":
        pixels = pixels.astype(np.float32)
    if pixels.dtype.kind not in "biuf":
        raise DecodeError(f"image array has the dtype {pixels.dtype}; accepted are numbers")
    return to_levels(pixels, white_of([pixels]))
