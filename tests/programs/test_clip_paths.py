"""Paths that `Clip` and its templates take: the user's home, and places where nothing can be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_clip import tiny

from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_templates, read_classnames


class PathOf:
    def __init__(self, path: str) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return self._path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder; the current folder is another."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("kind", [str, Path, PathOf])
def test_home_in_paths(home: Path, kind: Callable[[str], Any]) -> None:
    clip = tiny()
    clip.save(kind("~/models/x"))
    assert (home / "models" / "x" / "config.json").is_file()
    (home / "t.txt").write_text("a {}\nthe {}\n")
    assert get_templates(kind("~/t.txt")) == ("a {}", "the {}")
    assert read_classnames(kind("~/t.txt")) == ("a {}", "the {}")
    Image.new("RGB", (32, 32), "red").save(home / "a.png")
    expected = clip.encode_image([home / "a.png"])
    np.testing.assert_array_equal(clip.encode_image([kind("~/a.png")]), expected)
    assert list((home.parent / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("", "is not a path"),
        (" ", "is not a path"),
        ("a\0b", "is not a path"),
        (None, "must be a path"),
        (5, "must be a path"),
        ("gs://bucket/x", "is a URL; give a path on this machine"),
        ("~nobody_of_this_name/x", "~nobody_of_this_name is the home of no user here"),
        ("file.txt", "is a file; give a new or empty folder"),
        (b"file.txt", "is a file"),
        ("file.txt/below", "cannot be written"),
    ],
)
def test_where_nothing_can_be_saved(home: Path, directory: Any, message: str) -> None:
    here = home.parent / "here"
    (here / "file.txt").write_text("mine")
    clip = tiny()
    for format in ("clip_jax", "huggingface", "open_clip"):
        with pytest.raises(UserError, match=message):
            clip.save(directory, format)
    assert [entry.name for entry in here.iterdir()] == ["file.txt"]
    assert (here / "file.txt").read_text() == "mine"
