"""Images as a camera or a channel might spoil them, for measures of robustness.

The common corruptions are those of Hendrycks & Dietterich 2019, 15 kinds in 5 severities, by the
library imagecorruptions-imaug; they apply to pixels at the size of the model, as in ImageNet-C.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
KINDS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
SMALLEST = 32  # pixels, of the library
_SEEDED = ("glass_blur", "impulse_noise")  # take a seed; the others draw from numpy's generator


def corrupt(images: np.ndarray, kind: str, severity: int) -> np.ndarray:
    """Corrupts images, uint8 (B, S, S, 3) -> the same; the draws depend on the pixels alone.

    Raises UserError: the library is missing, or the images are too small for it.
    """
    if images.shape[1] < SMALLEST:
        raise UserError(f"images of {images.shape[1]} pixels: corruptions need {SMALLEST}")
    library = _library()
    spoiled = []
    with _random_state():
        for image in images:
            seed = zlib.crc32(image.tobytes())
            np.random.seed(seed)
            own = {"seed": seed} if kind in _SEEDED else {}
            spoiled.append(library.corrupt(image, severity, kind, **own))
    return np.stack(spoiled)


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Shrinks images to `size` pixels and enlarges them again, uint8 (B, S, S, 3) -> the same."""
    side = images.shape[1]
    bicubic = Image.Resampling.BICUBIC
    small = (Image.fromarray(image).resize((size, size), bicubic) for image in images)
    return np.stack([np.asarray(image.resize((side, side), bicubic)) for image in small])


def _library() -> Any:
    try:
        import imagecorruptions
    except ImportError as error:
        raise UserError(
            "corruptions need a library: pip install scikit-image numba, then pip install --no-deps"
            f" imagecorruptions-imaug ({error})"
        ) from error
    return imagecorruptions


@contextmanager
def _random_state() -> Iterator[None]:
    """Keeps numpy's global generator, which the library draws from, as it was."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
