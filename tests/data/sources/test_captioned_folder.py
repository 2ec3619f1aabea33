"""Folders of images whose captions are in tables, or beside the images."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from folders import REAL, json_lines, lay, opened, table
from small_sets import refused, write

from clip_jax.data.sources import open_source

Log = pytest.LogCaptureFixture


TABLES = {
    "metadata.jsonl": json_lines(),
    "metadata.csv": table(),
    "captions.csv": table(head="image,caption"),
    "captions.tsv": table("\t"),
    "captions.txt": table(head="image,caption"),
    "captions.json": json.dumps([json.loads(line) for line in json_lines().splitlines()]),
    "mine.jsonl": json_lines(image="path", caption="caption"),
    "list.CSV": table(),
    "captions.token.txt": "".join(f"{n}.png#0\t{REAL[n]}\n" for n in range(3)),
    "metadata.parquet": "",
}


@pytest.mark.parametrize("folder", ["", "train", "photos", "a/b"])
@pytest.mark.parametrize("name", TABLES)
def test_the_table_in_a_folder_is_read(tmp_path: Path, name: str, folder: str) -> None:
    lay(tmp_path, folder or ".")
    write(tmp_path / folder / name, TABLES[name])
    if name.endswith("parquet"):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = {"file_name": [f"{n}.png" for n in range(3)], "text": REAL}
        pq.write_table(pa.table(columns), tmp_path / folder / name)
    prefix = f"{folder}/" if folder else ""
    assert opened(tmp_path) == {f"{prefix}{n}.png": (REAL[n],) for n in range(3)}


def test_tables_of_several_folders_are_read_together(tmp_path: Path) -> None:
    lay(tmp_path, "birds", "pets")
    for folder in ("birds", "pets"):
        write(tmp_path / folder / "metadata.jsonl", json_lines() + "no JSON\n")
    assert list(opened(tmp_path)) == [f"{f}/{n}.png" for f in ("birds", "pets") for n in range(3)]
    source = open_source(tmp_path)
    assert list(source.dropped) == ["birds/metadata.jsonl line 4", "pets/metadata.jsonl line 4"]
    assert source.dropped.total == 2


def test_a_table_and_its_images_in_other_folders(tmp_path: Path) -> None:
    lay(tmp_path, "Images")
    write(tmp_path / "captions.txt", table(head="image,caption"))
    assert opened(tmp_path) == {f"Images/{n}.png": (REAL[n],) for n in range(3)}
    lay(tmp_path, "Copies")
    refused(r"captions\.txt: none of its first images exists", tmp_path)
    write(tmp_path / "captions.txt", "file_name,text\nImages/0.png,one\nCopies/1.png,two\n")
    assert opened(tmp_path) == {"Images/0.png": ("one",), "Copies/1.png": ("two",)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("metadata.csv metadata.jsonl", r"several tables .*metadata\.csv, metadata\.jsonl"),
        ("metadata.csv train/metadata.csv", r"metadata\.csv, train/metadata\.csv; give one"),
        ("a/captions.csv a/b/captions.csv", r"a/b/captions\.csv, a/captions\.csv"),
    ],
)
def test_of_several_tables_one_must_be_given(tmp_path: Path, names: str, message: str) -> None:
    for name in names.split():
        lay((tmp_path / name).parent, ".")
        write(tmp_path / name, json_lines() if name.endswith("jsonl") else table())
    refused(message, tmp_path)
    assert len(open_source(tmp_path / names.split()[0])) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", table(head="file_name,words"), "columns are: file_name, words"),
        ("metadata.jsonl", json_lines(caption="words"), "columns are: file_name, words"),
        ("metadata.parquet", b"no Parquet", r"metadata\.parquet.* [Pp]arquet file"),
        ("list.csv", table(head="photo,caption"), "columns are: photo, caption"),
        ("captions.txt", "nice pictures of my dog\n", r"captions\.txt has none of image"),
        ("metadata.csv", table().encode("utf-16"), r"metadata\.csv is UTF-16"),
        ("metadata.csv", b"file_name,caf\xe9\n", r"metadata\.csv is no readable UTF-8 text"),
    ],
)
@pytest.mark.parametrize("folder", [".", "train", "2024"])
def test_an_unknown_table_is_named(
    tmp_path: Path, folder: str, name: str, content: str | bytes, message: str
) -> None:
    lay(tmp_path, folder)
    write(tmp_path / folder / name, content)
    refused(message, tmp_path)
    if "photo" in str(content):
        found = opened(tmp_path, image_column="photo", caption_column="caption")
        assert [*found.values()] == [(text,) for text in REAL]


def test_classes_beside_a_table_of_something_else(tmp_path: Path, caplog: Log) -> None:
    lay(tmp_path, "dog", "cat")
    write(tmp_path / "boxes.csv", "image,x,y\ndog/0.png,1,2\n")
    assert opened(tmp_path)["dog/0.png"] == ("a photo of a dog.",)
    assert caplog.text == ""
    write(tmp_path / "metadata.csv", "file_name,x\ndog/0.png,1\n")
    assert len(opened(tmp_path)) == 6
    assert "metadata.csv is not read: " in caplog.text


def test_captions_beside_images_win_over_tables_and_classes(tmp_path: Path, caplog: Log) -> None:
    lay(tmp_path, ".", "cat/3.PNG", ".hidden/4.png")
    write(tmp_path / "0.txt", "\ufeffof its own\n\n  and more \n")
    write(tmp_path / "1.txt", "too")
    write(tmp_path / "metadata.csv", table())
    assert opened(tmp_path) == {"0.png": ("of its own", "and more"), "1.png": ("too",)}
    source = open_source(tmp_path)
    assert source.metadata(0) == {}
    assert source.dropped["cat/3.PNG"] == "no .txt caption beside it, which 2 other images have"
    assert "not from metadata.csv" in caplog.text
    assert "2 samples kept, 2 dropped (2 x caption_missing)" in caplog.text


# Images and their caption files, in any case; each image has its own.
BESIDE = [
    *("IMG1.JPG IMG1.TXT", "IMG1.JPG IMG1.txt", "img1.jpg img1.TXT", "Img1.Jpg IMG1.txt"),
    *("img1.jpeg img1.jpeg.txt", "img1.JPG img1.jpg.TXT", "v1.2.png V1.2.Txt"),
    "a.png a.png.txt a.jpg a.txt A.jpg A.txt b.png B.TXT c.png c.txt C.png c.txt",
]


@pytest.mark.parametrize("names", BESIDE)
def test_caption_files_beside_images(tmp_path: Path, names: str) -> None:
    pairs = dict(zip(names.split()[::2], names.split()[1::2], strict=True))
    lay(tmp_path / "2024", *pairs, "other.png")
    for text in (*pairs.values(), "other.txt"):
        write(tmp_path / "2024" / text, text)
    pairs["other.png"] = "other.txt"
    if "c.txt" in names:
        del pairs["C.png"]  # c.txt is of c.png
    assert opened(tmp_path) == {f"2024/{image}": (text,) for image, text in pairs.items()}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (b" \n", "caption_empty", "2.txt: caption is empty"),
        (b"caf\xe9", "caption_not_utf8", "2.txt: caption is not UTF-8"),
        ("a cat".encode("utf-16-le"), "caption_not_utf8", "2.txt: caption is UTF-16; save it as"),
        ("a cat".encode("utf-16-be"), "caption_not_utf8", "iconv -f UTF-16BE -t UTF-8"),
        (None, "caption_missing", "2.txt cannot be read: No such file"),
    ],
)
def test_a_bad_caption_file_costs_its_image(
    tmp_path: Path, text: bytes | None, kind: str, message: str
) -> None:
    lay(tmp_path / "dog", "1.png", "2.png")
    write(tmp_path / "dog" / "1.txt", "a dog")
    if text is None:
        (tmp_path / "dog" / "2.txt").symlink_to("nowhere.txt")
    else:
        write(tmp_path / "dog" / "2.txt", text)
    source = open_source(tmp_path)
    assert (len(source), source.dropped.counts) == (1, {kind: 1})
    assert message in source.dropped["dog/2.png"]


ONE, HEAD = {"a/metadata.jsonl": json_lines()}, "image,caption\n"
TWO = {"a/captions.csv": table(), "b/captions.csv": HEAD + "0.png,x\n../a/1.png,y\n"}
BY_SPLIT = {"train.csv": HEAD + "a/0.png,x\n", "val.csv": HEAD + "a/1.png,x\n"}


def in_one(*rows: str) -> dict[str, str]:
    return {"captions.csv": HEAD + "".join(f"{row}\n" for row in rows)}


# Tables, more images, and what is said of images that no row names.
UNNAMED = [
    (ONE, "b/0.png b/1.png", "2 of its 5 images have no .* in a/metadata.jsonl; .* b/0.png"),
    (ONE, "0.png", "1 of its 4 images .* the first is 0.png"),
    (TWO, "b/0.png b/7.png", "1 of its 5 .* in any of its 2 tables; .* b/7.png"),
    (in_one("./a/0.png,x", "a//1.png,y"), "", "1 of its 3 .* a/2.png"),
    (in_one("0.png,x", "1.png,y"), "", "1 of its 3 images .* a/2.png"),
    (in_one("a/0.png,x", "a/./1.png,y", "a/../a/2.png,z"), "", None),
    (in_one("{0}/a/0.png,x", "file://{0}/a/1.png,y", "a/2.png,z"), "", None),
    (BY_SPLIT, "", None),
    ({"train.csv": BY_SPLIT["train.csv"]}, "b/0.png", None),
]


@pytest.mark.parametrize(("tables", "images", "message"), UNNAMED)
def test_images_that_no_row_names_are_spoken_of(
    tmp_path: Path, tables: dict, images: str, message: str | None, caplog: Log, monkeypatch: Any
) -> None:
    lay(tmp_path, "a", *images.split())
    for name, content in tables.items():
        write(tmp_path / name, content.replace("{0}", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, Path("."), Path(f"../{tmp_path.name}/")):
        caplog.clear()
        assert open_source(path).dropped.total == 0
        said = [record.getMessage() for record in caplog.records if "no usable row" in record.msg]
        assert len(said) == (message is not None)
        assert message is None or re.search(rf"{path}: {message}", said[0])
    caplog.clear()
    for name in tables:  # who gives the table means what is in it
        if "\n0.png" not in tables[name] or "/" in name:
            open_source(tmp_path / name)
    assert "no usable row" not in caplog.text
