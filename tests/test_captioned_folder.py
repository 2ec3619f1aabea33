"""Folders of images whose captions are in tables, beside the images, or in the names of folders."""

import json
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
