"""Folders of images whose captions are in tables, beside the images, or in the names of folders."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from shards import png

from clip_jax.data.sources import open_source
from clip_jax.errors import UserError

REAL = ["real caption 0", "real caption 1", "real caption 2"]


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_images(folder: Path, names: tuple[str, ...] = ("0.png", "1.png", "2.png")) -> None:
    for number, name in enumerate(names):
        write(folder / name, png(number))


def json_lines(*, image: str = "file_name", caption: str = "text") -> str:
    rows = ({image: f"{n}.png", caption: text} for n, text in enumerate(REAL))
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(delimiter: str = ",", head: str = "file_name,text") -> str:
    rows = [head, *(f"{n}.png,{text}" for n, text in enumerate(REAL))]
    return "".join(row.replace(",", delimiter) + "\n" for row in rows)


def opened(path: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    source = open_source(path, **options)
    for index in range(len(source)):
        assert source[index].image
        assert source.key(index - len(source)) == source.key(index) == source[index].key
    return {source.key(index): source.captions(index) for index in range(len(source))}


TABLES = {
    "metadata.jsonl": json_lines(),
    "metadata.csv": table(),
    "captions.csv": table(head="image,caption"),
    "captions.tsv": table("\t"),
    "captions.txt": table(head="image,caption"),
    "captions.json": json.dumps([json.loads(line) for line in json_lines().splitlines()]),
    "mine.jsonl": json_lines(image="path", caption="caption"),
    "list.CSV": table(),
    "captions.token.txt": "".join(f"{n}.png#{k}\t{REAL[n]}\n" for n in range(3) for k in range(1)),
}


@pytest.mark.parametrize("folder", ["", "train", "photos", "a/b"])
@pytest.mark.parametrize("name", list(TABLES))
def test_the_table_in_a_folder_is_read(tmp_path: Path, name: str, folder: str) -> None:
    write_images(tmp_path / folder)
    write(tmp_path / folder / name, TABLES[name])
    prefix = f"{folder}/" if folder else ""
    assert opened(tmp_path) == {f"{prefix}{n}.png": (REAL[n],) for n in range(3)}


def test_the_parquet_table_of_a_subfolder_is_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    write_images(tmp_path / "train")
    columns = {"file_name": [f"{n}.png" for n in range(3)], "text": REAL}
    pq.write_table(pa.table(columns), tmp_path / "train" / "metadata.parquet")
    assert opened(tmp_path) == {f"train/{n}.png": (REAL[n],) for n in range(3)}


def test_tables_of_several_folders_are_read_together(tmp_path: Path) -> None:
    for folder in ("birds", "pets"):
        write_images(tmp_path / folder)
        write(tmp_path / folder / "metadata.jsonl", json_lines() + "no JSON\n")
    assert list(opened(tmp_path)) == [f"{f}/{n}.png" for f in ("birds", "pets") for n in range(3)]
    source = open_source(tmp_path)
    assert list(source.dropped) == ["birds/metadata.jsonl line 4", "pets/metadata.jsonl line 4"]
    assert source.dropped.total == 2


def test_images_in_a_folder_beside_the_table(tmp_path: Path) -> None:
    write_images(tmp_path / "Images")
    write(tmp_path / "captions.txt", table(head="image,caption"))
    assert opened(tmp_path) == {f"Images/{n}.png": (REAL[n],) for n in range(3)}
    write_images(tmp_path / "Copies")
    with pytest.raises(UserError, match=r"captions\.txt: none of its first images exists"):
        open_source(tmp_path)


def test_a_table_with_paths_through_the_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test")
    write(tmp_path / "metadata.csv", "file_name,text\ntrain/0.png,one\ntest/1.png,two\n")
    assert opened(tmp_path) == {"train/0.png": ("one",), "test/1.png": ("two",)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("metadata.csv", "metadata.jsonl"), r"several tables .*metadata\.csv, metadata\.jsonl"),
        (("metadata.csv", "train/metadata.csv"), r"metadata\.csv, train/metadata\.csv; give one"),
        (("a/captions.csv", "a/b/captions.csv"), r"a/b/captions\.csv, a/captions\.csv"),
    ],
)
def test_of_several_tables_one_must_be_given(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    write_images(tmp_path)
    for name in names:
        write_images((tmp_path / name).parent)
        write(tmp_path / name, json_lines() if name.endswith("jsonl") else table())
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)
    assert len(open_source(tmp_path / names[0])) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", table(head="file_name,words"), "columns are: file_name, words"),
        ("metadata.jsonl", json_lines(caption="words"), "columns are: file_name, words"),
        ("list.csv", table(head="photo,caption"), "columns are: photo, caption"),
        ("captions.txt", "nice pictures of my dog\n", r"captions\.txt has none of image"),
        ("metadata.csv", table().encode("utf-16"), r"metadata\.csv is UTF-16"),
        ("metadata.csv", b"file_name,caf\xe9\n", r"metadata\.csv is no readable UTF-8 text"),
    ],
)
@pytest.mark.parametrize("folder", ["", "train", "2024"])
def test_an_unknown_table_is_named(
    tmp_path: Path, folder: str, name: str, content: str | bytes, message: str
) -> None:
    write_images(tmp_path / folder)
    write(tmp_path / folder / name, content)
    with pytest.raises(UserError, match=message) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_its_columns_can_be_named(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write(tmp_path / "train" / "metadata.csv", table(head="photo,words"))
    found = opened(tmp_path, image_column="photo", caption_column="words")
    assert found == {f"train/{n}.png": (REAL[n],) for n in range(3)}
    write_images(tmp_path / "other" / "dog")
    with pytest.raises(UserError, match=r"image_column='x': data of format folder"):
        open_source(tmp_path / "other", image_column="x")


def test_classes_beside_a_table_of_something_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "dog")
    write_images(tmp_path / "cat")
    write(tmp_path / "boxes.csv", "image,x,y\ndog/0.png,1,2\n")
    assert opened(tmp_path)["dog/0.png"] == ("a photo of a dog.",)
    assert caplog.text == ""
    write(tmp_path / "metadata.csv", "file_name,x\ndog/0.png,1\n")
    assert len(opened(tmp_path)) == 6
    assert "metadata.csv is not read: " in caplog.text


def test_captions_beside_images_win_over_a_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path)
    write(tmp_path / "0.txt", "of its own")
    write(tmp_path / "1.txt", "too")
    write(tmp_path / "metadata.csv", table())
    assert opened(tmp_path) == {"0.png": ("of its own",), "1.png": ("too",)}
    assert "not from metadata.csv" in caplog.text
    assert "2 samples kept, 1 dropped (1 x caption_missing)" in caplog.text


CAPTION_FILES = [
    ("IMG1.JPG", "IMG1.TXT"),
    ("IMG1.JPG", "IMG1.txt"),
    ("img1.jpg", "img1.TXT"),
    ("Img1.Jpg", "IMG1.txt"),
    ("img1.jpeg", "img1.jpeg.txt"),
    ("img1.JPG", "img1.jpg.TXT"),
    ("v1.2.png", "V1.2.Txt"),
]


@pytest.mark.parametrize(("image", "text"), CAPTION_FILES)
def test_caption_files_in_any_case(tmp_path: Path, image: str, text: str) -> None:
    write(tmp_path / "2024" / image, png(0))
    write(tmp_path / "2024" / text, "a red cat")
    write(tmp_path / "2024" / "other.png", png(1))
    write(tmp_path / "2024" / "other.txt", "a dog")
    assert opened(tmp_path)[f"2024/{image}"] == ("a red cat",)


def test_each_image_has_its_own_caption_file(tmp_path: Path) -> None:
    write_images(tmp_path, ("a.png", "a.jpg", "A.jpg", "b.png", "c.png", "C.png"))
    texts = ("a.png.txt", "a.txt", "A.txt", "B.TXT", "c.txt")
    for text in texts:
        write(tmp_path / text, text)
    found = opened(tmp_path)
    assert found == {
        **{"a.png": ("a.png.txt",), "a.jpg": ("a.txt",), "A.jpg": ("A.txt",)},
        **{"b.png": ("B.TXT",), "c.png": ("c.txt",)},
    }


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (b" \n", "caption_empty", "2.txt: caption is empty"),
        (b"caf\xe9", "caption_not_utf8", "2.txt: caption is not UTF-8"),
        ("a cat".encode("utf-16-le"), "caption_not_utf8", "2.txt: caption is UTF-16; save it as"),
        ("a cat".encode("utf-16-be"), "caption_not_utf8", "iconv -f UTF-16BE -t UTF-8"),
        ("a cat".encode("utf-16"), "caption_not_utf8", "2.txt: caption is"),
        (None, "caption_missing", "2.txt cannot be read: No such file"),
    ],
)
def test_a_bad_caption_file_costs_its_image(
    tmp_path: Path, text: bytes | None, kind: str, message: str
) -> None:
    write_images(tmp_path / "dog", ("1.png", "2.png", "3.png"))
    write(tmp_path / "dog" / "1.txt", "a dog")
    if text is None:
        (tmp_path / "dog" / "2.txt").symlink_to("nowhere.txt")
    else:
        write(tmp_path / "dog" / "2.txt", text)
    source = open_source(tmp_path)
    assert [source.captions(index) for index in range(len(source))] == [("a dog",)]
    assert source.dropped.total == 2
    assert source.dropped.counts[kind] >= 1
    assert message in source.dropped["dog/2.png"]
    assert "which 2 other images have" in source.dropped["dog/3.png"]


SPLITS = {
    ("train", "test"): {"train": "train", "test": "test", "eval": "test"},
    ("train", "val"): {"train": "train", "validation": "val", "eval": "val"},
    ("training", "dev", "testing"): {"train": "training", "val": "dev", "eval": "testing"},
    ("Train", "Validation"): {"train": "Train", "valid": "Validation", "eval": "Validation"},
    ("validation", "test"): {"val": "validation", "test": "test", "eval": "test"},
}


@pytest.mark.parametrize("has_tables", [False, True])
@pytest.mark.parametrize("splits", list(SPLITS))
def test_one_split_is_read(
    tmp_path: Path, splits: tuple[str, ...], has_tables: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for split in splits:
        if has_tables:
            write_images(tmp_path / split)
            write(tmp_path / split / "metadata.csv", table())
        else:
            write_images(tmp_path / split / "dog")
            write_images(tmp_path / split / "cat")
    (tmp_path / "docs").mkdir()
    for wanted, chosen in SPLITS[splits].items():
        options: dict[str, Any] = {"split": wanted}
        if wanted == "eval":
            options = {"preferred_splits": ("test", "validation")}
        source = open_source(tmp_path, **options)
        assert source.split == chosen  # type: ignore[attr-defined]
        assert (f"its split '{chosen}' is read" in caplog.text) == (options.get("split") is None)
        assert len(source) == (3 if has_tables else 6)
        assert all(key.startswith(f"{chosen}/") for key in map(source.key, range(len(source))))
        assert source.captions(0) == ((REAL[0],) if has_tables else ("a photo of a cat.",))
        caplog.clear()
    with pytest.raises(UserError, match=rf"no split 'extra'; its splits are: {sorted(splits)[0]}"):
        open_source(tmp_path, split="extra")


def test_folders_that_are_no_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "dog")
    for options in ({}, {"split": "train"}):
        assert next(iter(opened(tmp_path, **options))) == "train/dog/0.png"
    with pytest.raises(UserError, match="no split 'test'; its splits are: train"):
        open_source(tmp_path, split="test")
    write_images(tmp_path / "bus")  # with a bus, a train may be a class
    assert len(opened(tmp_path)) == 6
    write_images(tmp_path / "test")
    assert len(opened(tmp_path)) == 9


def test_tables_named_as_splits(tmp_path: Path) -> None:
    write_images(tmp_path)
    write(tmp_path / "train.csv", "image,caption\n0.png,zero\n")
    write(tmp_path / "val.csv", "image,caption\n1.png,one\n")
    assert opened(tmp_path) == {"0.png": ("zero",)}
    assert opened(tmp_path, split="validation") == {"1.png": ("one",)}
    assert opened(tmp_path, preferred_splits=("test", "validation")) == {"1.png": ("one",)}


def test_without_captions(tmp_path: Path) -> None:
    write_images(tmp_path)
    assert opened(tmp_path, needs_captions=False) == {f"{n}.png": () for n in range(3)}
    write_images(tmp_path / "tabby_cat")
    write(tmp_path / "tabby_cat" / "0.txt", "a cat")
    write(tmp_path / "tabby_cat" / "1.txt", "")
    source = open_source(tmp_path, needs_captions=False)
    assert (len(source), source.dropped.total) == (6, 0)
    assert [source.metadata(index) for index in (0, 3, 4, 5)] == [{}, *[{"class": "tabby cat"}] * 3]
    assert [source.captions(index) for index in (3, 4)] == [("a cat",), ()]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no image; give"):
        open_source(tmp_path / "empty", needs_captions=False)


def test_labels_of_a_table_or_of_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "dog")
    write(tmp_path / "metadata.csv", "file_name,breed\ndog/0.png,pug\ndog/1.png,poodle\n")
    options = {"needs_captions": False}
    assert open_source(tmp_path, **options).metadata(0) == {"class": "dog"}
    source = open_source(tmp_path, **options, label_column="Breed")
    assert [source.metadata(index)["Breed"] for index in range(len(source))] == ["pug", "poodle"]
    assert source.captions(0) == ()


@pytest.mark.parametrize("kind", ["folder", "csv", "jsonl", "one folder", "tar"])
def test_one_caption_for_all_is_said(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path)
    path, format = tmp_path, "auto"
    if kind == "csv":
        write(tmp_path / "x.csv", "image,caption\n0.png,a dog\n1.png,a dog\n")
        path = tmp_path / "x.csv"
    elif kind == "jsonl":
        rows = (json.dumps({"image": f"{n}.png", "text": ["a dog"] * 2}) for n in range(3))
        write(tmp_path / "x.jsonl", "\n".join(rows))
        path = tmp_path / "x.jsonl"
    elif kind == "folder":
        for number in range(3):
            write(tmp_path / f"{number}.txt", "a dog")
    elif kind == "one folder":
        write_images(tmp_path / "in" / "dog")
        path = tmp_path / "in"
    else:
        from dataset_tools_runs import make_tar

        members = [(f"{n}.png", png(n)) for n in range(2)] + [(f"{n}.txt", b"a") for n in range(2)]
        make_tar(tmp_path / "x.tar", sorted(members))
        path = tmp_path / "x.tar"
    open_source(path, format)
    assert "images have one caption" in caplog.text
    caplog.clear()
    open_source(path, format, needs_captions=False)
    assert "images have one caption" not in caplog.text


def test_captions_that_differ_are_not_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path)
    write(tmp_path / "x.csv", "image,caption\n0.png,a dog\n1.png,a dog\n2.png,a cat\n")
    open_source(tmp_path / "x.csv")
    write(tmp_path / "x.csv", "image,caption\n0.png,a dog\n")
    open_source(tmp_path / "x.csv")
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "photos", "data.tar"])
def test_a_link_to_nowhere_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "gone")
    formats = {"csv": "csv", "tsv": "csv", "jsonl": "jsonl", "tar": "webdataset"}
    for format in ("auto", formats.get(name.rpartition(".")[2], "folder")):
        with pytest.raises(UserError, match=r"is a link to .*gone, which does not exist"):
            open_source(tmp_path / name, format=format)


CLASS_TABLES = {
    "one": {"captions.csv": "image,caption\ncat/0.png,a\ndog/1.png,b\n"},
    "jsonl": {"metadata.jsonl": json.dumps({"file_name": "cat/0.png", "text": "a"})},
    "in each": {f"{name}/metadata.jsonl": json_lines() for name in ("cat", "dog")},
    "csv in each": {f"{name}/captions.csv": table() for name in ("cat", "dog")},
    "in one": {"dog/metadata.csv": table()},
    "tokens": {"captions.token.txt": "cat/0.png#0\ta\ncat/0.png#1\tb\n"},
}


def classes(path: Path, **options: Any) -> dict[str, Any]:
    source = open_source(path, needs_captions=False, label_column="class", **options)
    assert source.dropped.total == 0
    return {source.key(n): source.metadata(n).get("class") for n in range(len(source))}


@pytest.mark.parametrize("tables", list(CLASS_TABLES))
def test_folders_are_the_labels_beside_tables_of_captions(tmp_path: Path, tables: str) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name)
    for name, content in CLASS_TABLES[tables].items():
        write(tmp_path / name, content)
    expected = {f"{name}/{n}.png": name for name in ("cat", "dog") for n in range(3)}
    assert classes(tmp_path) == expected
    assert all(text[0] in "abr" for text, *_ in opened(tmp_path).values())  # its captions are read
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write_images(tmp_path / "splits" / split / name)
        for name, content in CLASS_TABLES[tables].items():
            write(tmp_path / "splits" / split / name, content)
    assert classes(tmp_path / "splits", split="test") == {
        f"test/{key}": name for key, name in expected.items()
    }


def test_a_table_with_the_labels_comes_before_the_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name)
    write(tmp_path / "captions.csv", "image,caption,Class\ncat/0.png,a,pug\ndog/1.png,b,tabby\n")
    assert classes(tmp_path) == {"cat/0.png": "pug", "dog/1.png": "tabby"}


def test_a_table_of_captions_is_read_where_folders_are_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write(tmp_path / "train" / "metadata.csv", "file_name,text,breed\n0.png,a,pug\n")
    source = open_source(tmp_path, needs_captions=False, label_column="class")
    assert source.metadata(0) == {"breed": "pug"}  # which a message about "class" can name


UNNAMED = {
    "a folder without a table": (
        {"a/metadata.jsonl": json_lines()},
        ("b/0.png", "b/1.png"),
        "2 of its 5 images have no usable row in a/metadata.jsonl; .* first is b/0.png",
    ),
    "images beside the folders": (
        {"a/metadata.jsonl": json_lines()},
        ("0.png",),
        "1 of its 4 images .* the first is 0.png",
    ),
    "images in the folder of the table": (
        {"captions.csv": "image,caption\n./a/0.png,x\na//1.png,y\n"},
        (),
        "1 of its 3 images .* captions.csv; .* a/2.png",
    ),
    "two tables": (
        {"a/captions.csv": table(), "b/captions.csv": "image,caption\n0.png,x\n../a/1.png,y\n"},
        ("b/0.png", "b/7.png"),
        "1 of its 5 images have no usable row in any of its 2 tables; .* b/7.png",
    ),
    "images in another folder": (
        {"captions.csv": "image,caption\n0.png,x\n1.png,y\n"},
        (),
        "1 of its 3 images .* a/2.png",
    ),
    "a split": ({"train.csv": "image,caption\na/0.png,x\n"}, ("b/0.png",), None),
    "splits": (
        {"train.csv": "image,caption\na/0.png,x\n", "val.csv": "image,caption\na/1.png,x\n"},
        (),
        None,
    ),
    "all": ({"captions.csv": "image,caption\na/0.png,x\na/./1.png,y\na/../a/2.png,z\n"}, (), None),
}


@pytest.mark.parametrize("case", list(UNNAMED))
def test_images_that_no_row_names_are_spoken_of(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    tables, images, message = UNNAMED[case]
    write_images(tmp_path / "a")
    write_images(tmp_path, images)
    for name, content in tables.items():
        write(tmp_path / name, content)
    source = open_source(tmp_path)
    assert source.dropped.total == 0
    said = [record.getMessage() for record in caplog.records if "no usable row" in record.msg]
    assert len(said) == (message is not None)
    if message is not None:
        assert re.search(message, said[0])
        assert said[0].startswith(f"{tmp_path}: ")
    caplog.clear()
    for name in tables:  # who gives the table means what is in it
        open_source(tmp_path / name) if case != "images in another folder" else None
    assert "no usable row" not in caplog.text


def test_a_row_with_an_absolute_path_names_its_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in" / "a")
    rows = [f"{tmp_path}/in/a/0.png,x", f"file://{tmp_path}/in/a/1.png,y", "a/2.png,z"]
    write(tmp_path / "in" / "captions.csv", "\n".join(["image,caption", *rows]))
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "in", Path("in"), Path("in/../in"), Path("in/")):
        assert len(open_source(path)) == 3
    assert "no usable row" not in caplog.text


@pytest.mark.parametrize("has_tables", [False, True])
@pytest.mark.parametrize("inside", ["data", "a/b/c", "Images"])
def test_splits_further_down(tmp_path: Path, inside: str, has_tables: bool) -> None:
    (tmp_path / "docs").mkdir()
    write(tmp_path / "README.md", "words")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write_images(tmp_path / inside / split / name)
        if has_tables:
            write(tmp_path / inside / split / "metadata.csv", "file_name,text\ncat/0.png,x\n")
    for options, chosen in (
        ({}, "train"),
        ({"split": "test"}, "test"),
        ({"preferred_splits": ("test", "validation")}, "test"),
    ):
        source = open_source(tmp_path, **options)  # type: ignore[arg-type]
        assert source.split == chosen  # type: ignore[attr-defined]
        assert len(source) == (1 if has_tables else 6)
        assert source.key(0) == f"{inside}/{chosen}/cat/0.png"
        assert source[0].image == png(0)
    assert set(classes(tmp_path, split="test").values()) == {"cat", "dog"}
    with pytest.raises(UserError, match=rf"{inside} has no split 'val'; its splits are"):
        open_source(tmp_path, split="val")


def test_splits_are_not_looked_for_beside_other_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / "data" / split)
    write_images(tmp_path / "cat")
    assert len(opened(tmp_path)) == 9
    (tmp_path / "loop" / "a").mkdir(parents=True)
    (tmp_path / "loop" / "a" / "b").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="no image with a caption"):
        open_source(tmp_path / "loop")


@pytest.mark.parametrize(
    ("folders", "are_splits"),
    [
        (("cat/train", "cat/test", "dog/train", "dog/test"), "test, train"),
        (("cat/Train", "dog/val"), "Train, val"),
        (("train",), "train"),
        (("train/cat", "train/dog"), None),
        (("bus", "train"), None),
        (("data/cat", "data/dog"), None),
    ],
)
def test_classes_named_as_splits_are_spoken_of(
    tmp_path: Path, folders: tuple[str, ...], are_splits: str | None, caplog: Any
) -> None:
    for folder in folders:
        write_images(tmp_path / folder)
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
    for folder in folders:
        write_images(tmp_path / folder, ("0.png",))
    assert classes(tmp_path) == {
        f"{folder}/0.png": name for folder, name in zip(folders, expected, strict=True)
    }
    if any(map(str.isalnum, "".join(folders))):
        for key, captions in opened(tmp_path, caption_template="{}").items():
            readable = key.split("/")[-2].replace("_", " ").replace("-", " ")
            assert captions == (" ".join(readable.split()),)
