"""From an image to uint8 (S, S, 3): the evaluation transform and the training augmentation.

Scaling to [0, 1], mean and standard deviation are applied on the device, so that a quarter of the
bytes crosses to it.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.decoding import (
    MAX_IMAGE_PIXELS,
    ImageLike,
    decode,
    open_header,
    orientation,
    upright_rgb,
)
from clip_jax.data.records import DecodeError, read_file
from clip_jax.errors import UserError

__all__ = [
    "INTERPOLATIONS",
    "MAX_IMAGE_PIXELS",
    "OPENAI_MEAN",
    "OPENAI_STD",
    "Augmentation",
    "DecodeError",
    "ImageLike",
    "ImageTransform",
    "decode",
    "training_image",
]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
RESIZES = ("shortest", "squash")

# A picture of 100,000 x 1 pixels would grow to gigabytes: beyond this aspect only the part that the
# crop keeps is computed, which is the same up to rounding.
_LONGEST_RESIZED_SIDES = 64


def _interpolation(name: str) -> Image.Resampling:
    if name not in INTERPOLATIONS:
        raise UserError(f"interpolation {name!r} is unknown; known are {', '.join(INTERPOLATIONS)}")
    return INTERPOLATIONS[name]


@dataclass(frozen=True)
class ImageTransform:
    """The evaluation transform: image -> uint8 (image_size, image_size, 3).

    "shortest" equals torchvision's `Resize(image_size)` on PIL images and `CenterCrop`, to the
    bit, for images that are RGB: the longer side is truncated to an integer, the offset of the crop
    rounded half to even. "squash" ignores the aspect. `mean` and `std` are not applied here; they
    travel along because the device applies them.
    """

    image_size: int = 224  # pixels, both sides
    resize: str = "shortest"  # or "squash"
    interpolation: str = "bicubic"  # or "bilinear"; both antialiased
    mean: tuple[float, float, float] = OPENAI_MEAN  # of channels scaled to [0, 1]
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise UserError(f"resize {self.resize!r} is unknown; known are {', '.join(RESIZES)}")
        _interpolation(self.interpolation)
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise UserError(f"image_size {self.image_size!r} is not a positive whole number")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3:
                raise UserError(f"image transform's {name} has {len(values)} values instead of 3")
            object.__setattr__(self, name, values)

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Raises DecodeError where the image cannot be decoded."""
        size = self.image_size
        picture = decode(image)
        width, height = picture.size
        if (width, height) == (size, size):
            return np.asarray(picture)
        resample = INTERPOLATIONS[self.interpolation]
        if self.resize == "squash":
            return np.asarray(picture.resize((size, size), resample))
        if width <= height:
            new_width, new_height = size, int(size * height / width)
        else:
            new_width, new_height = int(size * width / height), size
        left = round((new_width - size) / 2.0)  # Python rounds half to even, as torchvision does
        top = round((new_height - size) / 2.0)
        if max(new_width, new_height) > _LONGEST_RESIZED_SIDES * size:
            x, y = width / new_width, height / new_height
            box = (left * x, top * y, (left + size) * x, (top + size) * y)
            return np.asarray(picture.resize((size, size), resample, box=box))
        resized = picture.resize((new_width, new_height), resample)
        return np.asarray(resized.crop((left, top, left + size, top + size)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives an equal transform."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageTransform":
        """Raises UserError on an unknown key or value."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(
                    f"image transform has unknown key {name!r}; known are {', '.join(known)}"
                )
        return cls(**values)


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
    fast_decode: bool = True  # JPEG decoded at 1/2, 1/4 or 1/8 where that suffices; other pixels

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "zoom"):
            value = tuple(float(bound) for bound in getattr(self, name))
            top = 1.0 if name == "crop_scale" else math.inf
            if len(value) != 2 or not 0 < value[0] <= value[1] <= top:
                raise UserError(
                    f"augmentation's {name} is {value}; accepted is (low, high) with"
                    f" 0 < low <= high{' <= 1' if name == 'crop_scale' else ''}"
                )
            object.__setattr__(self, name, value)
        limits = {"flip_probability": 1.0, "rotation_degrees": 180.0, "shift": 1.0, "shear": 2.0}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise UserError(
                    f"augmentation's {name} is {getattr(self, name)}; accepted is 0 to {limit:g}"
                )

    @property
    def crops(self) -> bool:
        return self.crop_scale != (1.0, 1.0)

    @property
    def is_affine(self) -> bool:
        return bool(self.rotation_degrees or self.shift or self.shear or self.zoom != (1.0, 1.0))

    @property
    def is_random(self) -> bool:
        return bool(self.crops or self.is_affine or self.flip_probability)


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
        pixels = _crop(image, image_size, _interpolation(interpolation), augmentation, rng)
    if augmentation.flip_probability and rng.random() < augmentation.flip_probability:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    if augmentation.is_affine:
        pixels = _affine(pixels, augmentation, rng)
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


def _affine(pixels: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Rotation, slant, zoom and shift about the centre, bilinear, in one step.

    What comes in from outside has the median colour of the border, channel by channel: a plain
    background stays plain.
    """
    size = pixels.shape[0]
    turn, slant, zoom, across, down = rng.random(5).tolist()
    angle = math.radians(augmentation.rotation_degrees * (2 * turn - 1))
    slant = augmentation.shear * (2 * slant - 1)
    zoom_low, zoom_high = augmentation.zoom
    factor = zoom_low * (zoom_high / zoom_low) ** zoom
    # Pillow wants output -> input: the inverse of shift · rotation · shear · zoom.
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    a, b = cos + slant * sin, sin - slant * cos
    d, e = -sin, cos
    centre = size / 2
    x = centre + augmentation.shift * size * (2 * across - 1)
    y = centre + augmentation.shift * size * (2 * down - 1)
    matrix = (a, b, centre - a * x - b * y, d, e, centre - d * x - e * y)
    red = pixels[:, :, 0].tobytes()
    if red == pixels[:, :, 1].tobytes() == pixels[:, :, 2].tobytes():
        # Drawings and glyphs: one channel takes half the time of three.
        fill = _border_median(np.frombuffer(red, np.uint8).reshape(size, size))
        picture = Image.frombuffer("L", (size, size), red, "raw", "L", 0, 1)
        moved = _transform(picture, matrix, fill).tobytes()
        return np.repeat(np.frombuffer(moved, np.uint8), 3).reshape(size, size, 3)
    return np.asarray(_transform(Image.fromarray(pixels), matrix, tuple(_border_median(pixels))))


def _transform(picture: Image.Image, matrix: tuple[float, ...], fill: Any) -> Image.Image:
    method, resample = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return picture.transform(picture.size, method, matrix, resample, fillcolor=fill)


def _border_median(pixels: np.ndarray) -> Any:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    border.sort(axis=0)
    return border[len(border) // 2].tolist()
