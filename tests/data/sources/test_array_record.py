"""ArrayRecord files and the tf.train.Example messages in them."""

import os
import random
import struct
from pathlib import Path

import pytest
from shards import png

from clip_jax.data.records import Source
from clip_jax.data.sources import open_source
from clip_jax.data.sources.array_record import write_array_records
from clip_jax.data.sources.tf_example import make_example, parse_example
from clip_jax.errors import DecodeError, UserError

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


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def entry(name: bytes, *features: bytes) -> bytes:
    return field(1, field(1, name) + b"".join(field(2, feature) for feature in features))


def test_messages_are_written_and_read() -> None:
    assert parse_example(make_example(FEATURES)) == FEATURES
    assert parse_example(b"") == {}
    # By hand: numbers one by one and packed; the last of two features and of two kinds wins.
    ints, packed = field(3, b"\x08\x05\x08\x96\x01"), field(3, b"\x0a\x03\x05\x96\x01")
    floats = field(2, b"\x0d" + struct.pack("<f", 1.5) + b"\x0d" + struct.pack("<f", 2.5))
    texts = field(1, field(1, "größer".encode()) + field(1, b"\xff"))
    made = (entry(b"i", ints), entry(b"p", packed), entry(b"f", floats), entry(b"t", texts))
    expected = {"i": [5, 150], "p": [5, 150], "f": [1.5, 2.5], "t": ["größer".encode(), b"\xff"]}
    assert parse_example(field(1, b"".join(made))) == expected
    again = field(1, entry(b"i", floats)) + field(1, entry(b"p", floats, ints))
    assert parse_example(again) == {"i": [1.5, 2.5], "p": [5, 150]}
    assert make_example({"i": [5, 150]}) == field(1, entry(b"i", packed))
    for values in ([1, 2.5], ["text"], [b"a", 1]):
        with pytest.raises(ValueError, match="accepted are bytes, floats or ints"):
            make_example({"x": values})


def test_damaged_messages_are_value_errors() -> None:
    data = make_example({**FEATURES, "image": [PNG[:50]]})
    generator = random.Random(0)
    outcomes = set()
    for _ in range(2000):
        damaged = bytearray(data[: generator.randrange(len(data) + 1)])
        for _ in range(generator.randrange(4)):
            if damaged:
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            parse_example(bytes(damaged))
            outcomes.add("read")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


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


def outcomes(source: Source) -> list[str]:
    """The first caption of each record, or the kind of its error."""
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index].captions[0])
        except DecodeError as error:
            found.append(error.kind)
    return found


def test_bad_records_are_decode_errors_of_their_kind(tmp_path: Path) -> None:
    good = {"image": [PNG], "caption": [b"a"]}
    source = open_source(
        write_messages(
            tmp_path / "x.array_record",
            make_example(good),
            make_example({**good, "caption": [3]}),
            make_example({**good, "image": [b""]}),
            make_example({**good, "image": [7]}),
            b"\xff\xff\xff no message",
            make_example({**good, "key": [7]}),
        )
    )
    expected = ["a", "row_malformed", "image_missing", "image_missing", "row_malformed", "a"]
    assert outcomes(source) == expected
    assert [source.key(4), source.key(5)] == ["x.array_record:4", "7"]


def test_files_without_examples(tmp_path: Path) -> None:
    for messages, reason in (
        ((), "has no record; give ArrayRecord files"),
        ((b"\x80 not an example",), r"accepted are serialized tf\.train\.Example"),
        ((b"",), r"x\.array_record:0 has no features; accepted are"),
    ):
        with pytest.raises(UserError, match=reason):
            open_source(write_messages(tmp_path / "x.array_record", *messages))


def test_a_damaged_stretch_costs_its_records_only(tmp_path: Path) -> None:
    path = tmp_path / "x.array_record"
    write_array_records(path, ((f"{n}", os.urandom(3000), ("a",), {}) for n in range(50)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = b"\x55" * 5000
    path.write_bytes(bytes(data))
    found = outcomes(open_source(path))
    assert set(found) == {"a", "shard_unreadable"}
    assert found.count("shard_unreadable") <= 5


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_jax.data.sources.array_record._MAX_OPEN_FILES", 2)
    for shard in range(5):
        write_array_records(tmp_path / f"{shard}.array_record", [(f"{shard}", PNG, ("a",), {})])
    source = open_source(tmp_path)
    for _ in range(3):
        assert [source.key(index) for index in range(5)] == list("01234")
