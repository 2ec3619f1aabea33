"""Features that are computed once: views depend on their image alone."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_clip import tiny_architecture

from clip_jax.adapt.features import Features, Part
from clip_jax.adapt.learning import CROPS, Images
from clip_jax.errors import UserError

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(5)]


class Source(list[Any]):
    def __getitem__(self, number: Any) -> Any:
        return SimpleNamespace(image=super().__getitem__(number))

    def key(self, number: int) -> str:
        return f"picture {number}"


class Means:
    """Stands for a model: an image's features are the means of its colours."""

    def __init__(self) -> None:
        self.images = 0

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        return images.mean((1, 2)).astype(np.float32)


def make(pictures: list[Any], batch_size: int) -> tuple[Features, Means]:
    source, clip = Source(pictures), Means()
    images = Images(source, tiny_architecture(), CROPS)  # type: ignore[arg-type]
    part = Part(source, SimpleNamespace(numbers=np.zeros(5)))  # type: ignore[arg-type]
    return Features(clip, images, batch_size, part), clip  # type: ignore[arg-type]


def test_views_depend_on_their_image_alone() -> None:
    features, clip = make(PICTURES, 4)
    found = features.views(np.array([3, 1, 4]), 2)
    assert found.shape == (2, 3, 3)
    assert clip.images == 6
    alone, _ = make(PICTURES, 1)
    assert (alone.views(np.array([1]), 2)[:, 0] == found[:, 1]).all()
    again = features.views(np.array([4, 3, 3]), 2)
    assert (again == found[:, [2, 0, 0]]).all()
    assert clip.images == 6  # nothing is embedded twice
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_a_training_image_that_cannot_be_decoded() -> None:
    features, _ = make([*PICTURES[:4], b"none"], 4)
    with pytest.raises(UserError, match="training image picture 4"):
        features.views(np.array([4]), 2)
