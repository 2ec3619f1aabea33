"""Decoding, and the evaluation transform against torchvision's rule."""

import numpy as np
import pytest
from pictures import encode, on_white, photo, png_file
from PIL import Image

from clip_jax.errors import DecodeError, UserError
from clip_jax.images import decoding
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.images.decoding import decode
from clip_jax.images.transform import ImageTransform


def torchvision_rule(image: Image.Image, size: int) -> np.ndarray:
    """Resize(size, BICUBIC) and CenterCrop(size) as torchvision's source has them, in its words."""
    w, h = image.size
    short, long = (w, h) if w <= h else (h, w)
    new_short, new_long = size, int(size * long / short)
    new_w, new_h = (new_short, new_long) if w <= h else (new_long, new_short)
    if (w, h) != (new_w, new_h):
        image = image.resize((new_w, new_h), Image.Resampling.BICUBIC)
    crop_top = int(np.round((new_h - size) / 2.0))
    crop_left = int(np.round((new_w - size) / 2.0))
    return np.asarray(image)[crop_top : crop_top + size, crop_left : crop_left + size]


SIZES = [(64, 48), (48, 64), (65, 47), (341, 256), (101, 100), (33, 200), (5, 3), (32, 32)]
SIZES += [(31, 90), (32, 37)]  # the last with an offset of 2.5, rounded to even


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("size", [32, 33])
def test_evaluation_transform_equals_torchvision(width, height, size):
    image = photo(width, height)
    result = ImageTransform(size)(image)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, torchvision_rule(image, size))


def test_extreme_aspect_is_small_in_memory_and_near_the_rule():
    image = photo(6600, 3)
    result = ImageTransform(8)(image).astype(int)
    assert np.abs(result - torchvision_rule(image, 8)).max() <= 1


def test_every_input_kind_gives_the_same_pixels(tmp_path):
    image = photo(50, 40)
    png = encode(image, "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(png)
    transform = ImageTransform(24)
    expected = transform(image)
    for same in (np.asarray(image), png, path, str(path)):
        np.testing.assert_array_equal(transform(same), expected)


def test_squash_ignores_the_aspect():
    image = photo(60, 30)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    result = ImageTransform(16, resize="squash", interpolation="bilinear")(image)
    np.testing.assert_array_equal(result, expected)


def open_clip_longest(image: Image.Image, size: int, filter: int, fill: int) -> np.ndarray:
    """ResizeKeepRatio(longest=1) and CenterCropOrPad as open_clip's source has them."""
    h, w = image.height, image.width
    ratio_h, ratio_w = h / size, w / size
    longest = 1.0
    ratio = max(ratio_h, ratio_w) * longest + min(ratio_h, ratio_w) * (1.0 - longest)
    new_h, new_w = (round(x * 1.0 / ratio) for x in (h, w))
    resized = np.asarray(image.resize((new_w, new_h), filter))
    left, right = (size - new_w) // 2, (size - new_w + 1) // 2
    top, bottom = (size - new_h) // 2, (size - new_h + 1) // 2
    return np.pad(resized, ((top, bottom), (left, right), (0, 0)), constant_values=fill)


@pytest.mark.parametrize(("width", "height"), [*SIZES, (17, 32), (20, 20)])
@pytest.mark.parametrize("size", [32, 33])
def test_longest_equals_open_clip(width, height, size):
    image = photo(width, height)
    for name, filter in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", 2)):
        for fill in (0, 77):
            result = ImageTransform(size, "longest", name, fill=fill)(image)
            assert result.dtype == np.uint8
            np.testing.assert_array_equal(result, open_clip_longest(image, size, filter, fill))


def test_longest_keeps_at_least_one_pixel():
    result = ImageTransform(8, "longest", fill=9)(np.full((1000, 3, 3), 200, np.uint8))
    assert (result == 200).all(axis=(0, 2)).tolist() == [False] * 3 + [True] + [False] * 4
    assert np.unique(result).tolist() == [9, 200]


@pytest.mark.parametrize(
    "wrong", [{"resize": "crop"}, {"interpolation": "cubic"}, {"image_size": 0}, {"fill": 256}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ImageTransform(**wrong)


def odd_modes() -> dict[str, tuple[Image.Image, np.ndarray]]:
    """mode -> (image 45 x 31, the RGB values that it stands for)."""
    rgb, alpha = photo(45, 31), photo(45, 31, seed=1).convert("L")
    grey = rgb.convert("L")
    grey_rgb = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    rgba = np.dstack([np.asarray(rgb), np.asarray(alpha)])
    wide = np.asarray(grey, np.uint16) * 257 - 100 * (np.asarray(grey) > 0)  # half a level at most
    palette = rgb.quantize(64)
    table = np.array(palette.getpalette()).reshape(-1, 3)
    colours = table[np.asarray(palette)]
    hole = palette.copy()
    hole.info["transparency"] = 0
    bits = grey.point(lambda value: 255 * (value > 127), "1")
    cmyk = Image.merge("CMYK", [photo(45, 31, seed).convert("L") for seed in range(4)])
    inks = np.asarray(cmyk, np.float64)
    return {
        "L": (grey, grey_rgb),
        "LA": (Image.merge("LA", (grey, alpha)), on_white(np.dstack([grey_rgb, alpha]))),
        "RGBA": (Image.fromarray(rgba), on_white(rgba)),
        "P": (palette, colours),
        "P with a hole": (hole, np.where(np.asarray(palette)[:, :, None] == 0, 255, colours)),
        "1": (bits, np.repeat(np.asarray(bits)[:, :, None] * 255, 3, axis=2)),
        "I;16": (Image.fromarray(wide.astype(np.uint16)), grey_rgb),
        "CMYK": (cmyk, (255 - inks[:, :, :3]) * (255 - inks[:, :, 3:]) / 255),
    }


@pytest.mark.parametrize("mode", odd_modes())
@pytest.mark.parametrize("encoded", [False, True])
def test_every_mode_stands_for_its_rgb_values(mode, encoded):
    image, wanted = odd_modes()[mode]
    assert image.mode == mode.split()[0]
    source = encode(image, "TIFF" if mode == "CMYK" else "PNG") if encoded else image
    decoded = np.asarray(decode(source))
    assert np.abs(decoded - wanted).max() <= 1
    # Then resized as if it had been RGB all along.
    as_rgb = Image.fromarray(np.round(wanted).astype(np.uint8))
    for resize in ("shortest", "longest", "squash"):
        transform = ImageTransform(24, resize)
        difference = transform(source).astype(int) - transform(as_rgb)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "P with a hole", "LA", "RGBA"])
def test_strips_do_not_show(mode, monkeypatch):
    data = encode(odd_modes()[mode][0], "PNG")
    whole = np.asarray(decode(data))
    for pixels in (1, 45 * 5 + 7, 45 * 30):
        monkeypatch.setattr(decoding, "_STRIP_PIXELS", pixels)
        np.testing.assert_array_equal(np.asarray(decode(data)), whole)


def test_converting_grey_before_or_after_the_resize_is_the_same():
    # OpenAI's order is resize, crop, then RGB.
    grey = photo(45, 31).convert("L")
    resized = grey.resize((24, 24), Image.Resampling.BICUBIC).convert("RGB")
    np.testing.assert_array_equal(ImageTransform(24, "squash")(grey), np.asarray(resized))


def test_images_without_pixels_are_refused():
    for shape in ((0, 5, 3), (5, 0, 3), (0, 0), (0, 0, 4)):
        with pytest.raises(DecodeError, match="no pixels"):
            decode(np.zeros(shape, np.uint8))
    for size in ((0, 0), (0, 4)):
        for resize in ("shortest", "longest", "squash"):
            with pytest.raises(DecodeError, match=f"no pixels: {size[0]}x{size[1]}"):
                ImageTransform(8, resize)(Image.new("RGB", size))
    for size in ((0, 4), (4, 0)):
        with pytest.raises(DecodeError):
            decode(png_file(*size))


@pytest.mark.parametrize("lifted", [False, True])
def test_decompression_bombs_are_refused_by_their_header(monkeypatch, lifted):
    if lifted:  # programs often lift Pillow's own limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for decoder in (decode, ImageTransform(8)):
        with pytest.raises(DecodeError, match="bomb") as caught:
            decoder(png_file(7212, 7211))
        assert caught.value.kind == "image_bomb"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_truncated_images_are_refused(format):
    data = encode(photo(64, 48), format)
    assert decode(data).size == (64, 48)
    for end in (len(data) // 2, len(data) - 40, 700) if format == "JPEG" else (len(data) // 2,):
        with pytest.raises(DecodeError) as caught:
            decode(data[:end])
        assert caught.value.kind == "image_undecodable"
        for is_fast in (True, False):
            options = Augmentation(fast_decode=is_fast)
            with pytest.raises(DecodeError):
                training_image(data[:end], 8, "bicubic", options, np.random.default_rng(0))


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8"]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    assert caught.value.kind == "image_undecodable"


def test_missing_file_and_wrong_arrays_are_named(tmp_path):
    with pytest.raises(DecodeError, match=r"nothing\.jpg"):
        decode(tmp_path / "nothing.jpg")
    for wrong in (np.zeros((4, 4, 5), np.float32), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(DecodeError, match=r"accepted is \(H, W\)"):
            decode(wrong)
