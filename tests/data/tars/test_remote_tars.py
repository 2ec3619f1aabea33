"""Indexed tars of a store: copied or read piece by piece, and what becomes of those that fail."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from loopback import Loopback
from shards import batches, png, samples, take, write_shard, write_shards
from small_sets import refused

from clip_jax.data.options import SourceOptions
from clip_jax.data.sources import open_source
from clip_jax.data.tars.collection import build_indexes
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.options import RemoteOptions

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.usefixtures("cache")

SIZES = (5, 4, 6)


def options(**changes: object) -> SourceOptions:
    values = {"attempts": 2, "backoff_seconds": 0.01, "timeout_seconds": 0.5}
    return SourceOptions(remote=RemoteOptions(**values | changes))  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path):
    write_shards(tmp_path / "set", SIZES)
    with Loopback(tmp_path / "set") as server:
        yield server


def pattern(server: Loopback) -> str:
    return f"{server.url}/{{00000..00002}}.tar"


def test_copies_are_read_like_files(server: Loopback, tmp_path: Path) -> None:
    source = open_source(pattern(server), options=options())
    here = open_source(tmp_path / "set")
    assert source.fingerprint == here.fingerprint
    assert [source[n].image for n in range(15)] == [png(n) for n in range(15)]
    assert source.captions(9) == ("number 9",)
    again = open_source(pattern(server), options=options())
    assert again[14].captions == ("number 14",)
    assert [server.requests[f"0000{n}.tar"] for n in range(3)] == [1, 1, 1]


def test_an_index_beside_the_archive_spares_reading_it(server: Loopback, tmp_path: Path) -> None:
    """One that was uploaded along with it: the store has other tags than the files here."""
    paths = [str(path) for path in sorted((tmp_path / "set").glob("*.tar"))]
    build_indexes(paths, beside=True)
    for _ in range(2):
        source = open_source(pattern(server), options=options())
        assert len(source) == 15
        assert [server.requests[Path(path).name] for path in paths] == [4] * 3  # a few pieces
        assert not (tmp_path / "cache" / "shards").exists()
    assert source[7].image == png(7)


def test_an_index_beside_another_archive_is_not_taken(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "set" / "00000.tar"
    build_indexes([str(path)], beside=True)
    size = path.stat().st_size
    write_shard(path, samples(range(20, 25)))
    assert path.stat().st_size == size
    source = open_source(f"{server.url}/00000.tar", options=options())
    assert source.key(0) == "000020"


def test_an_index_of_the_cache_is_copied_into_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "set", SIZES)
    store = pytest.importorskip("fsspec").filesystem("memory")
    names = [f"/set/{path.name}" for path in sorted((tmp_path / "set").iterdir())]
    for name in names:
        store.pipe_file(name, (tmp_path / name[1:]).read_bytes())
    try:
        monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "one"))
        urls = [f"memory:/{name}" for name in names]
        assert build_indexes(urls).built == 3
        assert not store.exists("/set/00000.tar.index")
        assert build_indexes(urls, beside=True).beside == 3
        assert build_indexes(urls, beside=True).beside == 0
        monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "other"))
        assert len(open_source("memory://set/*.tar")) == 15
        assert not (tmp_path / "other" / "shards").exists()
    finally:
        store.rm("/set", recursive=True)


def test_more_than_the_cache_holds_is_read_in_pieces(server: Loopback, tmp_path: Path) -> None:
    open_source(pattern(server), options=options())  # indexed, when there was room
    size = sum(path.stat().st_size for path in (tmp_path / "set").glob("*.tar"))
    source = open_source(pattern(server), options=options(cache_gib=0.9 * size / 2**30))
    before = server.requests.total()
    assert source[12].image == png(12)
    assert server.requests.total() == before + 2  # image and caption
    server.faults["00002.tar"] = ["500…"]
    with pytest.raises(DecodeError, match=r"000013 cannot be read: .*00002\.tar") as caught:
        source[13]
    assert caught.value.kind == "shard_unreadable"
    before = server.requests.total()
    with pytest.raises(DecodeError):  # it is not asked again for a while
        source[14]
    assert server.requests.total() == before


def test_what_cannot_be_indexed_is_left_out_or_ends_it(server: Loopback) -> None:
    server.faults["00001.tar"] = ["500…"]
    source = open_source(pattern(server), options=options())
    assert len(source) == 11
    assert source.dropped.counts == Counter(shard_unreadable=1)
    assert list(source.damaged) == [f"{server.url}/00001.tar"]
    numbers = take(batches(source, batch_size=5, seed=0), 3)
    assert set(numbers.ravel().tolist()) <= {*range(5), *range(9, 15)}
    with pytest.raises(UserError, match=r"00001\.tar: cannot be read after 2 attempts"):
        open_source(pattern(server), options=options(on_failure="stop"))
    refused(r"nothing\.tar: no such file", f"{server.url}/nothing.tar", options=options())


def test_a_shard_that_goes_away_is_replaced_by_samples_of_all_others(tmp_path: Path) -> None:
    """Neither does one image take all its places, nor is it the fault of the records."""
    source = open_source(write_shards(tmp_path / "many", [1100, 1100, 1100]))
    (tmp_path / "many" / "00001.tar").unlink()
    iterator = batches(source, batch_size=300, seed=0, max_bad_fraction=0.01)
    for numbers in take(iterator, 4):
        assert np.bincount(numbers).max() <= 3
    path = str(tmp_path / "many" / "00001.tar")
    assert list(iterator.tally.lost_shards) == [path]
    assert "No such file" in iterator.tally.lost_shards[path]
    assert iterator.dropped == Counter(shard_unreadable=1)
    assert not iterator.tally.bad


@pytest.mark.parametrize(
    ("on_failure", "fault", "said"),
    [
        ("skip", "500…", r"shards cannot be read, .*0000\d\.tar: .*500.*the same command goes on"),
        ("stop", "cut…", r"0000\d\.tar: cannot be read .*on_failure is 'stop'"),
    ],
)
def test_a_store_that_goes_down_ends_the_run(
    server: Loopback, on_failure: str, fault: str, said: str
) -> None:
    open_source(pattern(server), options=options())
    source = open_source(pattern(server), options=options(on_failure=on_failure, cache_gib=1e-7))
    server.faults = {f"0000{n}.tar": [fault] for n in range(3)}
    with pytest.raises(UserError, match=said):
        take(batches(source, batch_size=5, seed=0, max_bad_fraction=0.5), 3)


def test_a_resume_without_a_shard_says_why(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "set", [6, 6, 6])
    first = batches(open_source(pattern), batch_size=4, seed=0)
    next(first)
    state = first.state()
    first.close()
    (tmp_path / "set" / "00001.tar").write_bytes(b"<html>503</html>")
    second = batches(open_source(pattern), batch_size=4, seed=0)
    with pytest.raises(UserError, match="1 of its files cannot be read now: go on when"):
        second.resume(state)
    second.close()
