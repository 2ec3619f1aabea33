"""Training augmentation: image -> uint8 (S, S, 3).

The order: crop or squash, mirror, RandAugment, colour jitter, grayscale, affine map, strokes, blur.
"""

import math
import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image, ImageFilter

from clip_jax.arguments import POSITIVE, Checked, Range
from clip_jax.errors import UserError
from clip_jax.files.disk import read_file
from clip_jax.images.colour import Jitter, grayscale, jitter
from clip_jax.images.decoding import (
    JPEG_FORMATS,
    ImageLike,
    decode,
    open_header,
    orientation,
    scaled_jpeg,
    upright_rgb,
)
from clip_jax.images.rand_augment import GREATEST_MAGNITUDE, rand_augment
from clip_jax.images.resampling import (
    Box,
    exact_resize,
    fast_resize,
    interpolation_filter,
    is_fast,
)

_DARKEST, _LIGHTEST = ImageFilter.MinFilter(3), ImageFilter.MaxFilter(3)

# (least shrink, factor): such a JPEG is decoded at 1 / factor. At least 1.5 pixels per output pixel
# must remain, because the decoder's own shrinking is sharper than a resize.
_DECODED_AT = ((12.0, 8), (6.0, 4), (1.9, 2))
_GRID = ((1024, 8), (64, 2))  # (least side of a crop, step of its edges), in pixels

# From this shrink, an output pixel covers a whole stored chroma sample of a 4:2:0 file.
_COARSE_FROM = 2.0


Share = Annotated[float, Range(0, 1)]
JitterFactor = Annotated[float, Range(0, 10)]
Factors = Annotated[tuple[float, float], POSITIVE]  # (lowest, highest)


@dataclass(frozen=True)
class Augmentation(Checked):
    """Settings of the training augmentation. The defaults are open_clip's; other steps are off.

    Raises UserError if a value is out of range.
    """

    # "squash" takes the whole image whatever its aspect (CLIPA, SigLIP), and ignores crop_….
    resize: Literal["crop", "squash"] = "crop"
    # Share of the area; (1, 1) is the central square.
    crop_scale: Annotated[tuple[float, float], Range(0, 1, above=True)] = (0.9, 1.0)
    crop_ratio: Factors = (3 / 4, 4 / 3)  # width / height, drawn on a log scale
    flip_probability: Share = 0.0  # of mirroring left-right; harmful if text is legible
    # RandAugment draws this many operations of 14 for each image (2 is usual), each of a strength
    # out of 30.
    randaugment_operations: Annotated[int, Range(0)] = 0
    randaugment_magnitude: Annotated[float, Range(0, GREATEST_MAGNITUDE)] = 9.0
    # Colour jitter is torchvision's: factors up to 1 ± this (hue: turns of the colour circle).
    brightness: JitterFactor = 0.0
    contrast: JitterFactor = 0.0
    saturation: JitterFactor = 0.0
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    jitter_probability: Share = 1.0  # of all four together
    grayscale_probability: Share = 0.0
    rotation_degrees: Annotated[float, Range(0, 180)] = 0.0  # greatest angle, either way
    shift: Share = 0.0  # greatest shift along each axis, as a fraction of the side
    zoom: Factors = (1.0, 1.0)  # factor, drawn on a log scale; above 1 enlarges
    # Greatest slant either way: horizontal shift per unit of height.
    shear: Annotated[float, Range(0, 2)] = 0.0
    stretch: Factors = (1.0, 1.0)  # width over height, drawn on a log scale
    thicken_probability: Share = 0.0  # of widening dark strokes by a fraction of a pixel
    thin_probability: Share = 0.0  # of narrowing them; excludes thickening
    blur_probability: Share = 0.0  # of a Gaussian blur of 0.3 to 0.9 pixels
    # This decodes and resizes files in a third of the time, with a mean error of about 1 of 255.
    fast_decode: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize not in ("crop", "squash"):
            raise UserError(f"resize={self.resize!r}: choose 'crop' or 'squash'")
        both = self.thicken_probability + self.thin_probability
        if both > 1:
            raise UserError(f"thicken_probability + thin_probability={both:g}: must be at most 1")

    @property
    def crops(self) -> bool:
        """Whether images are cropped at random."""
        return self.resize == "crop" and self.crop_scale != (1.0, 1.0)

    @property
    def jitter(self) -> Jitter:
        """Returns the ranges of the colour jitter."""
        return Jitter(self.brightness, self.contrast, self.saturation, self.hue)

    @property
    def recolours(self) -> bool:
        """Whether any step changes colours."""
        jitters = self.jitter_probability and any(self.jitter)
        return bool(self.randaugment_operations or jitters or self.grayscale_probability)

    @property
    def is_affine(self) -> bool:
        """Whether any step moves, turns or stretches the image."""
        steps = (self.rotation_degrees, self.shift, self.shear)
        return any(steps) or self.zoom != (1.0, 1.0) or self.stretch != (1.0, 1.0)

    @property
    def filters(self) -> bool:
        """Whether any step thickens, thins or blurs strokes."""
        return any((self.thicken_probability, self.thin_probability, self.blur_probability))


def training_image(
    image: ImageLike,
    image_size: int,
    interpolation: str,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> np.ndarray:
    """image -> uint8 (image_size, image_size, 3).

    Steps that are off cost nothing and draw nothing. Equal `rng` states give equal pixels. May
    return `image` itself if nothing is to be done; do not write into the result.

    Raises DecodeError if the image cannot be decoded.
    """
    if isinstance(image, str | os.PathLike):
        image = read_file(image)
    if (
        isinstance(image, np.ndarray)
        and image.shape == (image_size, image_size, 3)
        and image.dtype == np.uint8
        and not augmentation.crops
    ):
        pixels = image
    else:
        interpolation_filter(interpolation)
        if isinstance(image, bytes) and augmentation.fast_decode:
            pixels = _crop_file(image, image_size, interpolation, augmentation, rng)
        else:
            picture = decode(image)
            box = _crop_box(*picture.size, augmentation, rng)
            pixels = exact_resize(picture, box, image_size, interpolation)
    if augmentation.flip_probability and rng.random() < augmentation.flip_probability:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    if augmentation.recolours:
        pixels = _recolour(pixels, augmentation, rng)
    if augmentation.is_affine or augmentation.filters:
        pixels = _redraw(pixels, augmentation, rng)
    return pixels


def _crop_file(
    data: bytes, size: int, interpolation: str, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Crops an encoded image; a JPEG is decoded at no larger scale than needed."""
    opened = open_header(data)
    if opened.format not in JPEG_FORMATS:
        picture = upright_rgb(opened)
        return _resize(picture, _crop_box(*picture.size, augmentation, rng), size, interpolation)
    # A JPEG has the orientation in its header; other formats would decode their pixels for it.
    turn = orientation(opened) - 1
    is_swapped = turn >= 4  # rows and columns, before it is mirrored
    width, height = opened.size[::-1] if is_swapped else opened.size
    box = _crop_box(width, height, augmentation, rng)
    shrink = min(box[2] - box[0], box[3] - box[1]) / size
    factor = next((factor for least, factor in _DECODED_AT if shrink >= least), 1)
    stored = scaled_jpeg(data, opened, factor, is_coarse=shrink >= _COARSE_FROM)
    if stored is None:
        return _resize(upright_rgb(opened), box, size, interpolation)
    left, top, right, bottom = box
    if is_mirrored := turn % 4 in (1, 2):  # left-right
        left, right = width - right, width - left
    if is_flipped := turn % 4 in (2, 3):  # top-bottom
        top, bottom = height - bottom, height - top
    if is_swapped:
        left, top, right, bottom = top, left, bottom, right
    # The box stays fractional: rounded to whole pixels, the result would be 3 levels off.
    box = (left / factor, top / factor, right / factor, bottom / factor)
    if is_fast(box, size, factor):
        left, top, right, bottom = _whole(box)
        pixels = fast_resize(stored[top:bottom, left:right], size, interpolation, factor == 2)
    else:
        pixels = exact_resize(Image.fromarray(stored), box, size, interpolation)
    if turn:
        pixels = pixels.transpose(1, 0, 2) if is_swapped else pixels
        pixels = np.ascontiguousarray(
            pixels[:: -1 if is_flipped else 1, :: -1 if is_mirrored else 1]
        )
    return pixels


def _resize(picture: Image.Image, box: Box, size: int, interpolation: str) -> np.ndarray:
    if not is_fast(box, size):
        return exact_resize(picture, box, size, interpolation)
    return fast_resize(np.asarray(picture.crop(_whole(box))), size, interpolation)


def _whole(box: Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = map(int, box)
    return left, top, right, bottom


def _crop_box(width: int, height: int, augmentation: Augmentation, rng: np.random.Generator) -> Box:
    """(left, top, right, bottom) in pixels, by the rule of torchvision's RandomResizedCrop."""
    if augmentation.resize == "squash":
        return (0, 0, width, height)
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
            return _on_grid((left, top, left + w, top + h))
    # No draw fitted the image's aspect, so take the largest central part of an allowed aspect.
    w, h = width, height
    if width < ratio_low * height:
        h = max(1, round(width / ratio_low))
    elif width > ratio_high * height:
        w = max(1, round(height * ratio_high))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)


def _on_grid(box: tuple[int, int, int, int]) -> Box:
    """Moves edges to pixel boundaries of a JPEG that is decoded smaller, by a pixel or so."""
    side = min(box[2] - box[0], box[3] - box[1])
    step = next((step for least, step in _GRID if side >= least), 1)
    left, top, right, bottom = (edge // step * step for edge in box)
    return (left, top, right, bottom)


def _recolour(
    pixels: np.ndarray, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Applies RandAugment, colour jitter and grayscale."""
    picture = Image.fromarray(pixels)
    if augmentation.randaugment_operations:
        picture = rand_augment(
            picture,
            augmentation.randaugment_operations,
            augmentation.randaugment_magnitude,
            rng,
        )
    limits, probability = augmentation.jitter, augmentation.jitter_probability
    if probability and any(limits) and rng.random() < probability:
        picture = jitter(picture, limits, rng)
    if augmentation.grayscale_probability and rng.random() < augmentation.grayscale_probability:
        picture = grayscale(picture)
    return np.asarray(picture)


def _redraw(pixels: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Applies the affine map, then strokes and blur.

    Pixels from outside get the median colour of the border, per channel, so that a plain
    background stays plain.
    """
    size = pixels.shape[0]
    red = pixels[:, :, 0].tobytes()
    # Drawings and glyphs are grey, and one channel takes half the time of three.
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
    """Rotation, slant, zoom, stretch and shift about the centre in one matrix: output -> input."""
    turn, slant, zoom, across, down, stretch = rng.random(6).tolist()
    angle = math.radians(augmentation.rotation_degrees * (2 * turn - 1))
    slant = augmentation.shear * (2 * slant - 1)
    factor = _log_uniform(augmentation.zoom, zoom)
    aspect = math.sqrt(_log_uniform(augmentation.stretch, stretch))
    # Pillow takes the inverse of shift · rotation · shear · zoom · stretch.
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
    """Widens or narrows strokes by a fraction of a pixel (blends in a 3x3 min or max); blurs."""
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
