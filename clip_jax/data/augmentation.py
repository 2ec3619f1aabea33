"""From an image to uint8 (S, S, 3), as training sees it: crop, mirror, affine, strokes, blur."""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from clip_jax.data.decoding import ImageLike, decode, open_header, orientation, upright_rgb
from clip_jax.data.image import interpolation_filter
from clip_jax.data.records import read_file
from clip_jax.errors import UserError

_DARKEST, _LIGHTEST = ImageFilter.MinFilter(3), ImageFilter.MaxFilter(3)


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image. The defaults are open_clip's; every other step is off.

    Raises UserError where a value is out of its range.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)  # share of the area; (1, 1): the central square
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, drawn on a log scale
    flip_probability: float = 0.0  # of mirroring left and right; wrong where text can be read
    rotation_degrees: float = 0.0  # greatest angle, either way
    shift: float = 0.0  # greatest shift along each axis, as a fraction of the side
    zoom: tuple[float, float] = (1.0, 1.0)  # factor, drawn on a log scale; above 1 enlarges
    shear: float = 0.0  # greatest slant either way: horizontal shift a unit of height
    stretch: tuple[float, float] = (1.0, 1.0)  # width over height, drawn on a log scale
    thicken_probability: float = 0.0  # of widening dark strokes by a part of a pixel
    thin_probability: float = 0.0  # of narrowing them; never both
    blur_probability: float = 0.0  # of a Gaussian blur of 0.3 to 0.9 pixels
    fast_decode: bool = True  # JPEG decoded at 1/2, 1/4 or 1/8 where that suffices; other pixels

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "zoom", "stretch"):
            value = tuple(float(bound) for bound in getattr(self, name))
            top = 1.0 if name == "crop_scale" else math.inf
            if len(value) != 2 or not 0 < value[0] <= value[1] <= top:
                raise UserError(
                    f"augmentation's {name} is {value}; accepted is (low, high) with"
                    f" 0 < low <= high{' <= 1' if name == 'crop_scale' else ''}"
                )
            object.__setattr__(self, name, value)
        limits = {
            "flip_probability": 1.0,
            "rotation_degrees": 180.0,
            "shift": 1.0,
            "shear": 2.0,
            "thicken_probability": 1.0,
            "thin_probability": 1.0,
            "blur_probability": 1.0,
        }
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise UserError(
                    f"augmentation's {name} is {getattr(self, name)}; accepted is 0 to {limit:g}"
                )
        if self.thicken_probability + self.thin_probability > 1:
            raise UserError(
                f"augmentation's thicken_probability + thin_probability is "
                f"{self.thicken_probability + self.thin_probability:g}; accepted is at most 1"
            )

    @property
    def crops(self) -> bool:
        return self.crop_scale != (1.0, 1.0)

    @property
    def is_affine(self) -> bool:
        steps = (self.rotation_degrees, self.shift, self.shear)
        return any(steps) or self.zoom != (1.0, 1.0) or self.stretch != (1.0, 1.0)

    @property
    def filters(self) -> bool:
        return any((self.thicken_probability, self.thin_probability, self.blur_probability))


def training_image(
    image: ImageLike,
    image_size: int,
    interpolation: str,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> np.ndarray:
    """image -> uint8 (image_size, image_size, 3): random resized crop, mirror, affine map.

    Steps that are off cost nothing and draw nothing. Equal `rng` state, equal pixels. May return
    `image` itself, where nothing is to be done; do not write into the result.

    Raises DecodeError where the image cannot be decoded.
    """
    if (
        isinstance(image, np.ndarray)
        and image.shape == (image_size, image_size, 3)
        and image.dtype == np.uint8
        and not augmentation.crops
    ):
        pixels = image
    else:
        pixels = _crop(image, image_size, interpolation_filter(interpolation), augmentation, rng)
    if augmentation.flip_probability and rng.random() < augmentation.flip_probability:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    if augmentation.is_affine or augmentation.filters:
        pixels = _redraw(pixels, augmentation, rng)
    return pixels


def _crop(
    image: ImageLike,
    image_size: int,
    resample: Image.Resampling,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> np.ndarray:
    """Crop in full-size pixels, then one resize; the decoder may have made a smaller picture."""
    if isinstance(image, str | os.PathLike):
        image = read_file(image)
    if augmentation.fast_decode and isinstance(image, bytes) and image[:2] == b"\xff\xd8":
        opened = open_header(image)
        width, height = opened.size
        if orientation(opened) >= 5:
            width, height = height, width
        box = _crop_box(width, height, augmentation, rng)
        shrink = min(box[2] - box[0], box[3] - box[1]) / image_size
        if shrink >= 2:
            stored = opened.size
            opened.draft("RGB", (math.ceil(stored[0] / shrink), math.ceil(stored[1] / shrink)))
        picture = upright_rgb(opened)
        x, y = picture.width / width, picture.height / height
        box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    else:
        picture = decode(image)
        box = _crop_box(*picture.size, augmentation, rng)
    if box == (0, 0, image_size, image_size) == (0, 0, *picture.size):
        return np.asarray(picture)
    return np.asarray(picture.resize((image_size, image_size), resample, box=box))


def _crop_box(
    width: int, height: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels, by the rule of torchvision's RandomResizedCrop."""
    if not augmentation.crops:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side)
    low, high = augmentation.crop_scale
    ratio_low, ratio_high = augmentation.crop_ratio
    log_low, log_span = math.log(ratio_low), math.log(ratio_high / ratio_low)
    for _ in range(10):
        scale, ratio, across, down = rng.random(4).tolist()
        area = width * height * (low + (high - low) * scale)
        aspect = math.exp(log_low + log_span * ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return (left, top, left + w, top + h)
    # Too long or too wide for every draw: the largest central part within the allowed aspects.
    w, h = width, height
    if width < ratio_low * height:
        h = max(1, round(width / ratio_low))
    elif width > ratio_high * height:
        w = max(1, round(height * ratio_high))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)


def _redraw(pixels: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """The affine map, then strokes and blur.

    What comes in from outside has the median colour of the border, channel by channel: a plain
    background stays plain.
    """
    size = pixels.shape[0]
    red = pixels[:, :, 0].tobytes()
    # Drawings and glyphs: one channel takes half the time of three.
    is_grey = red == pixels[:, :, 1].tobytes() == pixels[:, :, 2].tobytes()
    fill: Any
    if is_grey:
        picture = Image.frombuffer("L", (size, size), red, "raw", "L", 0, 1)
        fill = _border_median(np.frombuffer(red, np.uint8).reshape(size, size))
    else:
        picture = Image.fromarray(pixels)
        fill = tuple(_border_median(pixels))
    if augmentation.is_affine:
        picture = picture.transform(
            picture.size,
            Image.Transform.AFFINE,
            _affine_matrix(size, augmentation, rng),
            Image.Resampling.BILINEAR,
            fillcolor=fill,
        )
    if augmentation.filters:
        picture = _filter(picture, augmentation, rng)
    if is_grey:
        return np.repeat(np.frombuffer(picture.tobytes(), np.uint8), 3).reshape(size, size, 3)
    return np.asarray(picture)


def _affine_matrix(
    size: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[float, ...]:
    """Rotation, slant, zoom, stretch and shift about the centre, in one step: output -> input."""
    turn, slant, zoom, across, down, stretch = rng.random(6).tolist()
    angle = math.radians(augmentation.rotation_degrees * (2 * turn - 1))
    slant = augmentation.shear * (2 * slant - 1)
    factor = _log_uniform(augmentation.zoom, zoom)
    aspect = math.sqrt(_log_uniform(augmentation.stretch, stretch))
    # Pillow wants the inverse of shift · rotation · shear · zoom · stretch.
    wide, high = 1 / (factor * aspect), aspect / factor
    cos, sin = math.cos(angle), math.sin(angle)
    a, b = (cos + slant * sin) * wide, (sin - slant * cos) * wide
    d, e = -sin * high, cos * high
    centre = size / 2
    x = centre + augmentation.shift * size * (2 * across - 1)
    y = centre + augmentation.shift * size * (2 * down - 1)
    return (a, b, centre - a * x - b * y, d, e, centre - d * x - e * y)


def _log_uniform(bounds: tuple[float, float], share: float) -> float:
    low, high = bounds
    return low * (high / low) ** share


def _filter(
    picture: Image.Image, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
    """Strokes a part of a pixel wider or narrower (blended with a 3x3 minimum or maximum), blur."""
    stroke, strength, blur, radius = rng.random(4).tolist()
    thicken, thin = augmentation.thicken_probability, augmentation.thin_probability
    if stroke < thicken + thin:
        changed = picture.filter(_DARKEST if stroke < thicken else _LIGHTEST)
        picture = Image.blend(picture, changed, 0.2 + 0.6 * strength)
    if blur < augmentation.blur_probability:
        picture = picture.filter(ImageFilter.GaussianBlur(0.3 + 0.6 * radius))
    return picture


def _border_median(pixels: np.ndarray) -> Any:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    border.sort(axis=0)
    return border[len(border) // 2].tolist()
