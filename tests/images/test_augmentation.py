"""Augmentation: what each step does, and that it is a function of its generator."""

import numpy as np
import pytest
from pictures import encode, photo
from PIL import Image

from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.images.colour import Jitter, jitter, turn_hue
from clip_jax.images.rand_augment import OPERATIONS, rand_augment

LUMA = (0.299, 0.587, 0.114)


def augmented(image, size: int = 32, seed: int = 0, **options) -> np.ndarray:
    """The image with these steps and, if no crop is named, whole."""
    settings = Augmentation(**{"crop_scale": (1, 1)} | options)
    return training_image(image, size, "bicubic", settings, np.random.default_rng(seed))


@pytest.mark.parametrize("options", [{"crop_scale": (1, 1)}, {"resize": "squash"}])
def test_nothing_to_do_returns_the_array_itself(options):
    pixels = np.asarray(photo(32, 32))
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert training_image(pixels, 32, "bicubic", Augmentation(**options), rng) is pixels
    assert rng.bit_generator.state == before


ALL_ON = {
    **{"randaugment_operations": 2, "jitter_probability": 0.8, "grayscale_probability": 0.2},
    **{"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    **{"thicken_probability": 0.4, "thin_probability": 0.4, "blur_probability": 0.5},
    **{"crop_scale": (0.5, 1.0), "flip_probability": 0.5, "rotation_degrees": 15, "shift": 0.1},
    **{"zoom": (0.8, 1.2), "shear": 0.2, "stretch": (0.8, 1.25)},
}


def test_augmentation_is_a_function_of_the_generator():
    jpeg = encode(photo(200, 150), "JPEG")
    results = [augmented(jpeg, seed=seed, **ALL_ON) for seed in (1, *range(1, 20))]
    assert {(image.shape, image.dtype.name) for image in results} == {((32, 32, 3), "uint8")}
    np.testing.assert_array_equal(results[0], results[1])
    assert all((results[0] != other).mean() > 0.5 for other in results[2:])


def test_default_crop_covers_nine_tenths():
    # A ramp tells where the crop lay: its span is the crop's width.
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    spans = []
    for seed in range(200):
        pixels = training_image(ramp, 64, "bilinear", Augmentation(), np.random.default_rng(seed))
        spans.append((int(pixels.max()) - int(pixels.min()) + 1) / 200)
    # sqrt(0.9 * 3 / 4) = 0.82; a crop is no wider than the image.
    assert 0.80 < min(spans) <= 0.9
    assert max(spans) > 0.97


@pytest.mark.parametrize("turn", [False, True])
def test_the_crop_of_a_strip_is_its_middle(turn):
    ramp = np.zeros((20, 200, 3), np.uint8) + np.arange(200, dtype=np.uint8)[None, :, None]
    pixels = augmented(ramp.transpose(1, 0, 2) if turn else ramp, 64, crop_scale=(0.9, 1.0))
    assert abs(int(pixels.min()) - 87) <= 2  # 20 * 4 / 3 of 200
    assert abs(int(pixels.max()) - 112) <= 2


def test_flip_mirrors():
    pixels = np.asarray(photo(16, 16))
    np.testing.assert_array_equal(augmented(pixels, 16, flip_probability=1.0), pixels[:, ::-1])


def test_zoom_rotation_and_shear_keep_the_centre_and_do_what_they_say():
    pixels = np.full((65, 65, 3), 255, np.uint8)
    pixels[24:41, 24:41] = 0
    pixels[32, 32] = (255, 0, 0)

    def dark(**options) -> np.ndarray:
        moved = augmented(pixels, 65, seed=3, **options)
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
    centres = []
    for seed in range(300):
        rows, columns = np.nonzero(augmented(pixels, seed=seed, shift=0.25)[:, :, 0] < 128)
        centres.append((rows.mean() - 15.5, columns.mean() - 15.5))
    greatest = np.abs(np.array(centres)).max(axis=0)
    assert (greatest > 7).all()
    assert (greatest < 8.6).all()


def test_grey_and_colour_images_move_alike():
    grey = np.repeat(np.asarray(photo(32, 32))[:, :, :1], 3, axis=2)
    tinted = grey.copy()
    tinted[16, 16, 2] ^= 1  # one level in one channel takes the path of three channels
    one, three = (
        augmented(image, seed=5, rotation_degrees=20, zoom=(0.8, 0.8)).astype(int)
        for image in (grey, tinted)
    )
    assert np.abs(one - three).max() <= 1


def test_border_colour_fills():
    pixels = np.full((32, 32, 3), (10, 200, 90), np.uint8)
    pixels[8:24, 8:24] = 0
    np.testing.assert_array_equal(augmented(pixels, zoom=(0.5, 0.5))[0, 0], (10, 200, 90))


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"zoom": (2.0, 1.0)},
        {"flip_probability": 2.0},
        {"rotation_degrees": -1},
        {"resize": "longest"},
        {"randaugment_operations": -1},
        {"randaugment_operations": 1.5},
        {"randaugment_magnitude": 31},
        {"brightness": -0.1},
        {"hue": 0.6},
        {"jitter_probability": 1.1},
        {"grayscale_probability": -1},
        {"saturation": float("nan")},
        {"thicken_probability": 0.7, "thin_probability": 0.7},
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
    plain, wider, narrower = ink(bar(5)), ink(bar(7)), ink(bar(3))
    thick, thin = (
        [ink(augmented(bar(5), 33, seed, **{step: 1.0})) for seed in range(20)]
        for step in ("thicken_probability", "thin_probability")
    )
    assert all(plain < value < wider * 19 / 17 for value in thick)
    assert all(narrower * 15 / 17 < value < plain for value in thin)
    assert len(set(thick)) == 20


def test_blur_keeps_the_ink_and_softens_edges() -> None:
    blurred = augmented(bar(5), 33, blur_probability=1.0)
    assert abs(ink(blurred) / ink(bar(5)) - 1) < 0.02
    assert len(np.unique(blurred)) > 2


def test_stretch_keeps_the_area() -> None:
    wide = augmented(bar(5), 33, stretch=(4.0, 4.0))
    assert abs(ink(wide) / ink(bar(5)) - 1) < 0.1
    rows, columns = np.nonzero(wide[:, :, 0] < 128)
    assert np.ptp(columns) + 1 == pytest.approx(2 * 5, abs=1)
    assert np.ptp(rows) + 1 == pytest.approx(17 / 2, abs=1)


def test_steps_that_are_off_draw_nothing():
    jpeg = encode(photo(100, 80), "JPEG")
    rng = np.random.default_rng(7)
    plain = training_image(jpeg, 32, "bicubic", Augmentation(), rng)
    crop_only = np.random.default_rng(7)
    crop_only.random(4)  # the crop of an image of usual aspect
    assert rng.bit_generator.state == crop_only.bit_generator.state
    for off in (
        {"randaugment_magnitude": 30, "jitter_probability": 1, "grayscale_probability": 0},
        {"brightness": 1, "jitter_probability": 0},
    ):
        again = augmented(jpeg, seed=7, crop_scale=(0.9, 1.0), **off)
        np.testing.assert_array_equal(plain, again)


def jittered(seed: int, **limits) -> np.ndarray:
    return augmented(np.asarray(photo(24, 24)), 24, seed, **limits).astype(float)


def test_brightness_contrast_and_saturation_stay_within_their_factors():
    pixels = np.asarray(photo(24, 24)).astype(float)
    for limit, statistic in (
        ({"brightness": 0.5}, np.mean),
        ({"contrast": 0.5}, lambda image: (image @ LUMA).std()),
    ):
        factors = [statistic(jittered(seed, **limit)) / statistic(pixels) for seed in range(200)]
        assert 0.49 < min(factors) < 0.6
        assert 1.2 < max(factors) < 1.52  # what is beyond white is cut off
    colours = [np.ptp(jittered(seed, saturation=2), axis=2).mean() for seed in range(200)]
    assert min(colours) < 1.5  # a factor of 1 - 2 is one of 0: grey
    assert max(colours) > np.ptp(pixels, axis=2).mean()


def test_hue_turns_the_colour_circle():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for turns, colour in ((1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255)), (0.5, (0, 255, 255))):
        np.testing.assert_allclose(np.asarray(turn_hue(red, turns))[0, 0], colour, atol=8)
    grey = Image.new("RGB", (4, 4), (90, 90, 90))
    assert turn_hue(grey, 0.3).getpixel((0, 0)) == (90, 90, 90)
    seen = np.array([jittered(seed, hue=0.5) for seed in range(20)])
    assert seen.std(axis=0).max() > 40


def test_the_order_of_the_four_varies():
    picture = photo(16, 16)
    limits = Jitter(0.5, 0.5, 0.5, 0.2)
    results = {jitter(picture, limits, np.random.default_rng(seed)).tobytes() for seed in range(30)}
    assert len(results) == 30


def test_jitter_and_grayscale_come_as_often_as_they_should():
    pixels = np.asarray(photo(8, 8))

    def share(is_changed, **limits) -> float:
        return float(np.mean([is_changed(augmented(pixels, 8, n, **limits)) for n in range(400)]))

    changed = share(lambda x: (x != pixels).any(), brightness=0.8, jitter_probability=0.3)
    grey = share(lambda x: not np.ptp(x, axis=2).any(), grayscale_probability=0.2)
    assert changed == pytest.approx(0.3, abs=0.06)
    assert grey == pytest.approx(0.2, abs=0.06)


def test_grayscale_is_luma():
    pixels = np.asarray(photo(16, 16))
    grey = augmented(pixels, 16, grayscale_probability=1)
    assert np.abs(grey - (pixels @ LUMA)[:, :, None]).max() <= 1


def test_every_operation_of_randaugment_does_something_and_keeps_the_form():
    weak = photo(40, 30).point(lambda level: 60 + level // 3)
    for name, (operation, has_sides) in OPERATIONS.items():
        for strength in (1.0, -1.0) if has_sides else (1.0,):
            result = operation(weak, strength)
            assert (result.size, result.mode) == ((40, 30), "RGB"), name
            assert (result.tobytes() != weak.tobytes()) == (name != "identity"), name
        if name not in ("autocontrast", "equalize"):
            unchanged = np.asarray(operation(weak, 0.0)).astype(int)
            assert np.abs(unchanged - np.asarray(weak)).max() == 0, name
    assert len(OPERATIONS) == 14


def test_geometric_operations_move_by_what_they_say():
    dot = Image.new("RGB", (331, 331))
    dot.paste((255, 255, 255), (162, 162, 169, 169))

    def centre(name: str, strength: float) -> tuple[float, float]:
        rows, columns = np.nonzero(np.asarray(OPERATIONS[name][0](dot, strength))[:, :, 0] > 99)
        return columns.mean() - 165, rows.mean() - 165

    np.testing.assert_allclose(centre("translate_x", 0.5), (75, 0), atol=0.6)
    np.testing.assert_allclose(centre("translate_y", -0.5), (0, -75), atol=0.6)
    for name in ("shear_x", "shear_y", "rotate"):
        np.testing.assert_allclose(centre(name, 1.0), (0, 0), atol=0.6)
    bar = Image.new("RGB", (201, 201))
    bar.paste((255, 255, 255), (98, 0, 103, 201))
    slanted = np.asarray(OPERATIONS["shear_x"][0](bar, 1.0))[:, :, 0]
    ends = [np.nonzero(slanted[row] > 99)[0].mean() for row in (0, -1)]
    assert abs(ends[0] - ends[1]) == pytest.approx(0.3 * 200, abs=1.5)


def test_randaugment_draws_all_operations_alike():
    picture = photo(40, 30).point(lambda level: 60 + level // 3)
    results = [
        rand_augment(picture, 1, 20, np.random.default_rng(seed)).tobytes() for seed in range(600)
    ]
    assert results.count(picture.tobytes()) / 600 == pytest.approx(1 / 14, abs=0.03)
    assert 20 <= len(set(results)) <= 24  # 9 with two sides, 4 with one, identity
