"""Parquet: kinds of image columns, captions, bad rows and files, and what is kept in memory."""

import datetime
import json
import logging
import threading

import pytest
from pictures import encode, photo

from clip_jax.data.sources import open_source, row_groups
from clip_jax.data.sources.row_groups import ByteCache
from clip_jax.errors import DecodeError, UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PNG = encode(photo(8, 6), "PNG")
OTHER = encode(photo(9, 7), "PNG")


def write(path, columns, types=None, **options):
    types = types or {}
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path, **options)
    return path


def test_bytes_with_metadata(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {
            "jpg": [PNG, OTHER],
            "TEXT": ["a", "b"],
            "width": [8, 9],
            "score": [0.5, None],
            "when": [datetime.date(2020, 1, 2), None],
            "embedding": [[1.0], [2.0]],
            "mask": [b"\0", b"\1"],
        },
    )
    source = open_source(path)
    assert source[1].image == OTHER
    assert [source.key(0), source.key(1)] == ["a.parquet:0", "a.parquet:1"]
    assert source.metadata(0) == {"width": 8, "score": 0.5, "when": "2020-01-02"}
    assert source.metadata(1) == {"width": 9, "score": None, "when": None}


def test_structs_of_hugging_face(tmp_path):
    (tmp_path / "3.png").write_bytes(OTHER)
    images = [
        {"bytes": PNG, "path": "x.png"},
        {"bytes": None, "path": "3.png"},
        {"bytes": None, "path": None},
        None,
    ]
    path = write(tmp_path / "a.parquet", {"image": images, "caption": list("abcd")})
    source = open_source(path)
    assert [source[0].image, source[1].image] == [PNG, OTHER]
    for index in (2, 3):
        with pytest.raises(DecodeError, match=rf"a\.parquet:{index}: no image") as caught:
            source[index]
        assert caught.value.kind == "image_missing"


def test_paths_and_urls(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe_file("/pictures/p.png", OTHER)
    (tmp_path / "1.png").write_bytes(PNG)
    paths = ["1.png", "memory://pictures/p.png", None, "gone.png"]
    path = write(tmp_path / "a.parquet", {"image_path": paths, "caption": list("abcd")})
    source = open_source(path)
    assert [source.key(index) for index in range(3)] == ["1.png", paths[1], "gone.png"]
    assert [source[0].image, source[1].image] == [PNG, OTHER]
    assert source.dropped.counts == {"image_missing": 1}
    with pytest.raises(DecodeError, match=r"gone\.png"):
        source[2]
    write(path, {"image_path": ["no.png"], "caption": ["a"]})
    with pytest.raises(UserError, match=r"none of its first images.*no\.png"):
        open_source(path)


def test_a_file_in_a_store(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.parquet", {"image": [PNG], "caption": ["a"]})
    fsspec.filesystem("memory").pipe_file("/sets/a.parquet", path.read_bytes())
    for pattern in ("memory://sets/a.parquet", "memory://sets/*.parquet"):
        source = open_source(pattern)
        assert source[0].image == PNG
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    assert open_source("memory://sets/a.parquet").captions(0) == ("a",)


def test_several_captions_and_weights(tmp_path):
    columns = {
        "image": [PNG] * 3,
        "short": [["one", "two", None], [], ["only"]],
        "long": ["text", "alone", None],
    }
    path = write(tmp_path / "a.parquet", columns)
    options = {"caption_column": "long,short", "caption_weights": (1.0, 3.0)}
    source = open_source(path, **options)
    assert (source[0].captions, source[0].weights) == (("text", "one", "two"), (1.0, 1.5, 1.5))
    assert (source[1].captions, source[1].weights) == (("alone",), (1.0,))
    assert source.captions(2) == ("only",)
    assert open_source(path, caption_column="short").dropped.counts == {"caption_empty": 1}


def test_categories_and_large_texts(tmp_path):
    captions = pa.array(["a", "b", "a"]).dictionary_encode()
    table = pa.table({"image": pa.array([PNG] * 3, pa.large_binary()), "caption": captions})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert [source[index].captions for index in range(3)] == [("a",), ("b",), ("a",)]


def test_bad_rows_are_dropped_by_kind_across_row_groups(tmp_path):
    good = ["a", None, " ", "b"]
    broken = pa.array([b"good", b"caf\xe9"], pa.binary()).view(pa.string())
    first = write(tmp_path / "0.parquet", {"image": [PNG] * 4, "caption": good}, row_group_size=2)
    images = pa.array([PNG, PNG])
    pq.write_table(pa.table({"image": images, "caption": broken}), tmp_path / "1.parquet")
    source = open_source(tmp_path)
    keys = [source.key(index) for index in range(len(source))]
    assert keys == ["0.parquet:0", "0.parquet:3", "1.parquet:0"]
    assert [source.captions(index)[0] for index in range(3)] == ["a", "b", "good"]
    assert source.dropped.counts == {
        "caption_missing": 1,
        "caption_empty": 1,
        "caption_not_utf8": 1,
    }
    assert "0.parquet:2" in source.dropped
    assert open_source(first).fingerprint != source.fingerprint


def test_bad_files_are_counted_and_alone_an_error(tmp_path):
    whole = write(tmp_path / "0.parquet", {"image": [PNG], "caption": ["a"]}).read_bytes()
    (tmp_path / "1.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.parquet").write_bytes(b"no parquet")
    (tmp_path / "3.parquet").write_bytes(b"")
    source = open_source(tmp_path)
    assert len(source) == 1
    assert source.dropped.counts == {"shard_unreadable": 3}
    for name in ("1", "2", "3"):
        with pytest.raises(UserError, match=rf"no row.*{name}\.parquet") as caught:
            open_source(tmp_path / f"{name}.parquet")
        assert "\n" not in str(caught.value)


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    columns = {"image": [PNG] * 4, "caption": [f"caption {n}" for n in range(4)]}
    path = write(tmp_path / "a.parquet", columns, row_group_size=2, compression="snappy")
    footer = pq.read_metadata(path)
    texts, images = footer.row_group(1).column(1), footer.row_group(0).column(0)
    data = bytearray(path.read_bytes())

    def damage(column):
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        path.write_bytes(data)

    damage(texts)
    source = open_source(path)
    assert len(source) == 2
    assert source.dropped.counts == {"shard_unreadable": 2}
    assert source[0].image == PNG
    damage(images)
    with pytest.raises(DecodeError) as caught:
        open_source(path)[0]
    assert caught.value.kind == "shard_unreadable"
    path.unlink()
    assert source.key(0) == "a.parquet:0"


def test_columns_that_are_missing_or_wrong(tmp_path):
    path = write(tmp_path / "0.parquet", {"image": [1.5], "caption": ["a"], "n": [1]})
    with pytest.raises(UserError, match=r"column 'image' has double; accepted for images"):
        open_source(path)
    write(path, {"photo": [PNG], "caption": ["a"]})
    with pytest.raises(UserError, match=r"its columns are: photo, caption; name one"):
        open_source(path)
    write(path, {"image": [PNG], "caption": ["a"]})
    write(tmp_path / "1.parquet", {"image": [PNG], "words": ["a"]})
    with pytest.raises(UserError, match=r"1\.parquet has no column caption.*image, words"):
        open_source(tmp_path)
    write(path, {"image": [], "caption": []}, {"image": pa.binary(), "caption": pa.string()})
    with pytest.raises(UserError, match="no row"):
        open_source(path)


def test_row_groups_are_read_once_while_they_fit(tmp_path, monkeypatch):
    columns = {"image": [PNG + bytes([n]) for n in range(8)], "caption": list("abcdefgh")}
    path = write(tmp_path / "a.parquet", columns, row_group_size=2)
    reads = []
    read = row_groups.RowGroups.read
    monkeypatch.setattr(
        row_groups.RowGroups,
        "read",
        lambda self, file, group, names: (
            reads.append((group, names)) or read(self, file, group, names)
        ),
    )
    source = open_source(path)
    reads.clear()
    for _ in range(3):
        assert [source[n].image[-1] for n in range(8)] == list(range(8))
        assert [source.captions(n)[0] for n in range(8)] == list("abcdefgh")
    assert len(reads) == 8  # images and captions of four groups
    monkeypatch.setattr(row_groups, "IMAGES_BYTES", 1)
    source = open_source(path)
    reads.clear()
    for _ in range(3):
        assert [source[n].image[-1] for n in (0, 1, 6, 7)] == [0, 1, 6, 7]
    assert len([names for _, names in reads if names == ["image"]]) == 6


def test_large_row_groups_are_warned_about(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "a.parquet", {"image": [PNG] * 2, "caption": ["a", "b"]})
    monkeypatch.setattr("clip_jax.data.sources.parquet._LARGE_GROUP_BYTES", 10)
    with caplog.at_level(logging.WARNING):
        open_source(path)  # all of it fits into memory
        assert caplog.text == ""
        monkeypatch.setattr(row_groups, "IMAGES_BYTES", 10)
        open_source(path)
    assert "smaller row groups" in caplog.text


def test_the_cache_keeps_the_last_within_its_bytes_and_makes_once():
    cache = ByteCache(10)
    made = []

    def get(key, size=4):
        return cache.get(key, lambda: (made.append(key) or key.upper(), size))

    assert [get("a"), get("b"), get("a"), get("c"), get("a"), get("b")] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]
    assert get("large", 100) == "LARGE"
    assert (get("large", 100), made.count("large")) == ("LARGE", 1)

    def fail():
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        cache.get("bad", fail)
    assert get("bad") == "BAD"
    started, results = threading.Barrier(4), []

    def race():
        started.wait()
        results.append(get("race"))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["RACE"] * 4
    assert made.count("race") == 1


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"image": [PNG], "caption": ["a"]})
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'clip_jax\[parquet\]'"):
        open_source(path)


def test_metadata_is_json(tmp_path):
    columns = {"image": [PNG], "caption": ["a"], "at": [datetime.datetime(2020, 1, 2, 3)]}
    source = open_source(write(tmp_path / "a.parquet", columns))
    assert json.loads(json.dumps(source.metadata(0))) == {"at": "2020-01-02T03:00:00"}
