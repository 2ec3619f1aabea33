"""Evaluation transform: image -> uint8 (S, S, 3); training is in `augmentation.py`.

Scaling to [0, 1], mean and standard deviation are applied on the device, which receives a quarter
of the bytes that way.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image

from clip_jax.arguments import POSITIVE, Checked, Range
from clip_jax.errors import UserError
from clip_jax.images.decoding import ImageLike, decode
from clip_jax.images.resampling import INTERPOLATIONS, interpolation_filter
from clip_jax.models.kinds import OPENAI_MEAN, OPENAI_STD

RESIZES = ("shortest", "longest", "squash")

# A picture of 100,000 x 1 pixels would grow to gigabytes: beyond this aspect only the cropped part
# is computed, which is equal up to rounding.
_LONGEST_RESIZED_SIDES = 64


@dataclass(frozen=True)
class ImageTransform(Checked):
    """The evaluation transform: image -> uint8 (image_size, image_size, 3).

    "shortest" equals torchvision's `Resize(image_size)` on PIL images and `CenterCrop`, to the
    bit, for RGB images: the longer side is truncated to an integer, the crop's offset rounded half
    to even. "longest" equals open_clip's: the whole image at most image_size wide and high, centred
    on `fill`; the odd pixel of the border is right or below. "squash" ignores the aspect. `mean`
    and `std` are only carried along for the device, which applies them.
    """

    image_size: Annotated[int, POSITIVE] = 224  # pixels, both sides
    resize: str = "shortest"  # or "longest", "squash"
    interpolation: str = "bicubic"  # or "bilinear"; both antialiased
    mean: tuple[float, float, float] = OPENAI_MEAN  # of channels scaled to [0, 1]
    std: tuple[float, float, float] = OPENAI_STD
    fill: Annotated[int, Range(0, 255)] = 0  # all channels: border of "longest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize not in RESIZES:
            raise UserError(f"resize {self.resize!r} is unknown; known are {', '.join(RESIZES)}")
        interpolation_filter(self.interpolation)

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Transforms one image. Raises DecodeError if it cannot be decoded."""
        size = self.image_size
        picture = decode(image)
        width, height = picture.size
        if (width, height) == (size, size):
            return np.asarray(picture)
        resample = INTERPOLATIONS[self.interpolation]
        if self.resize == "squash":
            return np.asarray(picture.resize((size, size), resample))
        if self.resize == "longest":
            return self._longest(picture)
        if width <= height:
            new_width, new_height = size, int(size * height / width)
        else:
            new_width, new_height = int(size * width / height), size
        left = round((new_width - size) / 2.0)  # Python rounds half to even, like torchvision
        top = round((new_height - size) / 2.0)
        if max(new_width, new_height) > _LONGEST_RESIZED_SIDES * size:
            x, y = width / new_width, height / new_height
            box = (left * x, top * y, (left + size) * x, (top + size) * y)
            return np.asarray(picture.resize((size, size), resample, box=box))
        resized = picture.resize((new_width, new_height), resample)
        return np.asarray(resized.crop((left, top, left + size, top + size)))

    def _longest(self, picture: Image.Image) -> np.ndarray:
        size = self.image_size
        # This is open_clip's rule with its order of operations and Python's rounding half to even.
        ratio = max(picture.width / size, picture.height / size)
        width, height = (max(1, round(side / ratio)) for side in picture.size)
        if picture.size != (width, height):
            picture = picture.resize((width, height), INTERPOLATIONS[self.interpolation])
        canvas = Image.new("RGB", (size, size), (self.fill,) * 3)
        canvas.paste(picture, ((size - width) // 2, (size - height) // 2))
        return np.asarray(canvas)
