"""Augmentation: what each step does, and that it is a function of its generator."""

import numpy as np
import pytest
from pictures import encode, photo

from clip_jax.data.augmentation import Augmentation, training_image
from clip_jax.errors import UserError


def test_nothing_to_do_returns_the_array_itself():
    pixels = np.asarray(photo(32, 32))
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert training_image(pixels, 32, "bicubic", Augmentation(crop_scale=(1, 1)), rng) is pixels
    assert rng.bit_generator.state == before


ALL_ON = Augmentation(
    stretch=(0.8, 1.25),
    thicken_probability=0.4,
    thin_probability=0.4,
    blur_probability=0.5,
    crop_scale=(0.5, 1.0),
    flip_probability=0.5,
    rotation_degrees=15,
    shift=0.1,
    zoom=(0.8, 1.2),
    shear=0.2,
)


def test_augmentation_is_a_function_of_the_generator():
    jpeg = encode(photo(200, 150), "JPEG")
    results = [
        training_image(jpeg, 32, "bicubic", ALL_ON, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    ]
    assert results[0].shape == (32, 32, 3)
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).mean() > 0.5


def test_default_crop_covers_nine_tenths():
    # A ramp tells where the crop lay: its span is the crop's width.
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    spans = []
    for seed in range(200):
        pixels = training_image(ramp, 64, "bilinear", Augmentation(), np.random.default_rng(seed))
        spans.append((int(pixels.max()) - int(pixels.min()) + 1) / 200)
    # sqrt(0.9 * 3 / 4) = 0.82; wider than the image is not possible.
    assert 0.80 < min(spans) < 0.9
    assert max(spans) > 0.97


def test_fast_decoding_is_close_to_full_decoding():
    jpeg = encode(photo(640, 480), "JPEG", quality=90)
    for seed in range(5):
        full, fast = (
            training_image(
                jpeg,
                32,
                "bicubic",
                Augmentation(fast_decode=is_fast),
                np.random.default_rng(seed),
            ).astype(int)
            for is_fast in (False, True)
        )
        assert np.abs(full - fast).mean() < 1.0


def test_flip_mirrors():
    pixels = np.asarray(photo(16, 16))
    always = Augmentation(crop_scale=(1, 1), flip_probability=1.0)
    result = training_image(pixels, 16, "bicubic", always, np.random.default_rng(0))
    np.testing.assert_array_equal(result, pixels[:, ::-1])


def test_zoom_rotation_and_shear_keep_the_centre_and_do_what_they_say():
    pixels = np.full((65, 65, 3), 255, np.uint8)
    pixels[24:41, 24:41] = 0
    pixels[32, 32] = (255, 0, 0)

    def dark(**options) -> np.ndarray:
        augmentation = Augmentation(crop_scale=(1, 1), **options)
        rng = np.random.default_rng(3)
        moved = training_image(pixels, 65, "bicubic", augmentation, rng)
        assert moved[32, 32, 0] > moved[32, 32, 1] + 100, "the centre has moved"
        return (moved[:, :, 1] < 128) & (moved[:, :, 2] < 128)

    side = 17
    assert abs(dark(zoom=(2, 2)).sum() - (2 * side) ** 2) < 4 * side
    assert abs(dark(zoom=(0.5, 0.5)).sum() - (side / 2) ** 2) < 2 * side
    for shape in (dark(rotation_degrees=45), dark(shear=0.5)):
        assert abs(shape.sum() - side**2) < side  # both keep the area
    upright = dark(zoom=(1.0001, 1.0001))
    assert (dark(shear=0.5).any(axis=1) == upright.any(axis=1)).all()  # a shear keeps the rows


def test_shift_stays_within_its_bound():
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[14:18, 14:18] = 0
    augmentation = Augmentation(crop_scale=(1, 1), shift=0.25)
    centres = []
    for seed in range(300):
        moved = training_image(pixels, 32, "bicubic", augmentation, np.random.default_rng(seed))
        rows, columns = np.nonzero(moved[:, :, 0] < 128)
        centres.append((rows.mean() - 15.5, columns.mean() - 15.5))
    greatest = np.abs(np.array(centres)).max(axis=0)
    assert (greatest > 7).all()
    assert (greatest < 8.6).all()


def test_grey_and_colour_images_move_alike():
    grey = np.repeat(np.asarray(photo(32, 32))[:, :, :1], 3, axis=2)
    tinted = grey.copy()
    tinted[16, 16, 2] ^= 1  # one level in one channel takes the path of three channels
    off_crop = Augmentation(crop_scale=(1, 1), rotation_degrees=20, zoom=(0.8, 0.8))
    one, three = (
        training_image(image, 32, "bicubic", off_crop, np.random.default_rng(5)).astype(int)
        for image in (grey, tinted)
    )
    assert np.abs(one - three).max() <= 1


def test_border_colour_fills():
    pixels = np.full((32, 32, 3), (10, 200, 90), np.uint8)
    pixels[8:24, 8:24] = 0
    shrunk = training_image(
        pixels,
        32,
        "bicubic",
        Augmentation(crop_scale=(1, 1), zoom=(0.5, 0.5)),
        np.random.default_rng(0),
    )
    np.testing.assert_array_equal(shrunk[0, 0], (10, 200, 90))


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"zoom": (2.0, 1.0)},
        {"flip_probability": 2.0},
        {"rotation_degrees": -1},
    ],
)
def test_augmentation_out_of_range_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Augmentation(**wrong)


def bar(width: int) -> np.ndarray:
    """A black upright bar on white, 33 pixels square."""
    pixels = np.full((33, 33, 3), 255, np.uint8)
    pixels[8:25, 16 - width // 2 : 17 + width // 2] = 0
    return pixels


def ink(pixels: np.ndarray) -> float:
    return (255 - pixels[:, :, 0].astype(float)).sum() / 255


def test_strokes_grow_and_shrink_by_part_of_a_pixel() -> None:
    def redraw(**options) -> list[float]:
        augmentation = Augmentation(crop_scale=(1, 1), **options)
        return [
            ink(training_image(bar(5), 33, "bicubic", augmentation, np.random.default_rng(seed)))
            for seed in range(20)
        ]

    plain, wider, narrower = ink(bar(5)), ink(bar(7)), ink(bar(3))
    thick, thin = redraw(thicken_probability=1.0), redraw(thin_probability=1.0)
    assert all(plain < value < wider * 19 / 17 for value in thick)
    assert all(narrower * 15 / 17 < value < plain for value in thin)
    assert len(set(thick)) == 20


def test_blur_keeps_the_ink_and_softens_edges() -> None:
    augmentation = Augmentation(crop_scale=(1, 1), blur_probability=1.0)
    blurred = training_image(bar(5), 33, "bicubic", augmentation, np.random.default_rng(0))
    assert abs(ink(blurred) / ink(bar(5)) - 1) < 0.02
    assert len(np.unique(blurred)) > 2


def test_stretch_keeps_the_area() -> None:
    augmentation = Augmentation(crop_scale=(1, 1), stretch=(4.0, 4.0))
    wide = training_image(bar(5), 33, "bicubic", augmentation, np.random.default_rng(0))
    assert abs(ink(wide) / ink(bar(5)) - 1) < 0.1
    rows, columns = np.nonzero(wide[:, :, 0] < 128)
    assert np.ptp(columns) + 1 == pytest.approx(2 * 5, abs=1)
    assert np.ptp(rows) + 1 == pytest.approx(17 / 2, abs=1)


def test_both_stroke_probabilities_fit_together() -> None:
    with pytest.raises(UserError, match="at most 1"):
        Augmentation(thicken_probability=0.7, thin_probability=0.7)
