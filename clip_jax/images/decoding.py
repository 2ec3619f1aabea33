"""Decoding of images from the web to upright RGB; broken ones and bombs are refused.

OpenAI resizes and crops first and converts to RGB last, so palette, alpha and CMYK images are
resized in their own mode (palette images by nearest neighbour). This decoder converts every image
to upright RGB, alpha on white, before it is resized: equal for RGB and grey images, and the only
sane result for the others.
"""

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import IO, Any

import numpy as np
from PIL import Image

from clip_jax.arguments import shown
from clip_jax.errors import DecodeError, one_line
from clip_jax.files.disk import read_file
from clip_jax.images.levels import SIXTEEN_BITS, eight_bits, to_levels, white_of

# One image; arrays include anything that numpy can convert, such as tensors.
ImageLike = Image.Image | np.ndarray | bytes | os.PathLike[str] | str | IO[bytes]

# More declared pixels count as a decompression bomb; up to these limits every format and mode stays
# below 1 GiB and 5 s. WebP takes 17 bytes per pixel, progressive JPEG 10; the largest cameras write
# JPEGs of 102 million pixels.
MAX_IMAGE_PIXELS = 52_000_000
MAX_JPEG_PIXELS = 102_000_000
_STRIP_PIXELS = 4_000_000  # converted at a time if a conversion makes copies

# A decoder passes over the whole picture for each scan, which may be only a dozen bytes.
_MAX_SCANS = 100  # a progressive JPEG has about ten
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # those with a length, begin and end
_BEGIN, _END = b"\xd8", b"\xd9"

# A corrupt EXIF block does not make an image bad, and every worker would warn of each.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our own limits apply

# The list is explicit because one of Pillow's other formats (EPS) starts Ghostscript.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")

JPEG_FORMATS = ("JPEG", "MPO")

_ORIENTATION_TAG = 0x0112
_BITS_TAG = 0x0102  # TIFF's BitsPerSample
_TWELVE_BITS = 4095
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

    Takes a PIL image, encoded bytes, a path, a file opened for reading bytes (read from its
    beginning), or an array of pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4 with alpha) of any
    numeric type: see `clip_jax.images.levels`. EXIF orientation is applied; alpha is put on white;
    animations give their first frame.

    Raises:
      DecodeError: unreadable, truncated, corrupt, without pixels, not an image of a known format,
        declaring more than `MAX_IMAGE_PIXELS`, or `MAX_JPEG_PIXELS` for a JPEG (checked in the
        header, before any allocation), a JPEG of more than a hundred scans, or numbers of an
        ambiguous range.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if is_array(image):
        return _to_rgb(_from_array(as_array(image)))
    return upright_rgb(open_header(image))


def is_array(value: Any) -> bool:
    """Whether numpy can convert it, for example a tensor; False for text and pictures."""
    return hasattr(value, "__array__") and not isinstance(value, str | bytes | Image.Image)


def as_array(value: Any) -> np.ndarray:
    """The value as an array. Raises DecodeError if numpy cannot read it, as on another device."""
    try:
        return np.asarray(value)
    except Exception as error:  # the object's own code may raise anything
        raise DecodeError(f"array cannot be read: {one_line(error)}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    shape = pixels.shape
    if 0 in shape and len(shape) in (2, 3):
        raise DecodeError(f"image has no pixels: array of shape {shape}")
    if len(shape) != 2 and (len(shape) != 3 or shape[2] not in (1, 3, 4)):
        hint = ""
        if len(shape) == 3 and shape[0] in (1, 3, 4):
            hint = "; its channels come first: give image.transpose(1, 2, 0)"
        raise DecodeError(
            f"image array is {pixels.dtype} {shape}; accepted is (H, W), (H, W, 1), (H, W, 3) or"
            f" (H, W, 4){hint}"
        )
    if len(shape) == 3 and shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(eight_bits(pixels)))


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _read(image: Any) -> bytes:
    """The bytes of an encoded image in any container. Raises DecodeError."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if hasattr(image, "read"):
        return _read_opened(image)
    if not isinstance(image, str | os.PathLike):
        raise DecodeError(
            f"{shown(image)} is no image; accepted are paths, bytes, files opened with mode 'rb',"
            " PIL images and arrays"
        )
    path = os.fspath(image)
    if not os.path.exists(path):
        path = os.path.expanduser(path)
    try:
        if os.path.isdir(path):
            raise DecodeError(f"{os.fsdecode(path)} is a folder; give its images", "image_missing")
        return read_file(path)
    except ValueError as error:  # a null byte
        raise DecodeError(f"{shown(path)} is not a path: {error}", "image_missing") from None


def _read_opened(file: IO[bytes]) -> bytes:
    """All bytes of a file, whatever its position. Raises DecodeError."""
    data: Any
    try:
        # A file that cannot seek, such as a download, is read from its current position.
        if hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable()):
            file.seek(0)
        data = file.read()
    except UnicodeDecodeError:
        data = None
    except Exception as error:  # closed, opened for writing, or an error of the object's own code
        raise DecodeError(f"file cannot be read: {one_line(error)}", "image_missing") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise DecodeError("file was opened as text; open images with mode 'rb'")
    return bytes(data)


def open_header(image: Any) -> Image.Image:
    """Reads only the header; refuses decompression bombs. Raises DecodeError.

    `image`: any encoded input of `decode`.
    """
    data = _read(image)
    if not data:
        raise DecodeError("image is empty (0 bytes)")
    try:
        opened = Image.open(io.BytesIO(data), formats=_known_formats())
    except Image.UnidentifiedImageError as error:  # its own message has an object's address
        begin = f"begins with {data[:8]!r}"
        raise DecodeError(f"not an image of a known format ({begin})") from error
    except Image.DecompressionBombError as error:
        raise DecodeError(f"decompression bomb: {error}", "image_bomb") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on hostile bytes
        raise DecodeError(one_line(error)) from error
    width, height = opened.size
    # Pillow has a limit too, but programs often lift it.
    limit = MAX_JPEG_PIXELS if opened.format in JPEG_FORMATS else MAX_IMAGE_PIXELS
    if width * height > limit:
        raise DecodeError(
            f"decompression bomb: declares {width}x{height} pixels, more than {limit:,}",
            "image_bomb",
        )
    if opened.format in JPEG_FORMATS:
        _check_scans(opened, data)
    return opened


def _check_scans(opened: Image.Image, data: bytes) -> None:
    """Raises DecodeError if a JPEG has too many scans."""
    scans = _scans(data)
    first = next(scans, None)
    if first is None:
        return
    # A baseline scan of all channels is the only one, so most files need no further check.
    channels = int.from_bytes(data[first + 2 : first + 3])
    if channels == len(opened.getbands()) and not opened.info.get("progressive"):
        return
    # This quick count also includes bytes in headers and after the picture, such as a video.
    if data.count(_SCAN) > _MAX_SCANS and (count := 1 + sum(1 for _ in scans)) > _MAX_SCANS:
        raise DecodeError(f"JPEG of {count} scans, more than {_MAX_SCANS}")


def _scans(data: bytes) -> Iterator[int]:
    """Yields the offsets of a JPEG's scan headers, after the marker, except in thumbnails."""
    at = 0
    while (marker := _MARKER.search(data, at)) and marker[1] != _END:
        at = marker.end()
        if marker[0] == _SCAN:
            yield at
        if marker[1] != _BEGIN:
            at += int.from_bytes(data[at : at + 2], "big")


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 if it is missing or the EXIF block is invalid."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # untrusted bytes; a broken EXIF block does not make an image bad
        return 1
    return value if value in _UPRIGHT else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decodes an opened image to upright RGB. Raises `DecodeError`."""
    try:
        if 0 in image.size:
            raise DecodeError(f"image has no pixels: {image.width}x{image.height}")
        # load() does nothing the second time; it decodes completely or not at all.
        image.load()
        # This follows load(), in which some formats (TIFF) turn the picture and remove the tag.
        transpose = _UPRIGHT.get(orientation(image))
        image = _to_rgb(image)
        if transpose is not None:
            image = image.transpose(transpose)
            image.info = {}  # if the tag stayed, the next reader would turn it again
        return image
    except DecodeError:
        raise
    except Exception as error:  # as in open_header
        raise DecodeError(one_line(error)) from error


def scaled_jpeg(
    data: bytes, opened: Image.Image, factor: int = 1, is_coarse: bool = False
) -> np.ndarray | None:
    """JPEG bytes -> RGB uint8 (ceil(H / factor), ceil(W / factor), 3), as stored, not upright.

    Args:
      data: the file.
      opened: its header, from `open_header`.
      factor: 1, 2, 4 or 8; the decoder divides both sides by it.
      is_coarse: skips the interpolation of 4:2:0 chroma, for images that are then shrunk to half
      or less.

    Returns:
      None if it has four channels or the decoder reports anything, even a warning: Pillow then
      decides, as for every other format.
    """
    simplejpeg = _simplejpeg()
    if simplejpeg is None or opened.format not in JPEG_FORMATS or opened.mode not in ("RGB", "L"):
        return None
    width, height = opened.size
    try:
        # This decoder must read the same size that was checked for bombs.
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
    """The module; None on platforms without a wheel."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255, which would turn 16-bit images nearly white.
        white = _stated_white(image) or white_of(np.asarray(part) for _, part in _strips(image))

        def levels(part: Image.Image) -> Image.Image:
            return Image.fromarray(to_levels(np.asarray(part), white)).convert("RGB")

        return _by_strips(image, levels)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _by_strips(image, _on_white)
    return image.convert("RGB")


def _stated_white(image: Image.Image) -> int | None:
    """White level of a grey image if its format or mode states one, else None."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        return _TWELVE_BITS if tags.get(_BITS_TAG) == (12,) else SIXTEEN_BITS
    # Pillow scales these to 16 bits, whatever they declare.
    return SIXTEEN_BITS if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields (first row, strip) from the top, of `_STRIP_PIXELS` or less."""
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Converts to RGB strip by strip: copies of a whole large image would take gigabytes."""
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
