"""Every format and kind of file that people have, as evaluation and as training see it."""

import io
import subprocess
import sys

import numpy as np
import pytest
from pictures import encode, on_white, photo, png_file, turned
from PIL import Image

from clip_jax.errors import DecodeError
from clip_jax.images import decoding
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.images.decoding import decode


def near(data: bytes, wanted: np.ndarray, levels: float) -> None:
    """The file stands for these pixels, to evaluation and to training, fast or not."""
    height, width = wanted.shape[:2]
    decoded = np.asarray(decode(data))
    assert decoded.shape == wanted.shape
    assert np.abs(decoded - wanted.astype(float)).mean() <= levels
    whole = Image.fromarray(np.round(wanted).astype(np.uint8))
    for size in (min(width, height) // 4, min(width, height) - 3):
        small = np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC)).astype(float)
        for is_fast in (True, False):
            options = Augmentation(resize="squash", fast_decode=is_fast)
            trained = training_image(data, size, "bicubic", options, np.random.default_rng(0))
            assert np.abs(trained - small).mean() <= levels + 1


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Returns the pixels that a lossy format keeps."""
    return photo(6, 5, seed).resize((width, height), Image.Resampling.BICUBIC)


LOSSY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "AVIF": {"quality": 95}}
JPEGS = ({"progressive": True}, {"subsampling": "4:4:4"}, {"optimize": True})
OTHERS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")


def files() -> dict[str, tuple[bytes, np.ndarray, float]]:
    """Name -> (a file, the pixels that it stands for, levels that its format may be off)."""
    picture, other = smooth(121, 96), smooth(121, 96, 1)
    found = {}
    for format, options in [*(("JPEG", kind) for kind in JPEGS), *((name, {}) for name in OTHERS)]:
        shown = picture.quantize(256).convert("RGB") if format == "GIF" else picture
        data = encode(shown, format, **LOSSY.get(format, {}), **options)
        found[f"{format} {options}"] = (data, np.asarray(shown), 2)
    rgba = np.dstack([np.asarray(picture), np.asarray(other)[:, :, 0]])
    for format, options in (("WEBP", {"lossless": True, "exact": True}), ("AVIF", {})):
        data = encode(Image.fromarray(rgba), format, quality=100, **options)
        found[f"{format} on white"] = (data, on_white(rgba), 3)
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((200, 30, 60), (0, 255, 0))]
    for format in ("GIF", "WEBP", "PNG", "AVIF", "TIFF"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:])
        found[f"{format} of two frames"] = (data, np.asarray(frames[0]), 3)
    data = encode(picture, "MPO", save_all=True, append_images=[other], quality=95)
    found["a pair of stereo photos"] = (data, np.asarray(picture), 3)
    grey = picture.convert("L")
    found["grey JPEG"] = (encode(grey, "JPEG", quality=95), np.asarray(grey.convert("RGB")), 2)
    inks = Image.merge("CMYK", [smooth(121, 96, seed).convert("L") for seed in range(4)])
    values = np.asarray(inks, np.float64)
    rgb = (255 - values[:, :, :3]) * (255 - values[:, :, 3:]) / 255
    found["CMYK JPEG"] = (encode(inks, "JPEG", quality=95), rgb, 3)
    # Files of 16 bits: colours, colours and alpha, grey and alpha.
    for colour_type, channels in ((2, rgba[:, :, :3]), (6, rgba), (4, rgba[:, :, ::3])):
        wide = (channels.astype(np.uint16) * 257).astype(">u2")
        rows = np.pad(wide.reshape(96, -1).view(np.uint8), ((0, 0), (1, 0)))
        data = png_file(121, 96, rows.tobytes(), colour_type, bits=16)
        layers = {2: [0, 1, 2], 6: [0, 1, 2, 3], 4: [0, 0, 0, 3]}[colour_type]
        shown = rgba[:, :, layers]
        wanted = shown if colour_type == 2 else on_white(shown)
        found[f"PNG of 16 bits and colour type {colour_type}"] = (data, wanted, 1)
    return found


@pytest.mark.parametrize("name", files())
def test_every_format(name):
    data, wanted, levels = files()[name]
    with Image.open(io.BytesIO(data)) as opened:
        assert getattr(opened, "n_frames", 1) == (2 if "two" in name or "pair" in name else 1)
    near(data, wanted, levels)


# Orientation -> the upright pixels as they are stored.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright.transpose(1, 0, 2), 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("format", ["WEBP", "AVIF", "TIFF", "PNG", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_of_every_format(format, orientation):
    upright = np.asarray(smooth(121, 80))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    near(encode(stored, format, exif=turned(orientation), **LOSSY.get(format, {})), upright, 2)


def test_a_jpeg_that_only_draws_a_warning_is_kept():
    picture = smooth(121, 96)
    data = encode(picture, "JPEG", quality=95)
    near(data + b"rubbish", np.asarray(picture), 2)
    # Bytes between the header's segments: libjpeg warns, Pillow goes on.
    near(data[:2] + data[2:].replace(b"\xff\xdb", b"\x00\x00\xff\xdb", 1), np.asarray(picture), 2)


def test_odd_exif_data_are_not_spoken_of(tmp_path):
    """In a process of its own: pytest has its own filters."""
    data = encode(smooth(64, 48), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00")
    (tmp_path / "image").write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "image")]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stderr == ""


MEASURE = """
import sys
import numpy as np
from clip_jax.images.augmentation import Augmentation, training_image
data = open(sys.argv[1], "rb").read()
training_image(data, 224, "bicubic", Augmentation(), np.random.default_rng(0))
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(line.split()[1]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "format"), [("P", "PNG"), ("I;16", "PNG"), ("RGBA", "WEBP"), ("RGB", "JPEG")]
)
def test_the_largest_image_takes_less_than_a_gibibyte(mode, format, tmp_path):
    is_jpeg = format == "JPEG"
    side = int((decoding.MAX_JPEG_PIXELS if is_jpeg else decoding.MAX_IMAGE_PIXELS) ** 0.5)
    if mode == "I;16":
        data = encode(Image.fromarray(np.zeros((side, side), np.uint16)), format)
    elif mode == "P":
        data = encode(Image.new("P", (side, side), 3), format, transparency=0)
    elif is_jpeg:  # colours as fine as brightness, and to be turned
        picture = Image.new("RGB", (side, side), (9, 99, 199))
        data = encode(picture, format, progressive=True, subsampling=0, exif=turned(6))
    else:
        picture = Image.new("RGBA", (side, side), (1, 2, 3, 9))
        data = encode(picture, format, lossless=True, quality=0, method=0)
    (tmp_path / "image").write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "image")]
    mebibytes = float(subprocess.run(command, capture_output=True, check=True).stdout)
    assert mebibytes < 1024


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again, without anything in it."""
    data = encode(smooth(64, 48), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    size = 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[:-2] + (data[start : start + size] + bytes(4)) * count + data[-2:]


def test_jpegs_of_scans_without_end_are_refused():
    for is_fast in (True, False):
        options = Augmentation(resize="squash", fast_decode=is_fast)
        with pytest.raises(DecodeError, match="JPEG of 1010 scans, more than 100") as caught:
            training_image(with_scans(1000), 24, "bicubic", options, np.random.default_rng(0))
        assert caught.value.kind == "image_undecodable"
    # A film after the picture, and a header, may have any bytes.
    film = b"\xff\xda" * 1000
    picture = smooth(64, 48)
    data = encode(picture, "JPEG", quality=95, comment=film)
    near(data + film, np.asarray(picture), 2)
