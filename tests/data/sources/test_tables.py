"""CSV and JSON lines: files, rows of one image, labels, and how much of memory they take."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from shards import png
from small_sets import keys, refused, write

from clip_jax.data.records import Source
from clip_jax.data.sources import open_source
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


def test_several_files(tmp_path: Path) -> None:
    """Tables in two folders; the same name in both is not the same image."""
    heads = {
        "a/0": "image,caption,class",
        "a/1": "image,class,caption",
        "b/2": "image,caption,class",
    }
    for first, (name, head) in enumerate(heads.items()):
        lines = [head]
        for number in (10 * first, 10 * first + 1):
            image = f"{number % 20}.png"
            write(tmp_path / name / ".." / image, png(number))
            row = {"image": image, "caption": f"number {number}", "class": f"class {number}"}
            lines.append(",".join(row[column] for column in head.split(",")))
        write((tmp_path / name).with_suffix(".csv"), "\n".join(lines))
    for pattern in ("{0}/*/*.csv", "{0}/a/{{0..1}}.csv,{0}/b/?.csv"):
        source = open_source(pattern.format(tmp_path))
        assert len(source) == 6
        for index, number in enumerate((0, 1, 10, 11, 20, 21)):
            assert source.key(index) == f"{number % 20}.png"
            assert source[index].image == png(number)
            assert source[index].captions == source.captions(index - 6) == (f"number {number}",)
            meant = {"class": f"class {number}"}
            assert source.metadata(index) == source.metadata(index - 6) == meant
        assert pickle.loads(pickle.dumps(source))[5].image == png(21)
    refused("no csv file there", tmp_path, format="csv")
    # An image in two tables is one record.
    write(tmp_path / "a" / "3.csv", "image,caption\n1.png,again\n,lost\n10.png,more\n")
    source = open_source(f"{tmp_path}/a/*.csv")
    assert keys(source) == ["0.png", "1.png", "10.png", "11.png"]
    assert source.captions(1) == ("number 1", "again")
    assert list(source.dropped) == ["3.csv row 3"]
    write(tmp_path / "b" / "4.csv", "image,caption\nnowhere.png,x\n")
    refused(r"b/4\.csv: none of its first images exists", f"{tmp_path}/*/*.csv")


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
        ("c.csv", "\n\n", r"columns are: \(none\)"),
        ("c.csv", "a;b|path,caption\n", "its columns are: a;b|path, caption"),
        ("c.csv", 'path,"caption\n', 'its columns are: path, "caption'),
        ("d.csv", "path,caption\n", "no row"),
        ("e.csv", "path,caption\nmissing.png,x\n", r"missing\.png.*relative to"),
        ("f.csv", "path,caption\nhttps://example.org/1.png,x\n", "download"),
        ("g.csv", b"path,text\n1.png,a\n2.png,caf\xe9\n", r"line 3 is not UTF-8 \(byte 0xe9 .* 10"),
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


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        *((1, "2", name) for name in ("d.jsonl", "d.csv")),
        *(("cat", "Cat", "d.csv"), (0, True, "d.jsonl"), ("a", ["a"], "d.jsonl")),
    ],
)
def test_labels_of_another_meaning_are_dropped(
    tmp_path: Path, first: Any, second: Any, name: str
) -> None:
    source = labelled(tmp_path, (first, second, first), name)
    assert source.dropped.counts == {"row_malformed": 1}
    assert source.captions(1) == ("caption 0", "caption 2")
    if second == "Cat":
        reason = "label 'Cat' where the image's first row has 'cat'"
        assert list(source.dropped.values()) == [reason]


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
