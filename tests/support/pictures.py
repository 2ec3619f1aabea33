"""Pictures that the image tests draw."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise: what a resize filter can be judged by."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def turned(orientation: int) -> Image.Exif:
    """An EXIF block that says how the picture is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_file(width: int, height: int, rows: bytes = b"", colour_type: int = 2, bits: int = 8):
    """A PNG of kinds that Pillow does not write; each of the `rows` begins with a filter's byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4) -> float (H, W, 3): the definition of compositing."""
    alpha = rgba[:, :, 3:] / 255.0
    return rgba[:, :, :3] * alpha + 255.0 * (1 - alpha)
