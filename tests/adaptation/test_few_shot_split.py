"""Few-shot splits: sizes, nesting, and validation images that train in no run."""

import itertools

import numpy as np
import pytest

from clip_jax.adapt.few_shot import few_shot_split, whole_split
from clip_jax.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, -1], [24, 21, 30, 5]))
NAMES = ("cat", "dog", "owl")


def sizes(records: np.ndarray) -> list[int]:
    return np.bincount(LABELS[records], minlength=3).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_shots_are_nested_and_apart_from_validation(seed: int) -> None:
    shots = (1, 2, 4, 8, 16)
    splits = [few_shot_split(LABELS, NAMES, k, seed, 16, "photos") for k in shots]
    for k, split in zip(shots, splits, strict=True):
        assert sizes(split.train) == [k] * 3
        assert sizes(split.validation) == [min(k, 4)] * 3
    for few, more in itertools.pairwise(splits):
        assert set(few.train) < set(more.train)
        assert set(few.validation) <= set(more.validation)
    assert not set(splits[-1].train) & set(splits[-1].validation)
    other = few_shot_split(LABELS, NAMES, 4, seed + 1, 16, "photos")
    assert set(other.train) != set(splits[2].train)


def test_all_images_but_a_tenth() -> None:
    split = whole_split(LABELS, NAMES, 0, "photos")
    assert sizes(split.validation) == [2, 2, 3]
    assert sorted([*split.train, *split.validation]) == np.flatnonzero(LABELS >= 0).tolist()


def test_too_few_images() -> None:
    message = "shots=18: class 'dog' of photos has 21 images; needed are 22, 18 to train and 4"
    with pytest.raises(UserError, match=message):
        few_shot_split(LABELS, NAMES, 2, 0, 18, "photos")
    with pytest.raises(UserError, match="class 'emu' of photos has 0 images; needed are 2"):
        whole_split(LABELS, (*NAMES, "emu"), 0, "photos")
