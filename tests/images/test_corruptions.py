"""Corruptions: equal draws for equal pixels, worse with severity; and shrunk images."""

import numpy as np
import pytest
from PIL import Image

from clip_jax.errors import UserError
from clip_jax.images.corruptions import KINDS, corrupt, shrink

pytest.importorskip("imagecorruptions")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth colours with an edge, uint8 (2, 64, 64, 3)."""
    rows, columns = np.mgrid[:64, :64]
    one = np.stack([rows * 3, columns * 3, np.where(rows > columns, 200, 40)], -1)
    return np.stack([one, one[::-1]]).astype(np.uint8)


# Glass blur is left out, as its compilation takes most of a minute.
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "glass_blur"])
def test_draws_depend_on_the_pixels_alone(images: np.ndarray, kind: str) -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    once = corrupt(images, kind, 3)
    assert once.shape == images.shape
    assert once.dtype == np.uint8
    np.testing.assert_array_equal(corrupt(images[1:], kind, 3)[0], once[1])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]
    errors = [np.abs(corrupt(images, kind, s).astype(int) - images).mean() for s in (1, 5)]
    assert 0 < errors[0] < errors[1]


@pytest.mark.slow
def test_glass_blur_can_be_repeated(images: np.ndarray) -> None:
    np.testing.assert_array_equal(
        corrupt(images, "glass_blur", 2), corrupt(images, "glass_blur", 2)
    )


def test_shrunk_images_are_those_of_pillow(images: np.ndarray) -> None:
    small = Image.fromarray(images[0]).resize((16, 16), Image.Resampling.BICUBIC)
    large = small.resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(shrink(images, 16)[0], np.asarray(large))


def test_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="16 pixels"):
        corrupt(np.zeros((1, 16, 16, 3), np.uint8), "fog", 1)
