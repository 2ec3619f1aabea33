"""Fast decoding against Pillow's full decode and resize, on real photos and for every setting."""

import io
import itertools
import tarfile

import numpy as np
import pytest
from pictures import encode, turned
from PIL import Image
from places import SHARED_DATA

from clip_jax.images import augmentation as augmentation_module
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.images.decoding import _UPRIGHT

PHOTOS = SHARED_DATA / "grocery" / "train"

pytestmark = pytest.mark.skipif(
    not (PHOTOS / "00000.tar").is_file(),
    reason="the photos are not beside the repository (../shared/data/grocery)",
)

LIMIT = 1.5  # levels of 255, on the mean over pixels and photos
RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SCALES = [(0.9, 1.0), (0.08, 1.0)]


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """A few of each shard, as they are: 256 x 256 and thereabouts, sharp to the pixel."""
    found = []
    for shard in sorted(PHOTOS.glob("*.tar"))[::2]:
        with tarfile.open(shard) as tar:
            members = [member for member in tar if member.name.endswith(".jpg")]
            found += [tar.extractfile(member).read() for member in members[::90]]  # type: ignore[union-attr]
    return found


def saved_again(photo: bytes, width: int, height: int, **options) -> bytes:
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return encode(picture, "JPEG", quality=90, **options)


def differences(
    jpegs: list[bytes], size: int, interpolation: str, monkeypatch, **options
) -> tuple[float, float]:
    """(mean, of the worst photo) of |fast - Pillow with the same box|."""
    boxes: list[tuple] = []
    crop_box = augmentation_module._crop_box

    def remember(*arguments):
        boxes.append(crop_box(*arguments))
        return boxes[-1]

    monkeypatch.setattr(augmentation_module, "_crop_box", remember)
    found = []
    for seed, jpeg in enumerate(jpegs):
        rng = np.random.default_rng(seed)
        fast = training_image(jpeg, size, interpolation, Augmentation(**options), rng)
        full = Image.open(io.BytesIO(jpeg)).convert("RGB")
        full = full.resize((size, size), RESAMPLE[interpolation], box=boxes[-1])
        found.append(np.abs(fast.astype(int) - np.asarray(full)).mean())
    monkeypatch.undo()
    return float(np.mean(found)), max(found)


@pytest.mark.parametrize("interpolation", RESAMPLE)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [24, 40, 64, 80, 112, 160, 224, 336])
def test_small_sharp_photos(photos, size, scale, interpolation, monkeypatch):
    mean, worst = differences(photos, size, interpolation, monkeypatch, crop_scale=scale)
    assert mean <= LIMIT
    assert worst <= 2 * LIMIT


CROPS = [{"crop_scale": scale} for scale in SCALES]
WHOLE = [{"crop_scale": (1, 1)}, {"resize": "squash"}]
SUBSAMPLED = {"subsampling": "4:2:0"}
STORED = [  # width, height, how it is stored, every how many photos, crops
    (640, 480, SUBSAMPLED, 8, CROPS),
    (640, 480, {"subsampling": "4:4:4"}, 8, CROPS),
    (480, 640, {"progressive": True}, 8, CROPS),
    (1023, 767, SUBSAMPLED, 8, CROPS),  # odd: halves do not divide it
    (1600, 1201, {"subsampling": "4:4:4"}, 8, CROPS),
    *((size, size * 2 // 3, {}, 8, WHOLE) for size in (640, 641, 1280)),
    pytest.param(4001, 2667, {}, 16, WHOLE, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("width", "height", "stored", "step", "crops"), STORED)
def test_photos_of_usual_sizes(photos, width, height, stored, step, crops, monkeypatch):
    few = [saved_again(photo, width, height, **stored) for photo in photos[::step]]
    for crop, interpolation in itertools.product(crops, RESAMPLE):
        mean, worst = differences(few, 224, interpolation, monkeypatch, **crop)
        assert mean <= LIMIT, (crop, interpolation)
        assert worst <= 2 * LIMIT, (crop, interpolation)


def of_a_camera(photo: bytes, width: int, height: int, format: str) -> bytes:
    """With the grain of a sensor: detail at every frequency, which hides no difference."""
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = np.random.default_rng(len(photo)).normal(0, 12, (height, width, 1)).astype(np.int16)
    noisy = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    return encode(noisy, format, **({"quality": 95} if format == "JPEG" else {}))


@pytest.mark.parametrize("interpolation", RESAMPLE)
@pytest.mark.parametrize(
    ("width", "height", "format"),
    [(640, 480, "JPEG"), (640, 480, "PNG"), (1000, 500, "JPEG"), (448, 450, "PNG")],
)
def test_photos_with_grain(photos, width, height, format, interpolation, monkeypatch):
    few = [of_a_camera(photo, width, height, format) for photo in photos[::12]]
    # Of JPEGs the decoder leaves out the upper half of the frequencies, by a filter of its own:
    # what is there of grain it lets pass a little more of.
    limit = LIMIT if format == "PNG" else 1.4 * LIMIT
    for options in [*CROPS, *WHOLE, {"crop_scale": (0.2, 1.0), "crop_ratio": (0.5, 2.0)}]:
        mean, worst = differences(few, 224, interpolation, monkeypatch, **options)
        assert mean <= limit, options
        assert worst <= 1.2 * limit, options


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photos_on_their_side(photos, orientation, monkeypatch):
    options = Augmentation(crop_scale=(0.3, 1))
    for photo in photos[:3]:
        stored = saved_again(photo, 641, 480, exif=turned(orientation))
        upright = Image.open(io.BytesIO(stored)).convert("RGB").transpose(_UPRIGHT[orientation])
        for size in (96, 224):
            fast, full = (
                training_image(image, size, "bicubic", options, np.random.default_rng(5))
                for image in (stored, np.asarray(upright))
            )
            assert np.abs(fast.astype(int) - full).mean() <= LIMIT
