"""Crops to squares of pixels: by Pillow, exactly, and by OpenCV, near that in a sixth of the time.

OpenCV's filters take the nearest 2 or 4 pixels whatever the scale, which aliases when it shrinks.
Here they sample twice as densely as wanted and squares of 2 x 2 samples are averaged, in all a
kernel that is close to Pillow's: on real photos the mean difference is 0.3 to 0.8 levels of 255 up
to a shrink by 2, and about 1.1 up to 3.5.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

# By measurement, on photos with detail down to the pixel:
_HALVED_FROM = 2.6  # shrink from which 2 x 2 pixels are averaged first
_LINEAR_FROM = 2.0  # from here dense linear samples are nearer to the cubic kernel than cubic ones
_BLURRED_FROM = 1.5  # from here Pillow's bilinear kernel is wider than ours
_BLUR = np.array([0.04, 0.92, 0.04], np.float32)
_GREATEST_FAST = 3.5  # beyond it the mean difference passes 1.5 levels
_GREATEST_ASPECT = 1.8  # of the two axes' shrinks, likewise; 16:9 squashed to a square is below it


@cache
def _opencv() -> Any:
    import cv2

    # The pipeline has a thread or a process for each core already.
    cv2.setNumThreads(1)
    return cv2


def exact_resize(picture: Image.Image, box: Box, size: int, interpolation: str) -> np.ndarray:
    """RGB picture -> uint8 (size, size, 3) of what lies in `box`, by Pillow."""
    if box == (0, 0, size, size) == (0, 0, *picture.size):
        return np.asarray(picture)
    resample = INTERPOLATIONS[interpolation]
    return np.asarray(picture.resize((size, size), resample, box=box))


def is_fast(box: Box, size: int) -> bool:
    """Whether `fast_resize` does what lies in `box` well: whole pixels, no great shrink."""
    across, down = (box[2] - box[0]) / size, (box[3] - box[1]) / size
    return (
        all(float(edge).is_integer() for edge in box)
        and min(across, down) < _GREATEST_FAST
        and max(across, down) <= _GREATEST_ASPECT * min(across, down)
    )


def fast_resize(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (size, size, 3), by OpenCV; only where `is_fast`."""
    height, width = pixels.shape[:2]
    if height == width == size:
        return np.ascontiguousarray(pixels)
    cv2 = _opencv()
    shrink = math.sqrt(height * width) / size
    is_bilinear = interpolation == "bilinear"
    if is_bilinear and shrink <= 1:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    dense = 2 * size
    if shrink < _HALVED_FROM:
        is_linear = is_bilinear or shrink >= _LINEAR_FROM
        kind = cv2.INTER_LINEAR if is_linear else cv2.INTER_CUBIC
        samples = cv2.resize(pixels, (dense, dense), interpolation=kind)
    else:
        samples = _halve_and_sample(pixels, dense, is_bilinear)
    result = cv2.resize(samples, (size, size), interpolation=cv2.INTER_AREA)
    if is_bilinear and shrink >= _BLURRED_FROM:
        cv2.sepFilter2D(result, -1, _BLUR, _BLUR, result, borderType=cv2.BORDER_REPLICATE)
    return result


def _halve_and_sample(pixels: np.ndarray, dense: int, is_bilinear: bool) -> np.ndarray:
    """uint8 (H, W, 3) -> (dense, dense, 3), where samples lie more than a pixel apart."""
    cv2 = _opencv()
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        border = cv2.BORDER_REPLICATE
        pixels = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, border)
    halved = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    pixels = cv2.resize(pixels, halved, interpolation=cv2.INTER_AREA)
    kind = cv2.INTER_LINEAR if is_bilinear else cv2.INTER_CUBIC
    # By factors, not by size: the row that made an odd number even must not count.
    samples = cv2.resize(
        pixels, None, fx=2 * dense / width, fy=2 * dense / height, interpolation=kind
    )
    return samples[:dense, :dense]
