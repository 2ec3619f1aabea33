"""Resizing of crops to squares: exact by Pillow, or nearly equal by OpenCV in a sixth of the time.

OpenCV's filters take the nearest 2 or 4 pixels at any scale, which aliases when shrinking.
`fast_resize` therefore samples twice as densely as needed, blurs first along strongly shrunk axes,
and averages squares of 2 x 2 samples, which together approximate Pillow's kernel. The mean
difference is about half a level of 255 on smooth photos, 1.5 on photos that are sharp to the pixel,
and 2 on strong grain, which nothing hides.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.errors import UserError

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

# All were measured on photos with detail and noise down to the pixel. Shrinks of an axis:
_BLURRED_FROM = {"bicubic": 2.3, "bilinear": 1.9}  # blur before sampling
_SOFTENED_FROM = 1.5  # soften unblurred axes after sampling: Pillow's bilinear kernel is wider
_SOFTEN = np.array([0.04, 0.92, 0.04], np.float32)
_SHARPEN = np.array([-0.08, 1.16, -0.08], np.float32)
_AS_IT_IS = np.ones(1, np.float32)
# Pixels that the JPEG decoder halved are sharpened up to this remaining shrink.
_SHARPENED_TO = 1.2
_SHARPEN_HALVED = np.array([-0.025, 1.05, -0.025], np.float32)
# These limits concern both axes together:
_BLURRED_BOTH = {"bicubic": 2.42, "bilinear": 0.0}  # mean shrink; a blur costs a tenth of the time
_LINEAR_FROM = 1.5  # from here dense linear samples match Pillow's cubic kernel better
_GREATEST_OF = {1: 3.5, 2: 1.6}  # {reduction by the decoder: greatest shrink}
_GREATEST_ASPECT = 1.8  # ratio of the axes' shrinks; 16:9 squashed to a square is below it


def interpolation_filter(name: str) -> Image.Resampling:
    """Returns Pillow's filter of that name. Raises `UserError` if there is none."""
    if name not in INTERPOLATIONS:
        raise UserError(f"interpolation {name!r} is unknown; known are {', '.join(INTERPOLATIONS)}")
    return INTERPOLATIONS[name]


@cache
def _opencv() -> Any:
    import cv2

    # The pipeline already has a thread or a process per core.
    cv2.setNumThreads(1)
    return cv2


def exact_resize(picture: Image.Image, box: Box, size: int, interpolation: str) -> np.ndarray:
    """RGB picture -> uint8 (size, size, 3) of the pixels in `box`, by Pillow."""
    if box == (0, 0, size, size) == (0, 0, *picture.size):
        return np.asarray(picture)
    resample = INTERPOLATIONS[interpolation]
    return np.asarray(picture.resize((size, size), resample, box=box))


def is_fast(box: Box, size: int, factor: int = 1) -> bool:
    """Whether `fast_resize` suits `box`: whole pixels, similar axes, no great shrink.

    `factor`: the reduction at which a JPEG was decoded.
    """
    across, down = (box[2] - box[0]) / size, (box[3] - box[1]) / size
    return (
        all(float(edge).is_integer() for edge in box)
        and min(across, down) < _GREATEST_OF.get(factor, 0.0)
        and max(across, down) <= _GREATEST_ASPECT * min(across, down)
    )


def fast_resize(
    pixels: np.ndarray, size: int, interpolation: str, is_halved: bool = False
) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (size, size, 3), by OpenCV; only if `is_fast`.

    `is_halved`: the pixels come from a JPEG decoded at half its size.
    """
    height, width = pixels.shape[:2]
    if height == width == size:
        return np.ascontiguousarray(pixels)
    cv2 = _opencv()
    shrink = math.sqrt(height * width) / size
    is_bilinear = interpolation == "bilinear"
    if is_halved:  # the decoder replaced most of the filtering
        wide, is_cubic = (False, False), not is_bilinear
    elif is_bilinear and shrink <= 1:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    else:
        wide = _blurred(width / size, height / size, interpolation)
        # After a blur along both axes the picture is smooth enough for the sharper kernel.
        is_cubic = not is_bilinear and (shrink < _LINEAR_FROM or all(wide))
    if any(wide):
        # This is the kernel [1 2 1] / 4, for which OpenCV has the fastest code.
        kernel = (3 if wide[0] else 1, 3 if wide[1] else 1)
        pixels = cv2.GaussianBlur(pixels, kernel, 0, borderType=cv2.BORDER_REPLICATE)
    kind = cv2.INTER_CUBIC if is_cubic else cv2.INTER_LINEAR
    samples = cv2.resize(pixels, (2 * size, 2 * size), interpolation=kind)
    result = cv2.resize(samples, (size, size), interpolation=cv2.INTER_AREA)
    across = _correction(width / size, wide[0], is_bilinear, is_halved)
    down = _correction(height / size, wide[1], is_bilinear, is_halved)
    if len(across) > 1 or len(down) > 1:
        cv2.sepFilter2D(result, -1, across, down, result, borderType=cv2.BORDER_REPLICATE)
    return result


def _blurred(across: float, down: float, interpolation: str) -> tuple[bool, bool]:
    """(width, height): whether each axis is blurred before sampling, from its shrink."""
    least = _BLURRED_FROM[interpolation]
    if across + down < 2 * _BLURRED_BOTH[interpolation]:
        least = math.inf
    # At a shrink of 2 the samples lie on the pixels themselves, without any filter.
    return across >= least or across == 2, down >= least or down == 2


def _correction(shrink: float, is_blurred: bool, is_bilinear: bool, is_halved: bool) -> np.ndarray:
    """The kernel that brings the result closer to Pillow's along an axis."""
    if is_halved:
        return _AS_IT_IS if is_bilinear or shrink > _SHARPENED_TO else _SHARPEN_HALVED
    if not is_bilinear:
        return _SHARPEN if shrink == 2 else _AS_IT_IS
    return _SOFTEN if shrink >= _SOFTENED_FROM and not is_blurred else _AS_IT_IS
