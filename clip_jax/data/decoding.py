"""Decoding of whatever the web has to upright RGB; what is broken or a bomb is refused.

OpenAI resizes and crops first and converts to RGB last, so palette, alpha and CMYK images are
resized in their own mode there (palette images by nearest neighbour). Here every image is upright
RGB, alpha on white, before it is resized: the same for RGB and grey images, and the only sane
result for the others.
"""

import io
import math
import os
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.records import DecodeError, read_file

ImageLike = Image.Image | np.ndarray | bytes | os.PathLike[str] | str

MAX_IMAGE_PIXELS = 178_956_970  # more declared pixels than this are taken for a decompression bomb

# A list of its own: among Pillow's other formats is one that starts Ghostscript (EPS).
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")

JPEG_FORMATS = ("JPEG", "MPO")

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(image: ImageLike) -> Image.Image:
    """Any image -> upright PIL image of mode RGB.

    Takes a PIL image, encoded bytes, a path, or uint8 pixels (H, W), (H, W, 1), (H, W, 3) or
    (H, W, 4 with alpha). EXIF orientation is applied; alpha is put on white; 16-bit grey is scaled
    to 8 bits; of an animation the first frame is taken.

    Raises:
      DecodeError: unreadable, truncated, corrupt, without pixels, not an image of a known format,
        or declaring more than `MAX_IMAGE_PIXELS` (found in the header, before anything is
        allocated).
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image))
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    return upright_rgb(open_header(image))


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if 0 in pixels.shape:
        raise DecodeError(f"image has no pixels: array of shape {pixels.shape}")
    known = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not known:
        raise DecodeError(
            f"image array is {pixels.dtype} {pixels.shape}; accepted is uint8 (H, W), (H, W, 1),"
            " (H, W, 3) or (H, W, 4)"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def open_header(image: bytes | os.PathLike[str] | str) -> Image.Image:
    """Reads the header only, no pixels yet; refuses decompression bombs. Raises DecodeError."""
    data = image if isinstance(image, bytes) else read_file(image)
    if not data:
        raise DecodeError("image is empty (0 bytes)")
    try:
        opened = Image.open(io.BytesIO(data), formats=_known_formats())
    except Image.DecompressionBombError as error:
        raise DecodeError(f"decompression bomb: {error}", "image_bomb") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on hostile bytes
        raise DecodeError(_reason(error, data)) from error
    width, height = opened.size
    # Pillow has the same limit, but programs that use it often lift that.
    if width * height > MAX_IMAGE_PIXELS:
        raise DecodeError(
            f"decompression bomb: declares {width}x{height} pixels, more than {MAX_IMAGE_PIXELS:,}",
            "image_bomb",
        )
    return opened


def _reason(error: Exception, data: bytes | None = None) -> str:
    """One line without object addresses, the same in every process."""
    if isinstance(error, Image.UnidentifiedImageError) and data is not None:
        return f"not an image of a known format (begins with {data[:8]!r})"
    return " ".join(str(error).split()) or type(error).__name__


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or the EXIF block is nonsense."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # parsing untrusted bytes; a broken EXIF block does not make a bad image
        return 1
    return value if value in _UPRIGHT else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decodes an opened image, turns it upright and makes it RGB; `DecodeError` where it cannot."""
    try:
        if 0 in image.size:
            raise DecodeError(f"image has no pixels: {image.width}x{image.height}")
        # load() does nothing where it was done; it decodes completely or not at all.
        image.load()
        # After load: some formats (TIFF) turn the picture there and take the tag away.
        transpose = _UPRIGHT.get(orientation(image))
        image = _to_rgb(image)
        return image.transpose(transpose) if transpose is not None else image
    except DecodeError:
        raise
    except Exception as error:  # as in open_header
        raise DecodeError(_reason(error)) from error


def scaled_jpeg(
    data: bytes, opened: Image.Image, factor: int = 1, is_coarse: bool = False
) -> np.ndarray | None:
    """JPEG bytes -> RGB uint8 (ceil(H / factor), ceil(W / factor), 3), as stored, not upright.

    Args:
      data: the file.
      opened: its header, from `open_header`.
      factor: 1, 2, 4 or 8; the decoder then computes so many pixels fewer each way.
      is_coarse: colours between the stored ones of 4:2:0 files are not interpolated; for images
        that are shrunk to half or less afterwards.

    Returns:
      None where it has four channels, or where the decoder finds anything odd, be it only a
      warning: Pillow is to judge then, as for every other format.
    """
    simplejpeg = _simplejpeg()
    if simplejpeg is None or opened.format not in JPEG_FORMATS or opened.mode not in ("RGB", "L"):
        return None
    width, height = opened.size
    try:
        # The header as this decoder reads it: what was checked for bombs must be what is decoded.
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None
        smaller = (math.ceil(height / factor), math.ceil(width / factor))
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastupsample=is_coarse,
            min_height=smaller[0],
            min_width=smaller[1],
        )
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == smaller else None


@cache
def _simplejpeg() -> Any:
    """The module; None on machines for which there is no wheel of it."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_to_8_bits(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> np.ndarray:
    """uint8 (H, W) of a grey image of 16 or 32 bits or of floats.

    Integers are taken as 16 bits, as PNG and PGM store them; floats as [0, 1] where all are within
    it, as [0, 255] otherwise. Pillow's own conversion clips at 255: nearly all white.
    """
    pixels = np.asarray(image)
    if image.mode == "F":
        pixels = np.nan_to_num(pixels)
        scaled = pixels * 255.0 if pixels.size and pixels.max() <= 1.0 else pixels
    else:
        scaled = pixels.astype(np.float32) / 257.0
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
