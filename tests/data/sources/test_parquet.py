"""Parquet: kinds of image columns, damage, and what is kept in memory."""

import datetime
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from shards import png
from small_sets import refused

from clip_jax.data.sources import open_source, parquet
from clip_jax.errors import DecodeError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PNG, OTHER = png(1), png(2, (9, 7))


def write(path: Path, columns: dict[str, Any], types: Any = None, **options: Any) -> Path:
    types = types or {}
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path, **options)
    return path


def test_bytes_with_metadata(tmp_path: Path) -> None:
    columns = {
        "jpg": pa.array([PNG, OTHER], pa.large_binary()),
        "TEXT": pa.array(["a", "b"]).dictionary_encode(),
        "width": [8, 9],
        "score": [0.5, None],
        "when": [datetime.date(2020, 1, 2), None],
        "at": [datetime.datetime(2020, 1, 2, 3), None],
        "embedding": [[1.0], [2.0]],
        "mask": [b"\0", b"\1"],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert source[1].image == OTHER
    assert [source.captions(index) for index in range(2)] == [("a",), ("b",)]
    assert [source.key(0), source.key(1)] == ["a.parquet:0", "a.parquet:1"]
    when = {"when": "2020-01-02", "at": "2020-01-02T03:00:00"}
    assert json.loads(json.dumps(source.metadata(0))) == {"width": 8, "score": 0.5, **when}
    assert source.metadata(1) == {"width": 9, "score": None, "when": None, "at": None}


def test_structs_of_hugging_face(tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(OTHER)
    images = [
        {"bytes": PNG, "path": "x.png"},
        {"bytes": None, "path": "3.png"},
        {"bytes": None, "path": None},
        None,
    ]
    source = open_source(write(tmp_path / "a.parquet", {"image": images, "caption": list("abcd")}))
    assert [source[0].image, source[1].image] == [PNG, OTHER]
    for index in (2, 3):
        with pytest.raises(DecodeError, match=rf"a\.parquet:{index}: no image") as caught:
            source[index]
        assert caught.value.kind == "image_missing"


def test_paths_and_urls(tmp_path: Path) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe_file("/pictures/p.png", OTHER)
    (tmp_path / "1.png").write_bytes(PNG)
    paths = ["1.png", "memory://pictures/p.png", None, "gone.png"]
    path = write(tmp_path / "a.parquet", {"image_path": paths, "caption": list("abcd")})
    source = open_source(path)
    assert [source.key(index) for index in range(3)] == ["1.png", paths[1], "gone.png"]
    assert [source[0].image, source[1].image] == [PNG, OTHER]
    assert source.dropped.counts == {"image_missing": 1}
    assert "a.parquet:2" in source.dropped
    with pytest.raises(DecodeError, match=r"gone\.png"):
        source[2]
    write(path, {"image_path": ["no.png"], "caption": ["a"]})
    refused(r"none of its first images.*no\.png", path)


def test_lists_of_texts_that_are_not_utf8_cost_their_rows(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"caf\xe9"], pa.binary()).view(pa.string())
    columns = {"image": [PNG] * 2, "caption": pa.ListArray.from_arrays([0, 1, 2], texts)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert (len(source), source.captions(0)) == (1, ("good",))
    assert source.dropped == {"a.parquet:1": "caption is not UTF-8 (byte 3)"}


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    columns = {"image": [PNG] * 4, "caption": [f"caption {n}" for n in range(4)]}
    path = write(tmp_path / "a.parquet", columns, row_group_size=2, compression="snappy")
    footer = pq.read_metadata(path)
    data = bytearray(path.read_bytes())

    def damage(group: int, column: int) -> None:
        found = footer.row_group(group).column(column)
        start = found.dictionary_page_offset or found.data_page_offset
        data[start : start + found.total_compressed_size] = b"\xff" * found.total_compressed_size
        path.write_bytes(data)

    damage(1, 1)
    source = open_source(path)
    assert len(source) == 2
    assert source.dropped.counts == {"shard_unreadable": 2}
    assert source[0].image == PNG
    damage(0, 0)
    with pytest.raises(DecodeError) as caught:
        open_source(path)[0]
    assert caught.value.kind == "shard_unreadable"
    path.unlink()
    assert source.key(0) == "a.parquet:0"


def test_columns_that_are_missing_or_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", {"image": [1.5], "caption": ["a"], "n": [1]})
    refused(r"column 'image' has double; accepted for images", path)
    write(path, {"image": [PNG], "caption": ["a"]})
    write(tmp_path / "1.parquet", {"image": [PNG], "words": ["a"]})
    refused(r"1\.parquet has no column caption.*image, words", tmp_path)
    write(path, {"image": [], "caption": []}, {"image": pa.binary(), "caption": pa.string()})
    refused("no row", path)


def test_row_groups_are_read_once_while_they_fit(tmp_path: Path, monkeypatch) -> None:
    columns = {"image": [PNG + bytes([n]) for n in range(8)], "caption": list("abcdefgh")}
    path = write(tmp_path / "a.parquet", columns, row_group_size=2)
    reads: list[list[str]] = []
    read = parquet.RowGroups.read

    def record(self: Any, file: int, group: int, names: list[str]) -> Any:
        reads.append(names)
        return read(self, file, group, names)

    monkeypatch.setattr(parquet.RowGroups, "read", record)
    source = open_source(path)
    reads.clear()
    for _ in range(3):
        assert [source[n].image[-1] for n in range(8)] == list(range(8))
        assert [source.captions(n)[0] for n in range(8)] == list("abcdefgh")
    assert len(reads) == 8  # images and captions of four groups
    monkeypatch.setattr(parquet, "IMAGES_BYTES", 1)
    source = open_source(path)
    reads.clear()
    for _ in range(3):
        assert [source[n].image[-1] for n in (0, 1, 6, 7)] == [0, 1, 6, 7]
    assert reads.count(["image"]) == 6


def test_large_row_groups_are_warned_about(tmp_path: Path, monkeypatch, caplog) -> None:
    path = write(tmp_path / "a.parquet", {"image": [PNG] * 2, "caption": ["a", "b"]})
    monkeypatch.setattr(parquet, "_LARGE_GROUP_BYTES", 10)
    with caplog.at_level(logging.WARNING):
        open_source(path)  # all of it fits into memory
        assert caplog.text == ""
        monkeypatch.setattr(parquet, "IMAGES_BYTES", 10)
        open_source(path)
    assert "smaller row groups" in caplog.text
