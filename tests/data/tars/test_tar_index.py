"""Indexes of tar files: made once, made again where they are too old, opened without being read."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mutations import mutated
from shards import photo, png, samples, write_shard, write_shards
from small_sets import keys, refused

from clip_jax.data.records import Fingerprint, fingerprint_of
from clip_jax.data.sources import open_source
from clip_jax.data.tars import collection as tar_indexes
from clip_jax.data.tars import index as tar_index
from clip_jax.data.tars.collection import build_indexes
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.options import RemoteOptions

pytestmark = pytest.mark.usefixtures("cache")


def indexed(path: Path, beside: bool = True) -> Path:
    write_shard(path, samples(range(4)))
    build_indexes([str(path)], beside=beside)
    return path


def test_an_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = write_shards(tmp_path / "set", (3, 0, 4))
    first = open_source(pattern)
    assert len(list((tmp_path / "cache").rglob("*.index"))) == 3
    monkeypatch.setattr(tar_indexes, "make_index", None)  # would be a traceback
    second = open_source(pattern)
    assert keys(second) == keys(first) == [f"{n:06d}" for n in range(7)]
    assert second.fingerprint == first.fingerprint
    assert [second[n].image for n in range(7)] == [png(n) for n in range(7)]
    assert second.captions(5) == ("number 5",)
    assert second.metadata(5) == {"n": 5}
    assert pickle.loads(pickle.dumps(second))[6].captions == ("number 6",)
    with pytest.raises(IndexError):
        second[7]


@pytest.mark.parametrize("first", ["beside", "cache"])
def test_beside_the_archives(tmp_path: Path, cache: Path, first: str) -> None:
    pattern = write_shards(tmp_path / "set", (3, 4))
    paths = sorted(map(str, (tmp_path / "set").glob("*.tar")))
    if first == "cache":
        open_source(pattern)
    summary = build_indexes(paths, beside=True)
    assert (summary.built, summary.beside) == ((2, 0) if first == "beside" else (0, 2))
    assert summary.failed == {}
    assert [shard.index for shard in summary.shards] == [Path(f"{path}.index") for path in paths]
    shutil.rmtree(cache, ignore_errors=True)
    assert len(open_source(pattern)) == len(open_source(tmp_path / "set")) == 7
    assert not cache.exists()
    assert build_indexes(paths).built == build_indexes(paths, beside=True).beside == 0
    assert build_indexes(paths, beside=True, rebuild=True).built == 2


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, samples(range(4)))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "file" / "cache"))
    refused(r"cannot be written: .*; set CLIP_JAX_CACHE to a folder", path)
    (tmp_path / "a.tar.index").mkdir()
    with pytest.raises(UserError, match=r"a\.tar\.index cannot be written: Is a directory$"):
        build_indexes([str(path)], beside=True)


def test_processes_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = write_shards(tmp_path / "set", (3, 4, 5))
    alone = open_source(pattern)
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(tar_indexes, "_WORTH_PROCESSES_BYTES", 0)
    paths = sorted(map(str, (tmp_path / "set").glob("*.tar")))
    progress: list[tuple[int, int]] = []
    summary = build_indexes(paths, workers=2, progress=lambda *x: progress.append(x))
    assert summary.built == 3
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert open_source(pattern).fingerprint == alone.fingerprint
    (tmp_path / "set" / "00003.tar").write_bytes(b"\x1f\x8b no tar" * 100)
    (tmp_path / "set" / "00004.tar").write_bytes(b"")
    bad = [str(tmp_path / "set" / f"0000{number}.tar") for number in (3, 4)]
    summary = build_indexes([bad[0], *paths, bad[1]], workers=2, rebuild=True)
    assert [shard.path for shard in summary.shards] == paths
    assert sorted(summary.failed) == bad
    assert "00003.tar is not an uncompressed tar" in summary.failed[bad[0]]


def test_what_is_no_tar_stops_where_it_is_told_to_and_alone(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", (3, 1, 4))
    (tmp_path / "set" / "00001.tar").write_bytes(b"<html>404</html>" * 99)
    assert len(open_source(tmp_path / "set")) == 7
    with pytest.raises(UserError, match=r"00001\.tar is not an uncompressed tar"):
        open_source(tmp_path / "set", remote=RemoteOptions(on_failure="stop"))
    for number in (0, 2):
        (tmp_path / "set" / f"0000{number}.tar").write_bytes(b"")
    refused(r"no sample .*3 dropped; .*not an uncompressed tar", tmp_path / "set")


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("age_seconds", [-1, 1000])
def test_an_index_of_another_archive_of_the_same_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, beside: bool, age_seconds: int
) -> None:
    """mv, cp -p or rsync -t leave an archive older than the index of the one before."""
    path, other = indexed(tmp_path / "a.tar", beside), tmp_path / "b.tar"
    write_shard(other, [("first", {"txt": b"a" * 700, "png": png(0)}), *samples(range(3))])
    assert path.stat().st_size == other.stat().st_size
    os.utime(other, ns=(time.time_ns() - age_seconds * 10**9,) * 2)
    other.replace(path)
    with caplog.at_level(logging.WARNING):
        source = open_source(path)
    assert keys(source) == ["first", "000000", "000001", "000002"]
    assert source.captions(0) == ("a" * 700,)
    assert f"{path}: its index is older than the archive or of another one" in caplog.text


def test_an_index_goes_along_with_a_copy(tmp_path: Path, cache: Path) -> None:
    path = indexed(tmp_path / "set" / "a.tar")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "set", copy, copy_function=shutil.copyfile)
    os.utime(copy / "a.tar", ns=(time.time_ns() + 10**12,) * 2)
    assert build_indexes([str(copy / "a.tar")]).built == 0
    assert keys(open_source(copy)) == keys(open_source(path))
    assert not cache.exists()
    assert build_indexes([str(copy / "a.tar")], beside=True).beside == 1
    tag = str((copy / "a.tar").stat().st_mtime_ns)
    assert build_indexes([str(copy / "a.tar")], beside=True).shards[0].header.tag == tag
    assert keys(open_source(copy)) == keys(open_source(path))


@pytest.mark.parametrize("at", [0, 300, 50_000, 95_000, -1])
def test_a_digest_sees_the_beginning_the_end_and_between(tmp_path: Path, at: int) -> None:
    data = bytearray(range(256)) * 600
    before = tar_index.content_digest(len(data), lambda start, end: data[start:end])
    data[at] ^= 1
    assert tar_index.content_digest(len(data), lambda start, end: data[start:end]) != before


@pytest.mark.parametrize("cut", [0, 10, 30, 100, -1])
def test_a_broken_index_is_made_anew(tmp_path: Path, cut: int) -> None:
    path = indexed(tmp_path / "a.tar")
    index = Path(f"{path}.index")
    index.write_bytes(index.read_bytes()[:cut])
    assert len(open_source(path)) == 4


def test_columns_have_an_index_of_their_own(tmp_path: Path) -> None:
    texts = []
    for n in range(3):
        fields = json.dumps({"long": f"l{n}"}).encode()
        members = {"png": png(n), "txt": b"a", "alt": f"alt {n}".encode(), "json": fields}
        texts.append((f"{n}", members))
    write_shard(tmp_path / "a.tar", [*texts, ("3", {"png": png(3), "txt": b"only this"})])
    assert open_source(tmp_path / "a.tar").captions(1) == ("a",)
    source = open_source(tmp_path / "a.tar", caption_column="alt,long", caption_weights=(1, 3))
    assert source[2].captions == ("alt 2", "l2")
    assert source[2].weights == (1, 3)
    assert source.dropped == {"3": "caption is missing (no alt, long; there are .txt)"}
    refused(r"no sample .*no nosuch; there are", tmp_path / "a.tar", caption_column="nosuch")


def test_half_surrogates_are_no_caption(tmp_path: Path) -> None:
    half, whole = r'"bad \ud83d"', r'"good \ud83d\ude00"'
    fields = [f'{{"caption": {half}}}', f'{{"captions": ["a", {half}]}}', f'{{"caption": {whole}}}']
    content = [(f"{n}", {"png": png(n), "json": text.encode()}) for n, text in enumerate(fields)]
    write_shard(tmp_path / "a.tar", content)
    source = open_source(tmp_path / "a.tar")
    assert source.captions(0) == ("good \U0001f600",)
    assert source.dropped.counts == {"caption_not_utf8": 2}
    source = open_source(tmp_path / "a.tar", caption_column="caption")
    assert source.dropped.counts == {"caption_not_utf8": 1, "caption_missing": 1}


def test_fingerprints_do_not_depend_on_the_shards(tmp_path: Path) -> None:
    one = open_source(write_shards(tmp_path / "one", (9,)))
    many = open_source(write_shards(tmp_path / "many", (2, 0, 3, 4)))
    records = [(f"{n:06d}", (f"number {n}",)) for n in range(9)]
    assert one.fingerprint == many.fingerprint == fingerprint_of(records)
    others = (records[::-1], records[:-1], [("00000", ("0number 0",)), *records[1:]])
    assert one.fingerprint not in map(fingerprint_of, others)
    parts = [Fingerprint(), Fingerprint()]
    for number, record in enumerate(records):
        parts[number > 3].add(*record)
    parts[0].extend(parts[1])
    assert parts[0].hexdigest() == one.fingerprint


@pytest.mark.slow
def test_ten_thousand_archives_open_quickly(tmp_path: Path) -> None:
    """100,000,000 samples in 10,000 archives: 5 s and 2 GiB at most."""
    one = write_shard(tmp_path / "one.tar", samples(range(10_000)))
    build_indexes([str(one)], beside=True)
    (tmp_path / "set").mkdir()
    for number in range(10_000):
        path = tmp_path / "set" / f"{number:05d}.tar"
        os.link(one, path)
        os.link(f"{one}.index", f"{path}.index")
    program = f"""
import time
from clip_jax.data.sources import open_source
start = time.process_time()
source = open_source({str(tmp_path / "set")!r})
assert len(source) == 100_000_000
seconds = time.process_time() - start
for index in range(0, 100_000_000, 999_983):
    assert source.key(index) == f"{{index % 10_000:06d}}"
[line] = [x for x in open("/proc/self/status") if x.startswith("VmHWM")]
print(seconds, int(line.split()[1]) / 2**20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seconds, gib = map(float, done.stdout.split())
    assert seconds < 5
    assert gib < 2


_SIZES = (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0")


def test_mutated_archives_neither_crash_nor_hang(tmp_path: Path) -> None:
    long_name = ("x" * 120, {"jpg": photo(1), "txt": b"long name"})
    write_shard(tmp_path / "a.tar", [*samples(range(6)), long_name])
    data = (tmp_path / "a.tar").read_bytes()
    rng = np.random.default_rng(0)

    def header_of(place: int) -> int:
        return place // 512 * 512 + int(rng.integers(160))  # name, size, checksum, type

    outcomes = {"good": 0, "bad": 0, "refused": 0, "too long": 0}
    for number in range(200):
        path = tmp_path / "m.tar"
        path.write_bytes(mutated(data, rng, header_of, _SIZES))
        os.utime(path, ns=(time.time_ns() + number * 10**9,) * 2)
        start = time.monotonic()
        try:
            source = open_source(path)
        except UserError as error:
            outcomes["refused" if "\n" not in str(error) else "too long"] += 1
            continue
        for index in range(len(source)):
            try:
                assert source[index].captions
                outcomes["good"] += 1
            except DecodeError:
                outcomes["bad"] += 1
        assert time.monotonic() - start < 5
    assert min(outcomes["good"], outcomes["refused"]) > 5
    assert outcomes["too long"] == 0
