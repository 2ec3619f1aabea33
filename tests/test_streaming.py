"""Streams of shards: one order whatever the hosts and workers, through any resume and any fault."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback
from shards import words, write_shards

from clip_jax.data.augmentation import Augmentation
from clip_jax.data.options import RemoteOptions, SourceOptions
from clip_jax.data.pipeline import BatchIterator, training_batches
from clip_jax.data.stream_order import StreamOrder
from clip_jax.data.streaming import SHIFT, StreamingSource
from clip_jax.errors import UserError

SIZES = (5, 9, 3, 7, 8, 4, 6, 10)  # 52 samples
BATCH = 8


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    return write_shards(tmp_path / "shards", SIZES)


def stream(source: StreamingSource, **options: Any) -> BatchIterator:
    augmentation = Augmentation(crop_scale=(1, 1))
    settings = {"batch_size": BATCH, "seed": 5, "streams": 4} | options
    return training_batches(source, words, 8, "bicubic", augmentation, **settings)


def take(iterator: BatchIterator, count: int) -> list[np.ndarray]:
    """Which samples the batches have; the images must be theirs."""
    try:
        found = []
        for batch in itertools.islice(iterator, count):
            numbers = batch["tokens"][:, 1]
            np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], numbers)
            found.append(numbers)
        return found
    finally:
        iterator.close()


def test_hosts_and_workers_do_not_matter(shards: str) -> None:
    whole = take(stream(StreamingSource(shards)), 20)
    assert any(len(set(batch.tolist())) > 1 for batch in whole)
    for hosts in (2, 4):
        share = BATCH // hosts
        parts = [
            take(stream(StreamingSource(shards), rows=range(h * share, (h + 1) * share)), 20)
            for h in range(hosts)
        ]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_more_hosts_than_shards_is_said(shards: str, caplog: pytest.LogCaptureFixture) -> None:
    stream(StreamingSource(shards), rows=range(2)).close()
    assert "hosts" not in caplog.text
    stream(StreamingSource(shards), rows=range(1)).close()
    assert "8 hosts read 4 streams of 8 shards: several hosts copy the same shards" in caplog.text
    assert "raise config.data.streams" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_matter(shards: str, workers: int) -> None:
    whole = take(stream(StreamingSource(shards)), 12)
    np.testing.assert_array_equal(take(stream(StreamingSource(shards), workers=workers), 12), whole)


def test_each_stream_has_every_sample_of_its_shards_once_an_epoch(shards: str) -> None:
    batches = np.stack(take(stream(StreamingSource(shards), streams=1, batch_size=4), 26))
    epochs = batches.reshape(2, 52)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(52))
    assert (epochs[0] != epochs[1]).any()
    assert (np.diff(epochs[0]) != 1).mean() > 0.5  # shuffled


def test_a_resume_goes_on_with_the_very_next_sample(shards: str) -> None:
    whole = take(stream(StreamingSource(shards)), 30)
    for stop in (1, 4, 13, 22):
        first = stream(StreamingSource(shards))
        take(first, stop)
        state = json.loads(json.dumps(first.state()))
        assert set(state["cursor"]) == {"0", "1", "2", "3"}
        second = stream(StreamingSource(shards), start_batch=stop, cursor=state["cursor"])
        second.resume(state)
        np.testing.assert_array_equal(take(second, 30 - stop), whole[stop:])


@pytest.mark.parametrize("changed", [{"streams": 2}, {"streams": None}, {"window_shards": 3}])
def test_a_resume_with_another_partition_is_refused(shards: str, changed: dict[str, Any]) -> None:
    first = stream(StreamingSource(shards))
    take(first, 3)
    state = json.loads(json.dumps(first.state()))
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
    batches = take(stream(StreamingSource(shards), streams=1, window_shards=1, batch_size=32), 26)
    assert np.bincount(np.concatenate(batches)).tolist() == [16] * 52


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
            runs.append(np.concatenate(take(iterator, 11)))
            assert set(iterator.dropped) == {"shard_unreadable"}  # of epoch 1 too, read ahead
            assert server.requests["00004.tar"] >= 2
    np.testing.assert_array_equal(*runs)
    assert sorted(runs[0].tolist()) == sorted(set(range(52)) - set(missing))


def test_a_failing_shard_stops_the_run_where_it_is_told_to(shards: str) -> None:
    pytest.importorskip("aiohttp")
    with Loopback(Path(shards).parent) as server:
        server.faults = {"00004.tar": ["500…"]}
        iterator = stream(StreamingSource(*remote(server, "stop")), streams=1, batch_size=4)
        with pytest.raises(UserError, match=r"00004\.tar: cannot be read .*'stop'"):
            take(iterator, 13)
