"""Pixels stored as other numbers than bytes: the levels that they stand for, in every container."""

import io
import struct

import numpy as np
import pytest
from pictures import encode
from PIL import Image

from clip_jax.errors import DecodeError
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.images.decoding import decode
from clip_jax.images.perceptual_hash import perceptual_hash
from clip_jax.images.transform import ImageTransform

RAMP = np.linspace(0, 255, 24 * 24).round().reshape(24, 24)  # levels; the last is 255

# name -> (the ramp in other numbers, how they are rounded at most)
NUMBERS = {
    "int32 of 8 bits": RAMP.astype(np.int32),
    "int32 of 16 bits": (RAMP * 257).astype(np.int32),
    "uint16 of 8 bits": RAMP.astype(np.uint16),
    "uint16": (RAMP * 257).astype(np.uint16),
    "big-endian uint16": (RAMP * 257).astype(">u2"),
    "uint32": RAMP.astype(np.uint32),
    "int64": RAMP.astype(np.int64),
    "uint64 of 16 bits": (RAMP * 257).astype(np.uint64),
    "float32 to 1": (RAMP / 255).astype(np.float32),
    "float32 to 255": RAMP.astype(np.float32),
    "float64 to 1": RAMP / 255,
    "float64 to 255": RAMP,
    "float16 to 1": (RAMP / 255).astype(np.float16),
}
IN_FILES = {
    "int32 of 8 bits": ("TIFF",),
    "int32 of 16 bits": ("TIFF", "PPM"),
    "uint16": ("TIFF", "PNG", "PPM"),
    "big-endian uint16": ("TIFF",),
    "float32 to 1": ("TIFF",),
    "float32 to 255": ("TIFF",),
}


def as_rgb(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("name", NUMBERS)
def test_arrays_of_any_numbers(name: str) -> None:
    pixels = NUMBERS[name]
    for array in (pixels, pixels[:, :, None], np.repeat(pixels[:, :, None], 3, axis=2)):
        np.testing.assert_array_equal(np.asarray(decode(array)), as_rgb(RAMP))
        np.testing.assert_array_equal(ImageTransform(24)(array), as_rgb(RAMP))
    opaque = np.full_like(pixels, pixels.max())
    with_alpha = np.dstack([pixels, pixels, pixels, opaque])
    np.testing.assert_array_equal(np.asarray(decode(with_alpha)), as_rgb(RAMP))


@pytest.mark.parametrize("name", IN_FILES)
def test_files_and_pictures_of_any_numbers(name: str) -> None:
    picture = Image.fromarray(NUMBERS[name])
    files = [encode(picture, kind) for kind in IN_FILES[name]]
    for image in (picture, *files):
        np.testing.assert_array_equal(np.asarray(decode(image)), as_rgb(RAMP))
        for is_fast in (True, False):
            options = Augmentation(resize="squash", fast_decode=is_fast)
            trained = training_image(image, 24, "bicubic", options, np.random.default_rng(0))
            np.testing.assert_array_equal(trained, as_rgb(RAMP))
        assert perceptual_hash(image) == perceptual_hash(as_rgb(RAMP))


def test_masks_are_black_and_white() -> None:
    mask = RAMP > 100
    for image in (mask, Image.fromarray(mask), encode(Image.fromarray(mask), "PNG")):
        np.testing.assert_array_equal(np.asarray(decode(image)), as_rgb(255 * mask))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "PPM"])
def test_a_format_that_states_16_bits_is_believed(kind: str) -> None:
    """A dark picture of 16 bits is dark, as its format says."""
    dark = encode(Image.fromarray(np.full((4, 4), 200, np.uint16)), kind)
    assert np.asarray(decode(dark)).max() == 1


def tiff(values: bytes, bits: int) -> bytes:
    """A grey TIFF of 4 x 4 pixels, of a depth that Pillow does not write."""
    tags = [
        *((256, 4), (257, 4), (258, bits), (259, 1), (262, 1)),
        *((273, 8), (277, 1), (278, 4), (279, len(values))),
    ]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(values)) + values + directory


def test_twelve_bits_are_not_sixteen() -> None:
    values = np.array([[0, 1365, 2730, 4095]] * 4)
    pairs = values.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    data = tiff(packed.astype(np.uint8).tobytes(), 12)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.asarray(opened)[0].tolist() == values[0].tolist()
    assert np.asarray(decode(data))[0, :, 0].tolist() == [0, 85, 170, 255]


NO_MEANING = {
    "not a number": (np.where(RAMP > 9, np.nan, RAMP).astype(np.float32), "not numbers"),
    "infinite": (np.where(RAMP > 9, np.inf, RAMP).astype(np.float32), "infinite"),
    "normalised": ((RAMP / 64 - 2).astype(np.float32), "from -2 to 1.984; .*not normalised"),
    "barely negative": (RAMP.astype(np.float32) - 3, "from -3 to 252"),
    "floats of 16 bits": (RAMP.astype(np.float32) * 257, "from 0 to 6.554e"),
    "neither to 1 nor to 255": ((RAMP / 200).astype(np.float32), "from 0 to 1.275"),
    "negative integers": (RAMP.astype(np.int32) - 1, "integers from -1 to 254"),
    "large integers": (RAMP.astype(np.int32) * 10**6, "integers from 0 to 255000000"),
}


@pytest.mark.parametrize("name", NO_MEANING)
def test_numbers_without_a_plain_meaning_are_counted(name: str) -> None:
    pixels, message = NO_MEANING[name]
    picture = Image.fromarray(pixels)
    for image in (pixels, np.dstack([pixels] * 3), picture, encode(picture, "TIFF")):
        for take in (decode, ImageTransform(8)):
            with pytest.raises(DecodeError, match=message) as caught:
                take(image)
            assert caught.value.kind == "image_undecodable"
    rng = np.random.default_rng(0)
    with pytest.raises(DecodeError, match=message):
        training_image(encode(picture, "TIFF"), 8, "bicubic", Augmentation(), rng)


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "U3", "O"])
def test_what_is_no_number_is_refused(dtype: str) -> None:
    with pytest.raises(DecodeError, match="accepted are numbers"):
        decode(np.zeros((4, 4), dtype))
