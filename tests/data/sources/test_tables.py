"""CSV and JSON lines: files, rows of one image, labels, and how much of memory they take."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import png
from small_sets import write

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import CaptionError, Source
from clip_jax.data.sources import open_source
from clip_jax.data.sources.columns import captions_of, texts_of
from clip_jax.data.sources.record_store import PackedTexts, RecordStore
from clip_jax.errors import DecodeError, UserError


def opened(folder: Path, rows: Any, name: str = "d.jsonl", **options: Any) -> Source:
    """Opens a file of text, of lines of JSON (objects, or as written), or of cells."""
    for number in range(4):
        write(folder / f"{number}.png", png(number))
    if not isinstance(rows, (str, bytes)):
        rows = b"\n".join(map(line_of, rows))
    return open_source(write(folder / name, rows), **options)


def line_of(row: Any) -> bytes:
    if isinstance(row, dict):
        row = json.dumps(row)
    elif not isinstance(row, (str, bytes)):
        row = ",".join("" if cell is None else str(cell) for cell in row)
    return row if isinstance(row, bytes) else row.encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tables in two folders, each row of which has another image; the same as JSON lines."""
    for name, first in (("a/0", 0), ("a/1", 10), ("b/2", 20)):
        rows = []
        for number in range(first, first + 2):
            # The same name in both folders is not the same image.
            image = f"{number % 20}.png"
            write(tmp_path / name / ".." / image, png(number))
            rows.append((image, f"number {number}", f"class {number}"))
        head = "image,caption,class\n" if name != "a/1" else "image,class,caption\n"
        order = slice(None) if name != "a/1" else slice(None, None, -1)
        lines = "".join(f"{row[0]},{','.join(row[1:][order])}\n" for row in rows)
        path = tmp_path / name
        write(path.with_suffix(".csv"), head + lines)
        write(path.with_suffix(".tsv"), (head + lines).replace(",", "\t"))
        objects = (dict(zip(("image", "caption", "class"), row, strict=True)) for row in rows)
        write(path.with_suffix(".jsonl"), "\n".join(map(json.dumps, objects)))
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        "{}/*/*.csv",
        "{}/a/*.csv,{}/b/2.csv",
        "{}/a/{{0..1}}.tsv,{}/b/{{2..2}}.tsv",
        "{}/*/*.jsonl",
        "{}/a/[01].jsonl,{}/b/?.jsonl",
    ],
)
def test_several_files(folder: Path, pattern: str) -> None:
    source = open_source(pattern.format(folder, folder))
    numbers = [0, 1, 10, 11, 20, 21]
    assert len(source) == 6
    for index, number in enumerate(numbers):
        record = source[np.int64(index)]
        assert record.key == f"{number % 20}.png"
        assert record.image == png(number)
        assert record.captions == source.captions(index - 6) == (f"number {number}",)
        assert source.metadata(index) == source.metadata(index - 6) == {"class": f"class {number}"}
    assert pickle.loads(pickle.dumps(source))[5].image == png(21)


def test_a_folder_of_tables(folder: Path) -> None:
    for format in ("csv", "jsonl"):
        assert len(open_source(folder / "a", format=format)) == 4  # the .tsv say the same again
    with pytest.raises(UserError, match="no csv file there"):
        open_source(folder, format="csv")


def test_an_image_in_two_tables_is_one_record(folder: Path) -> None:
    write(folder / "a" / "3.csv", "image,caption\n1.png,again\n,lost\n10.png,more\n")
    source = open_source(f"{folder}/a/*.csv")
    assert [source.key(n) for n in range(4)] == ["0.png", "1.png", "10.png", "11.png"]
    assert source.captions(1) == ("number 1", "again")
    assert source.captions(2) == ("number 10", "more")
    assert list(source.dropped) == ["3.csv row 3"]
    write(folder / "b" / "4.csv", "image,caption\nnowhere.png,x\n")
    with pytest.raises(UserError, match=r"b/4\.csv: none of its first images exists"):
        open_source(f"{folder}/*/*.csv")


def test_rows_of_one_image_are_one_record(tmp_path: Path) -> None:
    table = 'id,Image,caption\n7,1.png,a cat\n8,2.png,"a, dog"\n9,1.png,two\n'
    source = opened(tmp_path, "\ufeff" + table, "d.csv")
    assert [source.key(0), source.key(1)] == ["1.png", "2.png"]
    assert [source.captions(0), source.captions(1)] == [("a cat", "two"), ("a, dog",)]
    assert source.metadata(0) == {"id": "7"}
    rows = [
        {"image": "1.png", "caption": "a cat", "n": 1, "deep": {"x": [1]}},
        {"image": "2.png", "caption": ["a dog", "", "an animal"]},
        {"image": "1.png", "caption": "again", "n": 2},
    ]
    source = opened(tmp_path, rows)
    assert [source.captions(0), source.captions(1)] == [("a cat", "again"), ("a dog", "an animal")]
    assert [source.metadata(0), source.metadata(1)] == [{"n": 1, "deep": {"x": [1]}}, {}]
    # Captions are in the order of the columns, and share the weight of their column.
    table = "path,alt,long\n1.png,web,one\n1.png,web 2,\n2.png,,only\n"
    options = {"caption_column": "long, ALT", "caption_weights": (3.0, 1.0)}
    source = opened(tmp_path, table, "d.csv", **options)
    assert (source[0].captions, source[0].weights) == (("one", "web", "web 2"), (3.0, 0.5, 0.5))
    assert (source[1].captions, source[1].weights) == (("only",), (3.0,))


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.ndjson"])
def test_a_list_is_read_whatever_the_ending(tmp_path: Path, name: str) -> None:
    rows = [{"file_name": "1.png", "Text": "a"}, 7, {"file_name": "2.png", "Text": "b"}]
    source = opened(tmp_path, "\ufeff" + json.dumps(rows, indent=1), name)
    assert [source.captions(0), source.captions(1)] == [("a",), ("b",)]
    assert source.dropped == {"item 2": "int instead of an object with fields"}


def test_bad_rows_are_dropped_and_counted_by_kind(tmp_path: Path) -> None:
    rows = [
        {"image": "1.png", "caption": "good"},
        {"caption": "no image"},
        {"image": " ", "caption": "no image"},
        {"image": "1.png"},
        {"image": "1.png", "caption": None},
        {"image": "1.png", "caption": [" ", "\n"]},
        {"image": "1.png", "caption": 5},
        {"image": "1.png", "caption": ["x", {"y": 1}]},
        {"image": 3, "caption": "x"},
        {"image": "a\0b", "caption": "x"},
        '{"image": "\\ud800.png", "caption": "x"}',
        '{"image": "1.png", "caption": "half \\ud800 pair"}',
        {"image": "1.png", "caption": "x" * (5 << 20)},
        b'{"image": "1.png", "caption": "caf\xe9"}',
        '{"image": "1.png", "caption": "cut',
        "[" * 100_000,
        "",
        "null",
    ]
    source = opened(tmp_path, rows)
    assert len(source) == 1
    assert source.captions(0) == ("good",)
    assert source.dropped.counts == {
        "image_missing": 2,
        "caption_missing": 2,
        "caption_empty": 1,
        "row_malformed": 8,
        "caption_not_utf8": 2,
        "caption_too_long": 1,
    }
    assert "line 15" in source.dropped


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "photo,caption\n1.png,x\n", "columns are: photo, caption; name one"),
        ("b.csv", "path,words\n1.png,x\n", "path, words"),
        ("c.csv", "", r"columns are: \(none\)"),
        ("d.csv", "path,caption\n", "no row"),
        ("e.csv", "path,caption\nmissing.png,x\n", r"missing\.png.*relative to"),
        ("f.csv", "path,caption\nhttps://example.org/1.png,x\n", "download"),
        (
            "g.csv",
            b"path,text\n1.png,a\n2.png,caf\xe9\n",
            r"line 3 is not UTF-8 \(byte 0xe9 .* 10\)",
        ),
        ("a.jsonl", '{"photo": "1.png", "caption": "x"}', "its columns are: photo, caption"),
        ("b.jsonl", '{"image": "1.png", "words": "x"}', "image, words; name one"),
        ("c.jsonl", "", "no row"),
        ("d.jsonl", '{"image": "no.png", "caption": "x"}', r"no\.png.*relative to"),
        ("e.jsonl", '{"image": "https://example.org/1.png", "caption": "x"}', "download"),
        ("f.jsonl", "photo,caption\n1.png,x", "no row.*line 1: no JSON"),
        ("g.json", '[{"image": "1.png",', "no JSON"),
        ("h.json", b'[\n{"image": "caf\xe9"}]', "line 2 is not UTF-8"),
        ("i.jsonl", '{"image": "1.png"}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path, content, name)
    assert "\n" not in str(caught.value)


def test_images_that_vanished_and_images_in_a_store(tmp_path: Path) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe_file("/pictures/1.png", png(1))
    images = ["1.png", "memory://pictures/1.png", "memory://pictures/2.png"]
    source = opened(tmp_path, [{"image": image, "caption": "x"} for image in images])
    assert source[1].image == png(1)
    (tmp_path / "1.png").unlink()
    for index, message in ((0, r"1\.png cannot be read"), (2, r"2\.png: no such file")):
        with pytest.raises(DecodeError, match=message) as caught:
            source[index]
        assert caught.value.kind == "image_missing"


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_rows_take_little_more_than_their_text(tmp_path: Path, format: str) -> None:
    rows = [(f"{n}.png", f"a photo of number {n}") for n in range(2000)]
    text = [("image", "caption"), *rows]
    if format == "jsonl":
        text = [{"image": image, "caption": caption} for image, caption in rows]
    source = opened(tmp_path, text, f"d.{format}")
    text_bytes = sum(len(image) + len(caption) for image, caption in rows)
    assert (len(pickle.dumps(source)) - text_bytes) / len(rows) < 40
    assert source.captions(1999) == ("a photo of number 1999",)


def test_texts_are_kept_as_they_are() -> None:
    texts = ["", "größer \U0001f600", "\udcff of a file name", "x" * 1000, ""]
    packed = PackedTexts(texts)
    assert [packed[index] for index in range(5)] == texts
    assert [packed[index] for index in range(-5, 0)] == texts
    for index in (5, -6):
        with pytest.raises(IndexError):
            packed[index]


def test_captions_are_gathered_by_record_and_column() -> None:
    store = RecordStore()
    for key in "abc":
        store.add(key, "")
    for record, column, caption in (
        (0, 0, "1"),
        (2, 1, "4"),
        (0, 1, "3"),
        (2, 0, "5"),
        (0, 0, "2"),
    ):
        store.add_caption(record, column, caption)
    store.gather(keep_columns=True)
    assert [store.captions(index) for index in range(3)] == [("1", "2", "3"), (), ("5", "4")]
    assert [store.columns(0), store.columns(-1)] == [[0, 0, 1], [0, 1]]


def test_what_a_cell_may_hold() -> None:
    assert texts_of(np.asarray(["a", "b"], object)) == ["a", "b"]
    assert texts_of([b"caf\xc3\xa9", None, " "]) == ["café"]
    assert texts_of(None) == []
    for cell in (1.5, {"a": 1}, [[1]]):
        with pytest.raises(CaptionError) as caught:
            texts_of(cell)
        assert caught.value.kind == "row_malformed"
    with pytest.raises(CaptionError) as caught:
        captions_of([b"caf\xe9"], SourceOptions())
    assert caught.value.kind == "caption_not_utf8"


ABSENT = object()
MISSING = [None, float("nan"), -1, "-1", " ", ABSENT]


def labelled(folder: Path, labels: tuple, name: str = "d.jsonl", **options: Any) -> Source:
    columns = ("image", "text", "other", "Class")
    rows = [{"image": "1.png", "text": "x", "other": 7}]
    for number, label in enumerate(labels):
        row = {"image": "0.png", "text": f"caption {number}", "other": number, "Class": label}
        rows.append({key: value for key, value in row.items() if value is not ABSENT})
    cells = [columns, *([row.get(column) for column in columns] for row in rows)]
    options = {"label_column": "class"} | options
    return opened(folder, rows if "json" in name else cells, name, **options)


@pytest.mark.parametrize(
    "labels",
    [
        *[(1, "1"), (1, 1.0), ("1", "1.0"), ("cat", " cat "), ("caf\u00e9", "cafe\u0301")],
        *[(float("nan"), float("nan")), (3, None), (3, -1), ("cat", "  "), ("cat", ABSENT)],
    ],
)
def test_labels_of_one_meaning_are_one(tmp_path: Path, labels: tuple) -> None:
    source = labelled(tmp_path, labels)
    assert source.dropped.total == 0
    assert source.captions(1) == ("caption 0", "caption 1")


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_labels_of_another_meaning_are_dropped(tmp_path: Path, name: str) -> None:
    only_json = [(0, True), ("a", ["a"])] if name == "d.jsonl" else []
    for first, second in ((1, "2"), ("cat", "Cat"), *only_json):
        source = labelled(tmp_path, (first, second, first), name)
        assert source.dropped.counts == {"row_malformed": 1}
        assert source.captions(1) == ("caption 0", "caption 2")
    reason = "label 'Cat' where the image's first row has 'cat'"
    assert list(labelled(tmp_path, ("cat", "Cat"), name).dropped.values()) == [reason]


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
@pytest.mark.parametrize("missing", MISSING)
def test_a_later_label_takes_the_place_of_none(tmp_path: Path, missing: Any, name: str) -> None:
    if name == "d.csv" and (missing is ABSENT or missing != missing):
        missing = None  # no table has NaN: it is the text "nan" there
    source = labelled(tmp_path, (missing, "cat", missing, "cat"), name)
    assert source.dropped.total == 0
    assert source.captions(1) == tuple(f"caption {number}" for number in range(4))
    for index in (1, -1):
        assert source.metadata(index)["class"] == "cat"
        assert source.metadata(index)["other"] in (0, "0")
    assert source.metadata(0).get("class") in (None, "")
    source = labelled(tmp_path, (missing, "cat", "dog"), name)
    assert source.dropped.counts == {"row_malformed": 1}
    assert source.metadata(1)["class"] == "cat"


def test_a_later_label_of_another_file(tmp_path: Path) -> None:
    labelled(tmp_path, ())
    write(tmp_path / "a.csv", "image,caption\n0.png,zero\n")
    write(tmp_path / "b.csv", "image,caption,class\n0.png,nought,cat\n1.png,one,dog\n")
    source = open_source(f"{tmp_path}/[ab].csv", label_column="class")
    assert [source.metadata(index) for index in (0, 1)] == [{"class": "cat"}, {"class": "dog"}]
    assert source.captions(0) == ("zero", "nought")


@pytest.mark.parametrize(
    "names", ["a.csv b.tsv C.Csv", "A.TSV", "a.jsonl B.JSONL c.NDJson", "X.JSON"]
)
def test_endings_of_tables_are_mixed(tmp_path: Path, names: str) -> None:
    for number, name in enumerate(names.split()):
        tab = "\t" if name.lower().endswith("tsv") else ","
        text = f"image{tab}caption\n{number}.png{tab}a cat\n"
        if "J" in names.upper():
            text = json.dumps({"image": f"{number}.png", "caption": "a cat"})
        write(tmp_path / f"{number}.png", png(number))
        write(tmp_path / name, text)
    format = "jsonl" if "J" in names.upper() else "csv"
    assert len(open_source(tmp_path, format=format)) == len(names.split())
