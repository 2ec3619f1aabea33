"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719): a few of 14 operations, one strength.

Operations, their ranges and the scale of magnitudes are torchvision's; pixels from outside the
picture are black.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GREATEST_MAGNITUDE = 30.0

_SHEAR = 0.3  # greatest, per unit of width or height
_SHIFT = 150 / 331  # greatest, as a share of the side
_DEGREES = 30.0
_ENHANCEMENT = 0.9  # factors from 0.1 to 1.9
_BITS = 4  # greatest reduction from 8

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(picture: Image.Image, slant: tuple[float, float], shift: tuple[float, float]):
    """Slants about the centre, then shifts by a share of the sides."""
    width, height = picture.size
    (across, down), x, y = slant, width * shift[0], height * shift[1]
    matrix = (1, across, -across * height / 2 - x, down, 1, -down * width / 2 - y)
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def _enhancement(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda picture, strength: kind(picture).enhance(1 + _ENHANCEMENT * strength)


# Name -> (function of a strength, whether the strength may be negative: -1 to 1 instead of 0 to 1).
OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "identity": (lambda picture, _: picture, False),
    "shear_x": (lambda picture, s: _affine(picture, (_SHEAR * s, 0), (0, 0)), True),
    "shear_y": (lambda picture, s: _affine(picture, (0, _SHEAR * s), (0, 0)), True),
    "translate_x": (lambda picture, s: _affine(picture, (0, 0), (_SHIFT * s, 0)), True),
    "translate_y": (lambda picture, s: _affine(picture, (0, 0), (0, _SHIFT * s)), True),
    "rotate": (
        lambda picture, s: picture.rotate(_DEGREES * s, Image.Resampling.BILINEAR),
        True,
    ),
    "brightness": (_enhancement(ImageEnhance.Brightness), True),
    "color": (_enhancement(ImageEnhance.Color), True),
    "contrast": (_enhancement(ImageEnhance.Contrast), True),
    "sharpness": (_enhancement(ImageEnhance.Sharpness), True),
    "posterize": (lambda picture, s: ImageOps.posterize(picture, 8 - round(_BITS * s)), False),
    "solarize": (lambda picture, s: ImageOps.solarize(picture, round(256 * (1 - s))), False),
    "autocontrast": (lambda picture, _: ImageOps.autocontrast(picture), False),
    "equalize": (lambda picture, _: ImageOps.equalize(picture), False),
}
_NAMES = tuple(OPERATIONS)


def rand_augment(
    picture: Image.Image, operations: int, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    """RGB -> RGB of the same size, after `operations` drawn with replacement.

    `magnitude` is from 0 to `GREATEST_MAGNITUDE`; at 0 only autocontrast and equalize do anything.
    """
    for which, side in rng.random((operations, 2)).tolist():
        operation, has_sides = OPERATIONS[_NAMES[int(which * len(_NAMES))]]
        strength = magnitude / GREATEST_MAGNITUDE
        picture = operation(picture, -strength if has_sides and side < 0.5 else strength)
    return picture
