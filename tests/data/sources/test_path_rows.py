"""CSV and JSON lines in several files, and how much of memory their rows take."""

import json
import pickle

import numpy as np
import pytest
from shards import png

from clip_jax.data.sources import open_source
from clip_jax.data.sources.record_store import GatheringStore, PackedTexts
from clip_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Three tables in two folders, each row of which has another image; the same as JSON lines."""
    for name, first in (("a/0", 0), ("a/1", 10), ("b/2", 20)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        rows = []
        for number in range(first, first + 2):
            # The same name in both folders is not the same image.
            image = f"{number % 20}.png"
            (path.parent / image).write_bytes(png(number))
            rows.append((image, f"number {number}", f"class {number}"))
        head = "image,caption,class\n" if name != "a/1" else "image,class,caption\n"
        order = slice(None) if name != "a/1" else slice(None, None, -1)
        lines = "".join(f"{row[0]},{','.join(row[1:][order])}\n" for row in rows)
        path.with_suffix(".csv").write_text(head + lines)
        path.with_suffix(".tsv").write_text((head + lines).replace(",", "\t"))
        objects = (dict(zip(("image", "caption", "class"), row, strict=True)) for row in rows)
        path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    return tmp_path


PATTERNS = [
    "*/*.csv",
    "a/*.csv,{root}/b/2.csv",
    "*/{0..2}.tsv",
    "*/*.jsonl",
    "a/[01].jsonl,{root}/b/?.jsonl",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_several_files(folder, pattern):
    root = str(folder)
    if "{0..2}" in pattern:
        pattern = f"a/{{0..1}}.tsv,{root}/b/{{2..2}}.tsv"
    source = open_source(f"{root}/{pattern.replace('{root}', root)}")
    numbers = [0, 1, 10, 11, 20, 21]
    assert len(source) == 6
    for index, number in enumerate(numbers):
        record = source[np.int64(index)]
        assert record.key == f"{number % 20}.png"
        assert record.image == png(number)
        assert record.captions == source.captions(index - 6) == (f"number {number}",)
        assert source.metadata(index) == {"class": f"class {number}"}
        assert source.metadata(index - 6) == {"class": f"class {number}"}
    assert pickle.loads(pickle.dumps(source))[5].image == png(21)


def test_a_folder_of_tables(folder):
    assert len(open_source(folder / "a", format="csv")) == 4  # the .tsv say the same again
    assert len(open_source(folder / "a", format="jsonl")) == 4
    with pytest.raises(UserError, match="no csv file there"):
        open_source(folder, format="csv")
    with pytest.raises(UserError, match=r"c/9\.csv: no csv file there; give a \.csv file"):
        open_source(f"{folder}/a/0.csv,{folder}/c/9.csv")


def test_an_image_in_two_tables_is_one_record(folder):
    (folder / "a" / "3.csv").write_text("image,caption\n1.png,again\n,lost\n10.png,more\n")
    source = open_source(f"{folder}/a/*.csv")
    assert [source.key(n) for n in range(4)] == ["0.png", "1.png", "10.png", "11.png"]
    assert source.captions(1) == ("number 1", "again")
    assert source.captions(2) == ("number 10", "more")
    assert list(source.dropped) == ["3.csv row 3"]
    (folder / "b" / "4.csv").write_text("image,caption\nnowhere.png,x\n")
    with pytest.raises(UserError, match=r"b/4\.csv: none of its first images exists"):
        open_source(f"{folder}/*/*.csv")


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_rows_take_little_more_than_their_text(tmp_path, format):
    (tmp_path / "0.png").write_bytes(png(0))
    rows = [(f"{n}.png", f"a photo of number {n}") for n in range(2000)]
    if format == "csv":
        text = "image,caption\n" + "".join(f"{image},{caption}\n" for image, caption in rows)
    else:
        text = "".join(json.dumps({"image": i, "caption": c}) + "\n" for i, c in rows)
    (tmp_path / f"d.{format}").write_text(text)
    source = open_source(tmp_path / f"d.{format}")
    text_bytes = sum(len(image) + len(caption) for image, caption in rows)
    assert (len(pickle.dumps(source)) - text_bytes) / len(rows) < 40
    assert source.captions(1999) == ("a photo of number 1999",)


def test_texts_are_kept_as_they_are():
    texts = ["", "größer \U0001f600", "\udcff of a file name", "x" * 1000, ""]
    packed = PackedTexts(texts)
    assert [packed[index] for index in range(5)] == texts
    assert [packed[index] for index in range(-5, 0)] == texts
    for index in (5, -6):
        with pytest.raises(IndexError):
            packed[index]


def test_captions_are_gathered_by_record_and_column():
    store = GatheringStore()
    for key in "abc":
        store.keys.append(key)
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
    assert store.columns(0) == [0, 0, 1]
    assert store.columns(-1) == [0, 1]


ABSENT = object()
SAME_LABEL = [
    (1, "1"),
    (1, 1.0),
    ("1", "1.0"),
    ("cat", " cat "),
    ("caf\u00e9", "cafe\u0301"),
    (float("nan"), float("nan")),
    (3, None),
    (3, -1),
    ("cat", "  "),
    ("cat", ABSENT),
]
MISSING = [None, float("nan"), -1, "-1", " ", ABSENT]


def labelled(folder, labels, name="d.jsonl"):
    (folder / "0.png").write_bytes(png(0))
    (folder / "1.png").write_bytes(png(1))
    rows = [{"image": "1.png", "text": "x", "other": 7}]
    for number, label in enumerate(labels):
        row = {"image": "0.png", "text": f"caption {number}", "other": number, "Class": label}
        rows.append({key: value for key, value in row.items() if value is not ABSENT})
    if name.endswith("jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        columns = ("image", "text", "other", "Class")
        text = "".join(
            ",".join("" if row.get(c) is None else str(row[c]) for c in columns) + "\n"
            for row in (dict(zip(columns, columns, strict=True)), *rows)
        )
    (folder / name).write_text(text)
    return open_source(folder / name, label_column="class")


@pytest.mark.parametrize("labels", SAME_LABEL)
def test_labels_of_one_meaning_are_one(tmp_path, labels):
    source = labelled(tmp_path, labels)
    assert source.dropped.total == 0
    assert source.captions(1) == ("caption 0", "caption 1")
    for first, second in ((1, "2"), ("cat", "Cat"), (0, True), ("a", ["a"])):
        assert labelled(tmp_path, (first, second)).dropped.counts == {"row_malformed": 1}


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
@pytest.mark.parametrize("missing", MISSING)
def test_a_later_label_takes_the_place_of_none(tmp_path, missing, name):
    if name == "d.csv" and missing != missing:
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


def test_a_later_label_of_another_file(tmp_path):
    labelled(tmp_path, ())
    (tmp_path / "a.csv").write_text("image,caption\n0.png,zero\n")
    (tmp_path / "b.csv").write_text("image,caption,class\n0.png,nought,cat\n1.png,one,dog\n")
    source = open_source(f"{tmp_path}/[ab].csv", label_column="class")
    assert [source.metadata(index) for index in (0, 1)] == [{"class": "cat"}, {"class": "dog"}]
    assert source.captions(0) == ("zero", "nought")


@pytest.mark.parametrize(
    ("names", "format", "count"),
    [
        (("a.csv", "B.CSV"), "csv", 2),
        (("a.csv", "b.tsv", "C.Csv"), "csv", 3),
        (("A.TSV",), "csv", 1),
        (("a.jsonl", "B.JSONL", "c.NDJson"), "jsonl", 3),
        (("X.JSON",), "jsonl", 1),
    ],
)
def test_endings_of_tables_in_any_case(tmp_path, names, format, count):
    for number, name in enumerate(names):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        tab = "\t" if name.lower().endswith("tsv") else ","
        text = f"image{tab}caption\n{number}.png{tab}a cat\n"
        if format == "jsonl":
            text = json.dumps({"image": f"{number}.png", "caption": "a cat"})
        (tmp_path / name).write_text(text)
    assert len(open_source(tmp_path, format=format)) == count
