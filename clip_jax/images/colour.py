"""Colour jitter and grayscale of RGB pictures."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance


class Jitter(NamedTuple):
    """Limits of colour jitter, as in torchvision's ColorJitter; 0 disables one.

    The first three x allow factors of 1 - x to 1 + x, at least 0. Hue is in turns, at most 0.5.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float


_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def jitter(picture: Image.Image, limits: Jitter, rng: np.random.Generator) -> Image.Image:
    """Changes each of the four by a random amount within its limit, in random order."""
    order = rng.permutation(len(limits)).tolist()
    shares = rng.random(len(limits)).tolist()
    for place in order:
        name, limit = limits._fields[place], limits[place]
        if not limit:
            continue
        if name == "hue":
            picture = turn_hue(picture, limit * (2 * shares[place] - 1))
            continue
        low = max(0.0, 1 - limit)
        factor = low + (1 + limit - low) * shares[place]
        picture = _ENHANCERS[name](picture).enhance(factor)
    return picture


def turn_hue(picture: Image.Image, turns: float) -> Image.Image:
    """Moves every colour around the colour circle; greys stay."""
    hue, saturation, value = picture.convert("HSV").split()
    shift = round(turns * 256)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def grayscale(picture: Image.Image) -> Image.Image:
    """RGB picture with the luma (ITU-R 601) in all channels."""
    return picture.convert("L").convert("RGB")
