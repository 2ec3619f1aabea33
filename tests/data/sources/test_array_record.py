"""ArrayRecord files and the tf.train.Example messages in them."""

import os
from pathlib import Path

import pytest
from shards import png
from small_sets import outcomes, refused

from clip_jax.data.sources import open_source
from clip_jax.data.sources.array_record import write_array_records
from clip_jax.data.sources.tf_example import make_example, parse_example
from clip_jax.errors import UserError

array_record_module = pytest.importorskip("array_record.python.array_record_module")

PNG = png(1)


def write_messages(path: Path, *messages: bytes) -> Path:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for message in messages:
        writer.write(message)
    writer.close()
    return path


FEATURES = {
    "image": [PNG],
    "texts": ["größer".encode(), b"", b"x" * 300],
    "ints": [0, 1, -1, 127, 128, 2**63 - 1, -(2**63)],
    "floats": [0.5, -2.0, float("inf")],
    "nothing": [],
}


def test_messages_are_written_and_read() -> None:
    assert parse_example(make_example(FEATURES)) == FEATURES
    assert parse_example(b"") == {}
    # Field by field, each a number with its length: features, entry, name; value, ints, packed.
    made = b"\x0a\x0f" + b"\x0a\x0d" + b"\x0a\x01i" + b"\x12\x08" + b"\x1a\x06"
    made += b"\x0a\x04\x05\x96\x01\x07"
    assert make_example({"i": [5, 150, 7]}) == made
    for values in ([1, 2.5], ["text"], [b"a", 1]):
        with pytest.raises(ValueError, match="accepted are bytes, floats or ints"):
            make_example({"x": values})


def test_what_is_written_is_read_or_nothing_is_left(tmp_path: Path) -> None:
    records = [
        ("a/1", PNG, ("one", "zwei ü"), {"n": 1, "deep": {"x": [1, None]}}),
        ("a/2", PNG[:-1], ("two",), {}),
    ]
    path = tmp_path / "x.array_record"
    assert write_array_records(path, iter(records)) == 2
    source = open_source(path)
    for index, (key, image, captions, metadata) in enumerate(records):
        record = source[index]
        assert (record.key, record.image, record.captions) == (key, image, captions)
        assert source.metadata(index) == metadata
    reader = array_record_module.ArrayRecordReader(str(path))
    assert "group_size:1," in reader.writer_options_string()

    def broken():
        yield records[0]
        raise KeyError("the source broke")

    with pytest.raises(KeyError):
        write_array_records(tmp_path / "y.array_record", broken())
    assert os.listdir(tmp_path) == ["x.array_record"]
    with pytest.raises(UserError, match=r"nowhere.*cannot be written"):
        write_array_records(tmp_path / "nowhere" / "x.array_record", [])


def test_features_of_other_writers(tmp_path: Path) -> None:
    features = {"image/encoded": [PNG], "image/height": [6], "scores": [0.5, 1.5]}
    features |= {"mask": [b"\xff\xfe"], "long": [b"x" * 70_000], "json": [b"[broken"]}
    texts = ({"caption/text": [f"caption {n}".encode()]} for n in range(3))
    messages = [make_example(features | text) for text in texts]
    write_messages(tmp_path / "x.array_record-00000-of-00001", *messages)
    source = open_source(tmp_path)
    assert source[2].captions == ("caption 2",)
    assert source.key(2) == "x.array_record-00000-of-00001:2"
    assert source.metadata(0) == {"image/height": 6, "scores": [0.5, 1.5]}
    named = open_source(tmp_path, image_column="mask")
    assert named[0].image == b"\xff\xfe"
    assert named.fingerprint != source.fingerprint


def test_bad_records_are_decode_errors_of_their_kind(tmp_path: Path) -> None:
    good = {"image": [PNG], "caption": [b"a"]}
    changes = ({}, {"caption": [3]}, {"image": [b""]}, {"image": [7]}, {"key": [7]})
    messages = [b"\xff\xff\xff no message", *(make_example(good | change) for change in changes)]
    source = open_source(write_messages(tmp_path / "x.array_record", *messages))
    expected = ["row_malformed", "a", "row_malformed", "image_missing", "image_missing", "a"]
    assert outcomes(source) == expected
    assert [source.key(0), source.key(5)] == ["x.array_record:0", "7"]


def test_files_without_examples(tmp_path: Path) -> None:
    for messages, reason in (
        ((), "has no record; give ArrayRecord files"),
        ((b"\x80 not an example",), r"accepted are serialized tf\.train\.Example"),
        ((b"",), r"x\.array_record:0 has no features; accepted are"),
    ):
        refused(reason, write_messages(tmp_path / "x.array_record", *messages))


def test_a_damaged_stretch_costs_its_records_only(tmp_path: Path) -> None:
    path = tmp_path / "x.array_record"
    write_array_records(path, ((f"{n}", os.urandom(3000), ("a",), {}) for n in range(50)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = b"\x55" * 5000
    path.write_bytes(bytes(data))
    found = outcomes(open_source(path))
    assert set(found) == {"a", "shard_unreadable"}
    assert found.count("shard_unreadable") <= 5
