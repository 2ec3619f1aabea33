"""Folders of images that are splits or classes, or neither."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import classes, json_lines, lay, opened, table
from small_sets import refused, write

from clip_jax.data.sources import open_source
from clip_jax.errors import DecodeError

Log = pytest.LogCaptureFixture


SPLITS = {
    "train test": {"train": "train", "test": "test", "eval": "test"},
    "train val": {"train": "train", "validation": "val", "eval": "val"},
    "training dev testing": {"train": "training", "val": "dev", "eval": "testing"},
    "Train Validation": {"train": "Train", "valid": "Validation", "eval": "Validation"},
    "validation test": {"val": "validation", "test": "test", "eval": "test"},
}


@pytest.mark.parametrize("has_tables", [False, True])
@pytest.mark.parametrize("inside", ["", "data", "a/b/c"])
@pytest.mark.parametrize("splits", SPLITS)
def test_one_split_is_read(
    tmp_path: Path, splits: str, inside: str, has_tables: bool, caplog: Log
) -> None:
    folder, names = tmp_path / inside, splits.split()
    for split in names:
        lay(folder, f"{split}/dog", f"{split}/cat")
        if has_tables:
            write(folder / split / "metadata.csv", "file_name,text\ncat/0.png,x\n")
    (tmp_path / "docs").mkdir()
    write(tmp_path / "README.md", "words")
    for wanted, chosen in SPLITS[splits].items():
        options: dict[str, Any] = {"split": wanted}
        if wanted == "eval":
            options = {"preferred_splits": ("test", "validation")}
        source = open_source(tmp_path, **options)
        assert source.split == chosen  # type: ignore[attr-defined]
        assert (f"its split '{chosen}' is read" in caplog.text) == (options.get("split") is None)
        assert len(source) == (1 if has_tables else 6)
        assert source.key(0) == str(Path(inside, chosen, "cat", "0.png"))
        assert source.captions(0) == (("x",) if has_tables else ("a photo of a cat.",))
        assert set(classes(tmp_path, **options).values()) == {"cat", "dog"}
        caplog.clear()
    refused(rf"no split 'extra'; its splits are: {min(names)}", tmp_path, split="extra")


def test_tables_named_as_splits(tmp_path: Path) -> None:
    lay(tmp_path, ".")
    write(tmp_path / "train.csv", "image,caption\n0.png,zero\n")
    write(tmp_path / "val.csv", "image,caption\n1.png,one\n")
    assert opened(tmp_path) == {"0.png": ("zero",)}
    assert opened(tmp_path, split="validation") == {"1.png": ("one",)}
    assert opened(tmp_path, preferred_splits=("test", "validation")) == {"1.png": ("one",)}


def test_folders_that_are_no_splits(tmp_path: Path) -> None:
    lay(tmp_path, "train/dog")
    for options in ({}, {"split": "train"}):
        assert next(iter(opened(tmp_path, **options))) == "train/dog/0.png"
    refused("no split 'test'; its splits are: train", tmp_path, split="test")
    lay(tmp_path, "bus")  # with a bus, a train may be a class
    assert len(opened(tmp_path)) == 6
    lay(tmp_path, "data/train", "data/test")
    assert len(opened(tmp_path)) == 12


def test_links_without_end_end(tmp_path: Path) -> None:
    lay(tmp_path, "dog")
    (tmp_path / "dog" / "above").symlink_to(tmp_path)
    (tmp_path / "dog" / "itself").symlink_to("itself")
    assert len(opened(tmp_path)) == 3
    (tmp_path / "loop" / "a").mkdir(parents=True)
    (tmp_path / "loop" / "a" / "b").symlink_to(tmp_path / "loop")
    refused("no image with a caption", tmp_path / "loop")


def test_without_captions(tmp_path: Path) -> None:
    lay(tmp_path, ".")
    refused(r"0\.png: no \.txt caption beside it and not in a subfold", tmp_path)
    assert opened(tmp_path, needs_captions=False) == {f"{n}.png": () for n in range(3)}
    lay(tmp_path, "tabby_cat")
    write(tmp_path / "tabby_cat" / "0.txt", "a cat")
    write(tmp_path / "tabby_cat" / "1.txt", "")
    source = open_source(tmp_path, needs_captions=False)
    assert (len(source), source.dropped.total) == (6, 0)
    assert [source.metadata(index) for index in (0, 3, 4, 5)] == [{}, *[{"class": "tabby cat"}] * 3]
    assert [source.captions(index) for index in (3, 4)] == [("a cat",), ()]
    (tmp_path / "0.png").unlink()
    with pytest.raises(DecodeError, match=r"0\.png cannot be read"):
        source[0]
    (tmp_path / "empty").mkdir()
    refused("has no image; give", tmp_path / "empty", needs_captions=False)


def test_labels_of_a_table_or_of_folders(tmp_path: Path) -> None:
    lay(tmp_path, "dog")
    write(tmp_path / "metadata.csv", "file_name,breed\ndog/0.png,pug\ndog/1.png,poodle\n")
    options = {"needs_captions": False}
    assert open_source(tmp_path, **options).metadata(0) == {"class": "dog"}
    source = open_source(tmp_path, **options, label_column="Breed")
    assert [source.metadata(index)["Breed"] for index in range(len(source))] == ["pug", "poodle"]
    assert source.captions(0) == ()
    # A table of captions is read if the folders are no classes.
    lay(tmp_path / "in", "train")
    write(tmp_path / "in" / "train" / "metadata.csv", "file_name,text,breed\n0.png,a,pug\n")
    source = open_source(tmp_path / "in", **options, label_column="class")
    assert source.metadata(0) == {"breed": "pug"}  # which a message about "class" can name
    # Labels in a table come before those of folders.
    lay(tmp_path / "both", "cat", "dog")
    write(tmp_path / "both" / "captions.csv", "image,caption,Class\ncat/0.png,a,pug\n")
    assert classes(tmp_path / "both") == {"cat/0.png": "pug"}


CAPTIONED = [
    {"captions.csv": "image,caption\ncat/0.png,a\ndog/1.png,b\n"},
    {"metadata.jsonl": json.dumps({"file_name": "cat/0.png", "text": "a"})},
    {f"{name}/metadata.jsonl": json_lines() for name in ("cat", "dog")},
    {"dog/metadata.csv": table()},
    {"captions.token.txt": "cat/0.png#0\ta\ncat/0.png#1\tb\n"},
]


@pytest.mark.parametrize("tables", CAPTIONED)
def test_folders_are_the_labels_beside_tables_of_captions(tmp_path: Path, tables: dict) -> None:
    for folder in (tmp_path / "in", tmp_path / "splits" / "train", tmp_path / "splits" / "test"):
        lay(folder, "cat", "dog")
        for name, content in tables.items():
            write(folder / name, content)
    expected = {f"{name}/{n}.png": name for name in ("cat", "dog") for n in range(3)}
    assert classes(tmp_path / "in") == expected
    assert all(text[0] in "abr" for text, *_ in opened(tmp_path / "in").values())  # in the tables
    found = classes(tmp_path / "splits", split="test")
    assert found == {f"test/{key}": name for key, name in expected.items()}


NAMED_AS_SPLITS = [
    ("cat/train cat/test dog/train dog/test", "test, train"),
    *[("cat/Train dog/val", "Train, val"), ("train", "train"), ("train/cat train/dog", None)],
    *[("bus train", None), ("data/cat data/dog", None)],
]


@pytest.mark.parametrize(("folders", "are_splits"), NAMED_AS_SPLITS)
def test_classes_named_as_splits_are_spoken_of(
    tmp_path: Path, folders: str, are_splits: str | None, caplog: Log
) -> None:
    lay(tmp_path, *folders.split())
    for options in ({}, {"needs_captions": False, "label_column": "class"}):
        caplog.clear()
        open_source(tmp_path, **options)  # type: ignore[arg-type]
        said = [text for text in caplog.messages if "which are names of splits" in text]
        assert len(said) == (are_splits is not None)
        assert are_splits is None or f"its classes are {are_splits}, which" in said[0]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("tabby_cat-x", "dog"), ("tabby cat x", "dog")),
        (("T-shirt", "T_shirt", "hat_"), ("T-shirt", "T_shirt", "hat")),
        (("a b", "a_b", "a  b"), ("a b", "a_b", "a  b")),
        (("-1", "1", "2"), ("-1", "1", "2")),
        (("-1", "0", "-2.5"), ("-1", "0", "-2.5")),
        (("_3", "4-", "5_6"), ("_3", "4-", "5 6")),
        (("---", "_"), ("---", "_")),
        (("x/cat_a", "y/cat_a"), ("cat a", "cat a")),
        (("x/cat_a", "y/cat-a"), ("cat_a", "cat-a")),
    ],
)
def test_each_folder_is_a_class_of_its_own(
    tmp_path: Path, folders: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    lay(tmp_path, *(f"{folder}/0.png" for folder in folders))
    assert classes(tmp_path) == {
        f"{folder}/0.png": name for folder, name in zip(folders, expected, strict=True)
    }
    if any(map(str.isalnum, "".join(folders))):
        for key, captions in opened(tmp_path, caption_template="is {}").items():
            readable = key.split("/")[-2].replace("_", " ").replace("-", " ")
            assert captions == (" ".join(["is", *readable.split()]),)
        refused("caption_template 'a pet'", tmp_path, caption_template="a pet")
    else:
        refused("the name of its folder has no letters", tmp_path)
