"""JSON lines and lists, what they share with tables, and what is wrong with them."""

import json

import numpy as np
import pytest
from pictures import encode, photo

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import CaptionError
from clip_jax.data.sources import open_source
from clip_jax.data.sources.columns import captions_of, texts_of
from clip_jax.errors import DecodeError, UserError

PNG = encode(photo(8, 6), "PNG")


@pytest.fixture
def folder(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


def opened(folder, rows, name="d.jsonl", **options):
    lines = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
    data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    (folder / name).write_bytes(data)
    return open_source(folder / name, **options)


def test_rows_of_one_image_are_one_record(folder):
    rows = [
        {"image": "1.png", "caption": "a cat", "n": 1, "deep": {"x": [1]}},
        {"image": "2.png", "caption": ["a dog", "", "an animal"]},
        {"image": "1.png", "caption": "again", "n": 2},
    ]
    source = opened(folder, rows)
    assert [source.key(0), source.key(1)] == ["1.png", "2.png"]
    assert source.captions(0) == ("a cat", "again")
    assert source.captions(1) == ("a dog", "an animal")
    assert source.metadata(0) == {"n": 1, "deep": {"x": [1]}}
    assert source.metadata(1) == {}
    assert source[0].image == PNG


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.ndjson"])
def test_a_list_is_read_whatever_the_ending(folder, name):
    rows = [{"file_name": "1.png", "Text": "a"}, 7, {"file_name": "2.png", "Text": "b"}]
    source = opened(folder, ["\ufeff" + json.dumps(rows, indent=1)], name)
    assert [source.captions(0), source.captions(1)] == [("a",), ("b",)]
    assert source.dropped == {"item 2": "int instead of an object with fields"}


def test_bad_rows_are_dropped_and_counted_by_kind(folder):
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
    source = opened(folder, rows)
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


def test_several_columns_and_weights(folder):
    rows = [
        {"image": "1.png", "alt": "web", "long": ["one", "two"]},
        {"image": "2.png", "alt": "", "long": "only"},
        {"image": "3.png", "alt": "only"},
    ]
    options = {"caption_column": "long, ALT", "caption_weights": (3.0, 1.0)}
    source = opened(folder, rows, **options)
    assert source[0].captions == ("one", "two", "web")
    assert source[0].weights == (1.5, 1.5, 1.0)
    assert (source[1].captions, source[1].weights) == (("only",), (3.0,))
    assert (source[2].captions, source[2].weights) == (("only",), (1.0,))
    assert opened(folder, rows, caption_column="long,alt")[0].weights is None
    source = opened(folder, rows, caption_column="long,alt", caption_weights=(1.0, 0.0))
    assert (source[0].captions, source[0].weights) == (("one", "two"), (0.5, 0.5))
    assert "weight 0" in source.dropped["line 3"]


def test_several_columns_and_weights_of_a_table(folder):
    table = "path,alt,long\n1.png,web,one\n1.png,web 2,\n2.png,,only\n"
    (folder / "d.csv").write_text(table)
    options = {"caption_column": "long,alt", "caption_weights": (3.0, 1.0)}
    source = open_source(folder / "d.csv", **options)
    assert source[0].captions == ("one", "web", "web 2")
    assert source[0].weights == (3.0, 0.5, 0.5)
    assert (source[1].captions, source[1].weights) == (("only",), (3.0,))


def test_a_field_without_end_costs_one_row_of_a_table(folder):
    table = f'path,text\n1.png,a\n1.png,"{"x" * 200_000}"\n2.png,b\n'
    (folder / "d.csv").write_text(table)
    source = open_source(folder / "d.csv")
    assert [source.captions(0), source.captions(1)] == [("a",), ("b",)]
    assert source.dropped.counts == {"row_malformed": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,text\n1.png,a\n2.png,caf\xe9\n", r"line 3 is not UTF-8 \(byte 0xe9 .* 10\); save"),
        ("path,text\n1.png,a\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_table_in_another_encoding_says_where_and_what_to_do(folder, content, message):
    (folder / "d.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(folder / "d.csv")


def test_bad_files_are_one_line(folder):
    cases = {
        "a.jsonl": ([{"photo": "1.png", "caption": "x"}], "its columns are: photo, caption"),
        "b.jsonl": ([{"image": "1.png", "words": "x"}], "image, words; name one"),
        "c.jsonl": ([], "no row"),
        "d.jsonl": ([{"image": "no.png", "caption": "x"}], r"no\.png.*relative to"),
        "e.jsonl": ([{"image": "https://example.org/1.png", "caption": "x"}], "download"),
        "f.jsonl": (["photo,caption", "1.png,x"], "no row.*line 1: no JSON"),
        "g.json": (['[{"image": "1.png",'], "no JSON"),
        "h.json": ([b'[\n{"image": "caf\xe9"}]'], "line 2 is not UTF-8"),
        "i.jsonl": ([json.dumps({"image": "1.png"}).encode("utf-16")], "not UTF-8"),
    }
    for name, (rows, message) in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            opened(folder, rows, name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no jsonl file there; give a"):
        open_source(folder / "nowhere.jsonl", format="jsonl")


def test_an_image_that_vanished_is_a_decode_error(folder):
    source = opened(folder, [{"image": "1.png", "caption": "x"}])
    (folder / "1.png").unlink()
    with pytest.raises(DecodeError, match=r"1\.png") as caught:
        source[0]
    assert caught.value.kind == "image_missing"


def test_images_in_a_store_are_read_through_fsspec(folder):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe_file("/pictures/1.png", PNG)
    rows = [
        {"image": "memory://pictures/1.png", "caption": "a"},
        {"image": "memory://pictures/2.png", "caption": "b"},
    ]
    source = opened(folder, rows)
    assert source[0].image == PNG
    with pytest.raises(DecodeError, match=r"2\.png: no such file"):
        source[1]
    lines = "\n".join(json.dumps({"image": "1.png", "caption": "c"}) for _ in range(2))
    fsspec.filesystem("memory").pipe_file("/pictures/d.jsonl", lines.encode())
    source = open_source("memory://pictures/d.jsonl")
    assert source[0].image == PNG
    assert source.captions(0) == ("c", "c")


def test_what_a_cell_may_hold():
    assert texts_of(np.asarray(["a", "b"], object)) == ["a", "b"]
    assert texts_of([b"caf\xc3\xa9", None, " "]) == ["café"]
    assert texts_of(None) == []
    for cell, kind in ((1.5, "row_malformed"), ({"a": 1}, "row_malformed")):
        with pytest.raises(CaptionError) as caught:
            texts_of(cell)
        assert caught.value.kind == kind
    with pytest.raises(CaptionError) as caught:
        captions_of([b"caf\xe9"], SourceOptions())
    assert caught.value.kind == "caption_not_utf8"
