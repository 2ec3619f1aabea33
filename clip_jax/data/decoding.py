"""Decoding of whatever the web has to upright RGB; what is broken or a bomb is refused.

OpenAI resizes and crops first and converts to RGB last, so palette, alpha and CMYK images are
resized in their own mode there (palette images by nearest neighbour). Here every image is upright
RGB, alpha on white, before it is resized: the same for RGB and grey images, and the only sane
result for the others.
"""

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.records import DecodeError, read_file

ImageLike = Image.Image | np.ndarray | bytes | os.PathLike[str] | str

# More declared pixels than these are taken for a decompression bomb: up to them every format and
# mode stays below 1 GiB and 5 s. WebP takes 17 bytes a pixel, progressive JPEG 10; cameras that
# write JPEGs of 102 million pixels are the largest there are.
MAX_IMAGE_PIXELS = 52_000_000
MAX_JPEG_PIXELS = 102_000_000
_STRIP_PIXELS = 4_000_000  # converted at once where a conversion makes copies

# A decoder goes through the whole picture for each scan, and a scan may be a dozen bytes.
_MAX_SCANS = 100  # a progressive JPEG has about ten
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # those with a length, and begin and end
_BEGIN, _END = b"\xd8", b"\xd9"

# An odd EXIF block makes no bad image; without this each worker says so of each.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our limits are below

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
        declaring more than `MAX_IMAGE_PIXELS`, a JPEG `MAX_JPEG_PIXELS` (found in the header,
        before anything is allocated), or a JPEG of more than a hundred scans.
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
    """Raises DecodeError where a JPEG has absurdly many scans."""
    scans = _scans(data)
    first = next(scans, None)
    if first is None:
        return
    # Most files need no more: a baseline scan of all channels is the only one.
    channels = int.from_bytes(data[first + 2 : first + 3])
    if channels == len(opened.getbands()) and not opened.info.get("progressive"):
        return
    # A quick look: what is in headers and after the picture, such as a film, counts too here.
    if data.count(_SCAN) > _MAX_SCANS and (count := 1 + sum(1 for _ in scans)) > _MAX_SCANS:
        raise DecodeError(f"JPEG of {count} scans, more than {_MAX_SCANS}")


def _scans(data: bytes) -> Iterator[int]:
    """Where the headers of a JPEG's scans begin, after the marker; thumbnails do not count."""
    at = 0
    while (marker := _MARKER.search(data, at)) and marker[1] != _END:
        at = marker.end()
        if marker[0] == _SCAN:
            yield at
        if marker[1] != _BEGIN:
            at += int.from_bytes(data[at : at + 2], "big")


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
        if transpose is not None:
            image = image.transpose(transpose)
            image.info = {}  # with the tag still there, the next to read it would turn it again
        return image
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
        is_unit = image.mode == "F" and _is_unit(image)
        return _by_strips(image, lambda strip: Image.fromarray(_grey_to_8_bits(strip, is_unit)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _by_strips(image, _on_white)
    return image.convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, these rows) of `_STRIP_PIXELS` or less, from the top; small images whole."""
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """RGB, each strip converted alone: copies of a whole large image would take gigabytes."""
    result = None
    for top, strip in _strips(image):
        converted = convert(strip).convert("RGB")
        if strip is image:
            return converted
        if result is None:
            result = Image.new("RGB", image.size)
        result.paste(converted, (0, top))
    assert result is not None
    return result


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba)


def _is_unit(image: Image.Image) -> bool:
    """Whether no pixel of an image of floats is above 1."""
    return all(np.nan_to_num(np.asarray(strip)).max() <= 1.0 for _, strip in _strips(image))


def _grey_to_8_bits(image: Image.Image, is_unit: bool) -> np.ndarray:
    """uint8 (H, W) of a grey image of 16 or 32 bits or of floats.

    Integers are taken as 16 bits, as PNG and PGM store them; floats as [0, 1] where `is_unit`, as
    [0, 255] otherwise. Pillow's own conversion clips at 255: nearly all white.
    """
    pixels = np.asarray(image)
    if image.mode == "F":
        pixels = np.nan_to_num(pixels)
        scaled = pixels * 255.0 if is_unit else pixels
        return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
    # 257 is odd: halves, which could be rounded either way, do not occur.
    return ((np.clip(pixels, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
