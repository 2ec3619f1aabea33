"""Streams of shards: one order whatever the hosts and workers, through any resume and any fault."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback
from shards import batches, png, samples, take, write_shard, write_shards

from clip_jax.data.options import SourceOptions
from clip_jax.data.sources import open_source
from clip_jax.data.stream.pipeline import BatchIterator
from clip_jax.data.stream.shard_order import StreamOrder
from clip_jax.data.stream.shards import SHIFT, StreamingSource
from clip_jax.errors import UserError
from clip_jax.files.options import RemoteOptions

SIZES = (5, 9, 3, 7, 8, 4, 6, 10)  # 52 samples


@pytest.fixture
def shards(tmp_path: Path, cache: Path) -> str:
    return write_shards(tmp_path / "shards", SIZES)


def stream(source: StreamingSource, **options: Any) -> BatchIterator:
    return batches(source, **{"batch_size": 8, "seed": 5, "streams": 4} | options)


def test_more_hosts_than_shards_is_said(shards: str, caplog: pytest.LogCaptureFixture) -> None:
    stream(StreamingSource(shards), rows=range(2)).close()
    assert "hosts" not in caplog.text
    stream(StreamingSource(shards), rows=range(1)).close()
    assert "8 hosts read 4 streams of 8 shards: several hosts copy the same shards" in caplog.text
    assert "raise config.data.streams" in caplog.text


@pytest.mark.parametrize("changed", [{"streams": 2}, {"streams": None}, {"window_shards": 3}])
def test_a_resume_with_another_partition_is_refused(shards: str, changed: dict[str, Any]) -> None:
    first = stream(StreamingSource(shards))
    take(first, 3)
    state = json.loads(json.dumps(first.state()))
    assert set(state["cursor"]) == {"0", "1", "2", "3"}
    options = {"start_batch": 3, "cursor": state["cursor"]} | changed
    with pytest.raises(UserError, match=r"made with other (streams|window_shards): .*[42] there"):
        stream(StreamingSource(shards), **options).resume(state)


def test_a_resume_does_not_walk_through_what_is_done(shards: str) -> None:
    first = stream(StreamingSource(shards))
    take(first, 60)
    epochs = {epoch for epoch, *_ in first.state()["cursor"].values()}
    assert min(epochs) > 2


def test_batches_far_apart_in_shards_of_few_samples(shards: str) -> None:
    """Threads are several batches apart, each batch many windows long."""
    order = StreamOrder(StreamingSource(shards), seed=5, batch_size=32, streams=1, width=1)
    last = list(order.numbers(range(3200, 3232)))
    first = list(order.numbers(range(32)))
    assert list(order.numbers(range(3200, 3232))) == last
    fresh = StreamOrder(StreamingSource(shards), seed=5, batch_size=32, streams=1, width=1)
    assert list(fresh.numbers(range(32))) == first
    assert len(order._stream(0)._windows) < 400
    found = take(stream(StreamingSource(shards), streams=1, window_shards=1, batch_size=32), 26)
    assert np.bincount(found.ravel()).tolist() == [16] * 52


CLOSES = """
import sys, time
sys.path.insert(0, {tests!r})
from test_streaming import Path, SourceOptions, StreamingSource, RemoteOptions, stream

if __name__ == "__main__":
    options = SourceOptions(remote=RemoteOptions(attempts=9, timeout_seconds=40))
    source = StreamingSource(sys.argv[1], options)
    batches = stream(source, streams=1, batch_size=4, window_shards=1, workers=int(sys.argv[2]))
    next(batches)
    time.sleep(1)  # all that can be read ahead is
    start = time.monotonic()
    batches.close()
    print(time.monotonic() - start, time.time(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_the_end_does_not_wait_for_a_store(shards: str, tmp_path: Path, workers: int) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "closes.py").write_text(CLOSES.format(tests=str(Path(__file__).parent)))
    first = next(StreamOrder(StreamingSource(shards), 5, 4, 1, 1).numbers([0])) >> SHIFT
    with Loopback(Path(shards).parent) as server:
        server.faults = {f"0000{n}.tar": ["stall…"] for n in {*range(1, 8)} - {first}}
        command = [sys.executable, str(tmp_path / "closes.py"), remote(server)[0], str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        seconds, closed = map(float, done.stdout.split())
        assert seconds < 5
        assert time.time() - closed < 5
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"<html>404</html>" * 99])
def test_shards_that_are_no_tars_are_left_out(shards: str, content: bytes | None) -> None:
    """Also the first, and one without samples."""
    folder = Path(shards).parent
    write_shard(folder / "00000.tar", [])
    for name in ("00001.tar", "00006.tar"):
        (folder / name).write_bytes(content or b"no tar")
    source = StreamingSource(shards)
    if content is None:  # by then one that was named is not there
        (folder / "00001.tar").unlink()
        (folder / "00006.tar").unlink()
    iterator = stream(source, streams=1, batch_size=7)
    found = take(iterator, 8).ravel()  # 32 samples: an epoch and most of another
    left = {*range(52)} - {*range(14), *range(36, 42)}
    assert sorted(found[:32].tolist()) == sorted(left)
    assert set(iterator.tally.lost_shards) == {str(folder / f"0000{n}.tar") for n in (1, 6)}
    assert iterator.dropped == Counter(shard_unreadable=2)
    assert not iterator.tally.bad
    options = SourceOptions(remote=RemoteOptions(on_failure="stop"))
    with pytest.raises(UserError, match=r"0000[16]\.tar"):
        take(stream(StreamingSource(shards, options), streams=1, batch_size=7), 8)


def test_no_shard_that_is_good(shards: str) -> None:
    for path in Path(shards).parent.glob("*.tar"):
        path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"00007\.tar is not .*; nor has any of the first 8"):
        StreamingSource(shards)
    with pytest.raises(UserError, match=r"00003\.tar is not an uncompressed tar file: [^;]*; give"):
        StreamingSource(str(Path(shards).parent / "00003.tar"))


def test_a_shard_deleted_while_it_is_read(tmp_path: Path, cache: Path) -> None:
    path = write_shards(tmp_path / "set", (40, 40, 40, 40))
    source = StreamingSource(path)
    order = StreamOrder(source, 5, 8, 1, 4)
    assert len(set(order.numbers(range(160)))) == 160  # counted, all of them
    (tmp_path / "set" / "00002.tar").unlink()
    iterator = stream(source, streams=1, window_shards=4, max_bad_fraction=0.0)
    found = take(iterator, 20).ravel()
    assert not {*range(80, 120)} & set(found.tolist())
    assert np.bincount(found).max() <= 4  # not the neighbours of what is gone
    assert list(iterator.tally.lost_shards) == [str(tmp_path / "set" / "00002.tar")]
    assert iterator.dropped == Counter(shard_unreadable=1)
    assert source.key(2 << SHIFT | 7).endswith("00002.tar:7")


def spoil(folder: Path) -> None:
    """Shard 0 has a sample without caption, shard 1 one whose caption is blank, 3 is no tar."""
    write_shard(folder / "00000.tar", [*samples(range(4)), ("x", {"png": png(9)})])
    write_shard(folder / "00001.tar", [*samples(range(5, 13)), ("y", {"png": b"", "txt": b" "})])
    (folder / "00003.tar").write_bytes(b"<html>")


SPOILED = Counter(caption_missing=1, caption_empty=1, shard_unreadable=1)


def test_drops_are_counted_once_through_resumes(shards: str) -> None:
    spoil(Path(shards).parent)
    first = stream(StreamingSource(shards))
    numbers = [take(first, 3)]
    for number in range(3, 15):
        state = json.loads(json.dumps(first.state()))
        first = stream(StreamingSource(shards), start_batch=number, cursor=state["cursor"])
        first.resume(state)
        numbers.append(take(first, 1))
    whole = stream(StreamingSource(shards))
    np.testing.assert_array_equal(np.concatenate(numbers), take(whole, 15))
    assert first.dropped == whole.dropped == SPOILED
    assert (first.tally.kept, first.tally.left_out) == (whole.tally.kept, whole.tally.left_out)
    assert first.tally.left_out == 2


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_counted_does_not_depend_on_workers(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    pytest.importorskip("aiohttp")
    spoil(Path(shards).parent)
    fetched = []
    for workers in (0, 2):
        monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / f"cache{workers}"))
        with Loopback(Path(shards).parent) as server:
            where, options = remote(server)
            source: Any = StreamingSource if streaming else open_source
            opened = source(where, options=options)
            iterator = stream(opened, workers=workers)
            take(iterator, 12)
            assert iterator.dropped == SPOILED
            fetched.append(iterator.counts["bytes_fetched"])
            state = json.loads(json.dumps(iterator.state()))
            again = stream(opened, start_batch=12, cursor=state["cursor"])
            again.resume(state)
            again.close()
            assert again.dropped == SPOILED
    size = sum(path.stat().st_size for path in Path(shards).parent.glob("*.tar"))
    assert fetched == [size, size]


def test_numbers_that_do_not_fit(shards: str) -> None:
    for streams in (3, 16):
        with pytest.raises(UserError, match=f"streams={streams}: must divide .*shards, 8"):
            stream(StreamingSource(shards), streams=streams)


def remote(server: Loopback, on_failure: str = "skip") -> tuple[str, SourceOptions]:
    options = RemoteOptions(
        attempts=2, backoff_seconds=0.01, timeout_seconds=0.5, on_failure=on_failure
    )
    return f"{server.url}/{{00000..00007}}.tar", SourceOptions(remote=options)


def test_a_failing_shard_is_left_out_and_the_order_stays(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    missing = range(sum(SIZES[:4]), sum(SIZES[:5]))  # of shard 4
    runs = []
    for number in range(2):
        monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / f"cache{number}"))
        with Loopback(Path(shards).parent) as server:
            server.faults = {"00004.tar": ["500…"], "00002.tar": ["stall"], "00006.tar": ["cut"]}
            iterator = stream(StreamingSource(*remote(server)), streams=1, batch_size=4)
            runs.append(take(iterator, 11).ravel())
            assert iterator.dropped == Counter(shard_unreadable=1)
            assert server.requests["00004.tar"] >= 2
    np.testing.assert_array_equal(*runs)
    assert sorted(runs[0].tolist()) == sorted(set(range(52)) - set(missing))
    with Loopback(Path(shards).parent) as server:
        server.faults = {"00004.tar": ["500…"]}
        iterator = stream(StreamingSource(*remote(server, "stop")), streams=1, batch_size=4)
        with pytest.raises(UserError, match=r"00004\.tar: cannot be read .*'stop'"):
            take(iterator, 13)
