"""Resizing and re-encoding of encoded images."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clip_jax.data.records import Record
from clip_jax.errors import DecodeError
from clip_jax.images.decoding import decode, open_header

ENCODINGS = ("keep", "jpeg", "webp", "png")

# Pillow's name of a format -> (the encoding that writes it, file extension).
_FORMATS = {
    "JPEG": ("jpeg", "jpg"),
    "MPO": ("jpeg", "jpg"),
    "PNG": ("png", "png"),
    "WEBP": ("webp", "webp"),
    "AVIF": ("", "avif"),
    "GIF": ("", "gif"),
    "BMP": ("", "bmp"),
    "TIFF": ("", "tif"),
    "PPM": ("", "ppm"),
}


@dataclass(frozen=True)
class Recoding:
    """Recoding of images.

    `resize`: limit of the shorter side in pixels; None keeps the size. `encode`: "keep" re-encodes,
    if needed, in the same format (AVIF as JPEG; GIF, BMP, TIFF, PPM and bare pixels as PNG).
    """

    resize: int | None = None
    encode: str = "keep"
    quality: int = 95  # for JPEG and WebP, 1 to 100

    def __call__(self, image: bytes | np.ndarray) -> bytes:
        """The same bytes if nothing has to be done; otherwise upright RGB, alpha on white, encoded.

        Raises DecodeError if the image cannot be decoded completely or encoded.
        """
        found, own = None, ""
        if isinstance(image, bytes):
            found = open_header(image).format
            own = _FORMATS.get(found or "", ("", ""))[0]
        picture = decode(image)
        shorter = min(picture.size)
        too_large = self.resize is not None and shorter > self.resize
        if isinstance(image, bytes) and not too_large and self.encode in ("keep", own):
            return image
        if self.resize is not None and too_large:
            width, height = (max(1, round(side * self.resize / shorter)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)  # antialiased
        encode = self.encode
        if encode == "keep":
            encode = own or ("jpeg" if found == "AVIF" else "png")
        return self._written(picture, encode)

    def _written(self, picture: Image.Image, encode: str) -> bytes:
        options = {} if encode == "png" else {"quality": self.quality}
        buffer = io.BytesIO()
        try:
            picture.save(buffer, encode.upper(), **options)
        except (OSError, ValueError) as error:  # a side exceeds the format's limit
            raise DecodeError(
                f"image of {picture.width}x{picture.height} cannot be written as {encode}: {error}"
            ) from error
        return buffer.getvalue()


def image_bytes(record: Record) -> bytes:
    """The encoded file, or the raw pixels if the source has only these."""
    image = record.image
    return image.tobytes() if isinstance(image, np.ndarray) else image


def extension_of(image: bytes) -> str:
    """File extension by content, such as "jpg". Raises DecodeError for an unknown image."""
    found = open_header(image).format or ""
    return _FORMATS[found][1] if found in _FORMATS else found.lower()
