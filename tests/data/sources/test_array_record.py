"""ArrayRecord files and the tf.train.Example messages in them."""

import os
import random
import struct

import pytest
from pictures import encode, photo

from clip_jax.data.sources import open_source
from clip_jax.data.sources.array_record import write_array_records
from clip_jax.data.sources.tf_example import make_example, parse_example
from clip_jax.errors import DecodeError, UserError

array_record_module = pytest.importorskip("array_record.python.array_record_module")

PNG = encode(photo(8, 6), "PNG")


def write_messages(path, messages) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for message in messages:
        writer.write(message)
    writer.close()


def example_class():
    """tf.train.Example, from a descriptor made by hand."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name, *fields, into=file.message_type):
        made = into.add(name=name)
        for number, (title, kind, type_name, repeated) in enumerate(fields, start=1):
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            made.field.add(name=title, number=number, type=kind, type_name=type_name, label=label)
        return made

    message("BytesList", ("value", field.TYPE_BYTES, None, True))
    message("FloatList", ("value", field.TYPE_FLOAT, None, True))
    message("Int64List", ("value", field.TYPE_INT64, None, True))
    feature = message(
        "Feature",
        ("bytes_list", field.TYPE_MESSAGE, ".t.BytesList", False),
        ("float_list", field.TYPE_MESSAGE, ".t.FloatList", False),
        ("int64_list", field.TYPE_MESSAGE, ".t.Int64List", False),
    )
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = message("Features", ("feature", field.TYPE_MESSAGE, ".t.Features.Entry", True))
    entry = message(
        "Entry",
        ("key", field.TYPE_STRING, None, False),
        ("value", field.TYPE_MESSAGE, ".t.Feature", False),
        into=features.nested_type,
    )
    entry.options.map_entry = True
    message("Example", ("features", field.TYPE_MESSAGE, ".t.Features", False))
    pool = descriptor_pool.DescriptorPool()
    # A map entry's message must be named after its field.
    entry.name = "FeatureEntry"
    features.field[0].type_name = ".t.Features.FeatureEntry"
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


FEATURES = {
    "image": [PNG],
    "texts": ["größer".encode(), b"", b"x" * 300],
    "ints": [0, 1, -1, 127, 128, 2**63 - 1, -(2**63)],
    "floats": [0.5, -2.0, float("inf")],
    "one": [7],
    "nothing": [],
}


def test_messages_as_protobuf_reads_and_writes_them():
    example = example_class()
    theirs = example.FromString(make_example(FEATURES))
    found = theirs.features.feature
    assert set(found) == set(FEATURES)
    assert list(found["image"].bytes_list.value) == FEATURES["image"]
    assert list(found["texts"].bytes_list.value) == FEATURES["texts"]
    assert list(found["ints"].int64_list.value) == FEATURES["ints"]
    assert list(found["floats"].float_list.value) == FEATURES["floats"]
    assert parse_example(theirs.SerializeToString()) == FEATURES
    assert parse_example(example().SerializeToString()) == {}
    # What protobuf merges and overrides, so do we.
    more = example()
    more.features.feature["one"].bytes_list.value.append(b"other")
    merged = theirs.SerializeToString() + more.SerializeToString()
    assert parse_example(merged) == {**FEATURES, "one": [b"other"]}


def test_numbers_one_by_one_are_read_as_packed_ones():
    def field(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    ints = field(3, b"\x08\x05\x08\x96\x01")
    floats = field(2, b"\x0d" + struct.pack("<f", 1.5) + b"\x0d" + struct.pack("<f", 2.5))
    entries = field(1, field(1, b"i") + field(2, ints)) + field(
        1, field(1, b"f") + field(2, floats)
    )
    assert parse_example(field(1, entries)) == {"i": [5, 150], "f": [1.5, 2.5]}


def test_damaged_messages_are_value_errors():
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


def test_what_is_no_feature_is_refused():
    for values in ([1, 2.5], ["text"], [b"a", 1]):
        with pytest.raises(ValueError, match="accepted are bytes, floats or ints"):
            make_example({"x": values})


def test_what_is_written_is_read(tmp_path):
    records = [
        ("a/1", PNG, ("one", "zwei ü"), {"n": 1, "deep": {"x": [1, None]}}),
        ("a/2", PNG[:-1], ("two",), {}),
    ]
    path = tmp_path / "x.array_record"
    assert write_array_records(path, iter(records)) == 2
    assert os.listdir(tmp_path) == ["x.array_record"]
    source = open_source(path)
    for index, (key, image, captions, metadata) in enumerate(records):
        record = source[index]
        assert (record.key, record.image, record.captions) == (key, image, captions)
        assert source.metadata(index) == metadata
    reader = array_record_module.ArrayRecordReader(str(path))
    assert "group_size:1," in reader.writer_options_string()


def test_writing_ends_with_a_whole_file_or_none(tmp_path):
    def records():
        yield ("1", PNG, ("a",), {})
        raise KeyError("the source broke")

    with pytest.raises(KeyError):
        write_array_records(tmp_path / "x.array_record", records())
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match=r"nowhere.*cannot be written"):
        write_array_records(tmp_path / "nowhere" / "x.array_record", [])


def test_features_of_other_writers(tmp_path):
    messages = [
        make_example(
            {
                "image/encoded": [PNG],
                "caption/text": [f"caption {n}".encode()],
                "image/height": [6],
                "scores": [0.5, 1.5],
                "mask": [b"\xff\xfe"],
            }
        )
        for n in range(3)
    ]
    write_messages(tmp_path / "x.array_record-00000-of-00001", messages)
    source = open_source(tmp_path)
    assert source[2].captions == ("caption 2",)
    assert source.key(2) == "x.array_record-00000-of-00001:2"
    assert source.metadata(0) == {"image/height": 6, "scores": [0.5, 1.5]}
    named = open_source(tmp_path, image_column="mask")
    assert named[0].image == b"\xff\xfe"
    assert named.fingerprint != source.fingerprint
    with pytest.raises(UserError, match=r"'words'.*caption/text, image/encoded.*caption_column"):
        open_source(tmp_path, caption_column="words")


def test_captions_of_several_features_with_weights(tmp_path):
    message = make_example({"image": [PNG], "a": [b"one", b"two"], "b": [b"three"]})
    write_messages(tmp_path / "x.array_record", [message])
    options = {"caption_column": "b,a", "caption_weights": (1.0, 4.0)}
    record = open_source(tmp_path, **options)[0]
    assert (record.captions, record.weights) == (("three", "one", "two"), (1.0, 2.0, 2.0))


def outcomes(source) -> list[str]:
    """Of each record, its first caption or the kind of its error."""
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index].captions[0])
        except DecodeError as error:
            found.append(error.kind)
    return found


def test_bad_records_are_decode_errors_of_their_kind(tmp_path):
    good = {"image": [PNG], "caption": [b"a"]}
    messages = [
        make_example(good),
        make_example({"image": [PNG]}),
        make_example({"image": [PNG], "caption": [b" "]}),
        make_example({"image": [PNG], "caption": [b"caf\xe9"]}),
        make_example({"image": [PNG], "caption": [3]}),
        make_example({"caption": [b"a"]}),
        make_example({"image": [b""], "caption": [b"a"]}),
        b"\xff\xff\xff no message",
        make_example(good),
    ]
    write_messages(tmp_path / "x.array_record", messages)
    source = open_source(tmp_path)
    assert outcomes(source) == [
        "a",
        "caption_missing",
        "caption_empty",
        "caption_not_utf8",
        "row_malformed",
        "image_missing",
        "image_missing",
        "row_malformed",
        "a",
    ]
    assert source.key(7) == "x.array_record:7"


def test_bad_files_are_counted_and_alone_an_error(tmp_path):
    records = [(f"{n}", os.urandom(3000), ("a",), {}) for n in range(50)]
    write_array_records(tmp_path / "0.array_record", records)
    whole = (tmp_path / "0.array_record").read_bytes()
    (tmp_path / "1.array_record").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.array_record").write_bytes(b"something else" * 100)
    source = open_source(tmp_path)
    assert len(source) == 50
    assert source.dropped.counts == {"shard_unreadable": 2}
    with pytest.raises(UserError, match=r"no record.*no ArrayRecord file, or is cut off"):
        open_source(tmp_path / "1.array_record")
    write_messages(tmp_path / "3.array_record", [])
    with pytest.raises(UserError, match="has no record"):
        open_source(tmp_path / "3.array_record")
    write_messages(tmp_path / "4.array_record", [b"\x80 not an example"])
    with pytest.raises(UserError, match=r"accepted are serialized tf\.train\.Example"):
        open_source(tmp_path / "4.array_record")


def test_a_damaged_stretch_costs_its_records_only(tmp_path):
    path = tmp_path / "x.array_record"
    write_array_records(path, ((f"{n}", os.urandom(3000), ("a",), {}) for n in range(50)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = b"\x55" * 5000
    path.write_bytes(bytes(data))
    source = open_source(path)
    found = outcomes(source)
    assert set(found) == {"a", "shard_unreadable"}
    assert found.count("shard_unreadable") <= 5


def test_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_jax.data.sources.array_record._MAX_OPEN_FILES", 2)
    for shard in range(5):
        write_array_records(tmp_path / f"{shard}.array_record", [(f"{shard}", PNG, ("a",), {})])
    source = open_source(tmp_path)
    for _ in range(3):
        assert [source.key(index) for index in range(5)] == list("01234")


def test_files_of_a_store(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    write_array_records(tmp_path / "x.array_record", [("1", PNG, ("a",), {})])
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/records/x.array_record", (tmp_path / "x.array_record").read_bytes())
    assert open_source("memory://records/x.array_record")[0].image == PNG
