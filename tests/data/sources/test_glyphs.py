"""The embedded dataset: its counts, its split, and that drawing keeps scale and baseline."""

from pathlib import Path

import numpy as np
import pytest

from clip_jax.data.sources import glyphs
from clip_jax.errors import UserError


@pytest.fixture(scope="module")
def train() -> glyphs.Glyphs:
    return glyphs.open_glyphs("train")


@pytest.fixture(scope="module")
def test() -> glyphs.Glyphs:
    return glyphs.open_glyphs("test")


def image_of(source: glyphs.Glyphs, character: str) -> np.ndarray:
    index = np.flatnonzero(source.codepoints == ord(character))[0]
    return source.images[index]


def test_counts(train: glyphs.Glyphs, test: glyphs.Glyphs) -> None:
    # Unicode grows with Python: a name more or less is no defect.
    assert abs(len(train) - 46_939) < 100
    assert abs(len(set(train.names)) - 6_668) < 20
    assert abs(len(test) - 3_287) < 5
    assert abs(len(set(test.names) - set(train.names)) - 670) < 10
    letters = [c for c in test.codepoints if glyphs.is_ascii_letter(int(c))]
    assert len(letters) == 52


def test_the_test_face_is_in_no_other_split(test: glyphs.Glyphs) -> None:
    assert test.faces == ("STIXGeneral.ttf",)
    for split, faces in glyphs.SPLITS.items():
        assert (split == "test") == any("STIX" in face for face in faces)
    assert glyphs.VALIDATION_FACE not in glyphs.SPLITS["train_without_validation"]
    assert len(glyphs.SPLITS["train"]) == 12


def test_one_scale_and_one_baseline(train: glyphs.Glyphs, test: glyphs.Glyphs) -> None:
    for source in (train, test):
        heights = {}
        for character in "cCoOx":
            rows = np.flatnonzero((image_of(source, character) < 128).any(axis=1))
            heights[character] = rows[-1] - rows[0] + 1
            assert abs(rows[-1] + 1 - glyphs.BASELINE) <= 1  # they stand on the baseline
        assert heights["C"] > 1.2 * heights["c"]
        assert heights["O"] > 1.2 * heights["o"]
        descender = np.flatnonzero((image_of(source, "p") < 128).any(axis=1))
        assert descender[-1] > glyphs.BASELINE + 2


def test_records(train: glyphs.Glyphs) -> None:
    index = next(i for i, name in enumerate(train.names) if name == "latin capital letter a")
    record = train[index]
    assert record.captions == ("latin capital letter a",)
    assert record.key.endswith("/U+0041")
    assert train.metadata(index)["codepoint"] == 0x41
    assert record.image.shape == (32, 32, 3)
    assert record.image.dtype == np.uint8
    assert record.image.max() == 255
    assert all(image.min() < 255 for image in train.images)  # no blanks
    with pytest.raises(UserError, match="train"):
        glyphs.open_glyphs("everything")


def test_damaged_cache_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path))
    first = glyphs.open_glyphs("test")
    (cache,) = (tmp_path / "glyphs").iterdir()
    assert np.array_equal(glyphs.open_glyphs("test").images, first.images)  # from the cache
    cache.write_bytes(b"PK\x03\x04 cut short")
    again = glyphs.open_glyphs("test")
    assert np.array_equal(again.images, first.images)
    assert again.fingerprint == first.fingerprint
