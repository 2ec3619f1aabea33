"""Which split is read, and how it may be spelt."""

import pytest

from clip_jax.data.options import SourceOptions
from clip_jax.data.sources.splits import choose_split, is_split_name
from clip_jax.errors import UserError

ALL = ("train", "validation", "test")
EVALUATION = ("test", "validation")


@pytest.mark.parametrize(
    ("names", "wanted", "preferred", "chosen"),
    [
        (ALL, None, ("train",), "train"),
        (ALL, None, EVALUATION, "test"),
        (ALL, "validation", ("train",), "validation"),
        (ALL, "val", ("train",), "validation"),
        (ALL, "Test", ("train",), "test"),
        (("train", "val"), None, EVALUATION, "val"),
        (("training", "dev"), None, ("train",), "training"),
        (("training", "dev"), "validation", ("train",), "dev"),
        (("Train", "Testing"), "test", ("train",), "Testing"),
        (("train", "training"), "training", ("train",), "training"),
        (("val", "dev"), "dev", ("train",), "dev"),
        (("en", "de"), "de", ("train",), "de"),
        (("en", "training"), None, EVALUATION, "training"),
        (("all",), None, ("train",), "all"),
        (("train[:50]",), "train[:50]", ("train",), "train[:50]"),
    ],
)
def test_split_that_is_read(
    names: tuple[str, ...], wanted: str | None, preferred: tuple[str, ...], chosen: str
) -> None:
    options = SourceOptions(split=wanted, preferred_splits=preferred)
    assert choose_split("data", names, options) == chosen


@pytest.mark.parametrize("wanted", ["testing", "tes", "", "trainn"])
def test_missing_split_names_those_that_are_there(wanted: str) -> None:
    message = rf"^pets has no split '{wanted}'; its splits are: train, val;"
    with pytest.raises(UserError, match=message):
        choose_split("pets", ("train", "val"), SourceOptions(split=wanted))


def test_of_several_without_a_usual_name_none_is_taken_in_silence() -> None:
    with pytest.raises(UserError, match="pets has no split 'test'; its splits are: en, de; name"):
        choose_split("pets", ("en", "de"), SourceOptions(preferred_splits=EVALUATION))


def test_names_of_splits() -> None:
    assert all(map(is_split_name, ("train", "Val", "dev", "TESTING")))
    assert not any(map(is_split_name, ("cat", "train2017", "")))
