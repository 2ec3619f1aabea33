"""Encoded images made smaller or of another format, or left as they are."""

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
    """What is done to images.

    `resize`: pixels that the shorter side has at most; None: as they are. `encode`: "keep" writes
    what has to be written anew in its own format (AVIF as JPEG; GIF, BMP, TIFF, PPM and bare pixels
    as PNG).
    """

    resize: int | None = None
    encode: str = "keep"
    quality: int = 95  # of JPEG and WebP, 1 to 100

    def __call__(self, image: bytes | np.ndarray) -> bytes:
        """The very bytes where nothing has to be done; otherwise upright RGB, alpha on white.

        Raises DecodeError where the image cannot be decoded completely, or not be written.
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
        except (OSError, ValueError) as error:  # more pixels a side than the format can have
            raise DecodeError(
                f"image of {picture.width}x{picture.height} cannot be written as {encode}: {error}"
            ) from error
        return buffer.getvalue()


def image_bytes(record: Record) -> bytes:
    """The encoded file, or the pixels of a source that has those."""
    image = record.image
    return image.tobytes() if isinstance(image, np.ndarray) else image


def extension_of(image: bytes) -> str:
    """By what is inside, such as "jpg". Raises DecodeError where it is no known image."""
    found = open_header(image).format or ""
    return _FORMATS[found][1] if found in _FORMATS else found.lower()
