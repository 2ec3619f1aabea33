"""One order of samples, whatever reads them: every sample once an epoch, through any kill."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import REPOSITORY, SUPPORT
from shards import batches, take, write_shards
from stream_reader import written

from clip_jax.data.records import Source
from clip_jax.data.sources import open_source
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.data.stream.order import ShuffledOrder, check_weights
from clip_jax.data.stream.pipeline import shuffled_order
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.errors import UserError
from clip_jax.files.telemetry import telemetry
from clip_jax.training.run.data import DataWatch

SIZES = (7, 1, 0, 22, 5, 13)  # 48 samples, unevenly
BATCHES = 300  # of the readers that are killed
READERS = (open_source, StreamingSource)


@pytest.fixture
def pattern(tmp_path: Path, cache: Path) -> str:
    return write_shards(tmp_path / "shards", SIZES)


def read(source: Source, count: int, **options: Any) -> np.ndarray:
    return take(batches(source, **{"batch_size": 12, "seed": 1} | options), count)


@pytest.mark.parametrize("reader", READERS)
def test_every_sample_once_an_epoch_shuffled(pattern: str, reader: Any) -> None:
    streams = {"streams": 1} if reader is StreamingSource else {}  # several end at other times
    epochs = read(reader(pattern), 8, **streams).reshape(2, 48)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(48))
        assert (np.diff(epoch) != 1).mean() > 0.5
    assert (epochs[0] != epochs[1]).any()
    assert (read(reader(pattern), 4, seed=2, **streams).ravel() != epochs[0]).mean() > 0.8


@pytest.mark.parametrize("reader", READERS)
def test_hosts_share_the_batches_of_one(pattern: str, reader: Any) -> None:
    """More hosts than some archives have samples; no host needs archives of its own."""
    whole = read(reader(pattern), 20)
    for share in (6, 3):
        rows = [range(first, first + share) for first in range(0, 12, share)]
        parts = [read(reader(pattern), 20, rows=mine) for mine in rows]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("reader", READERS)
def test_a_resume_goes_on_with_the_very_next_sample(pattern: str, reader: Any) -> None:
    settings = {"batch_size": 12, "seed": 1}  # as in `read`
    whole = read(reader(pattern), 30)
    for stop in (1, 4, 13, 22):
        first = batches(reader(pattern), **settings)
        take(first, stop)
        state = json.loads(json.dumps(first.state()))
        now = {"start_batch": stop, "cursor": state["cursor"]}
        second = batches(reader(pattern), **settings, **now)
        second.resume(state)
        np.testing.assert_array_equal(take(second, 30 - stop), whole[stop:])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("which", [0, 3])  # a stream looks at the first when it is opened
def test_a_truncated_archive_is_counted_and_the_run_goes_on(
    pattern: str, reader: Any, which: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(pattern).parent / f"{which:05d}.tar"
    size = (SIZES[which] - 1) * 3072 + 520  # in the image of the last sample
    path.write_bytes(path.read_bytes()[:size])
    lost = sum(SIZES[: which + 1]) - 1
    telemetry.take()  # of other tests
    streams = 1 if reader is StreamingSource else None
    settings = {"batch_size": 1, "seed": 0, "max_bad_fraction": 0.0, "streams": streams}
    iterator = batches(reader(pattern), **settings)
    assert sorted(take(iterator, 47).ravel()) == [n for n in range(48) if n != lost]
    row = DataWatch(iterator, workers=0).row(1.0)
    assert row["dropped_shard_damaged"] == row["dropped_image_missing"] == 1
    assert f"{path} is truncated at byte {size}" in caplog.text


def test_a_mixture_has_its_shares(tmp_path: Path, pattern: str) -> None:
    few = open_source(write_shards(tmp_path / "few", (4,)))
    mixture = MixtureSource([open_source(pattern), few], ["many", "few"], [3.0, 1.0])
    assert mixture.key(48) == "few:000000"
    indices = np.fromiter(shuffled_order(mixture, 1).numbers(range(8192)), int)
    assert (indices >= 48).sum() == 2048  # a quarter of 8,192
    counts = np.bincount(indices, minlength=52)
    assert np.ptp(counts[:48]) <= 1
    assert np.ptp(counts[48:]) <= 1
    with pytest.raises(UserError, match=r"mixture\[1\]\.weight=-1"):
        MixtureSource([few, few], ["a", "b"], [1, -1])
    with pytest.raises(UserError, match="sum to 0"):
        MixtureSource([few, few], ["a", "b"], [0, 0])


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((1e6, 1, 1), (8190, 1, 1)),
        ((1, 0, 1e9), (1, 0, 8191)),
        ((2, 1, 1e-9, 1e-9), (5460, 2730, 1, 1)),
        ((3, 1), (6144, 2048)),
        ((1, 1, 1), (2731, 2731, 2730)),
        ((1e-3,) * 8191 + (1e6,), (1,) * 8192),
    ],
)
def test_shares_of_extreme_weights(weights: Any, shares: Any) -> None:
    order = ShuffledOrder([5] * len(weights), 1, weights)
    drawn = np.fromiter(order.numbers(range(8192)), int) // 5
    assert np.bincount(drawn, minlength=len(weights)).tolist() == list(shares)


def test_more_sources_than_shares_are_refused() -> None:
    with pytest.raises(UserError, match="8,193 sources; accepted are at most 8,192"):
        check_weights([1.0] * 8193)
    check_weights([1.0] * 8192 + [0.0])


def read_elsewhere(folder: Path, pattern: str, streaming: bool, kills: int) -> list[dict[str, Any]]:
    """What readers of the first batches wrote that were killed so often."""
    folder.mkdir()
    command = [sys.executable, str(SUPPORT / "stream_reader.py"), str(folder), pattern]
    arguments = [str(BATCHES), str(streaming), str(kills)]
    result = subprocess.run(
        [*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    return written(folder)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_killed_at_random_and_resumed(tmp_path: Path, pattern: str, streaming: bool) -> None:
    """The identical stream to the last pixel, from 20 random positions, other ones in every run of
    the test; with another number of workers after many of the kills."""
    rows = read_elsewhere(tmp_path / "killed", pattern, streaming, kills=10)
    whole = read_elsewhere(tmp_path / "whole", pattern, streaming, kills=0)
    assert [row["batch"] for row in whole] == list(range(BATCHES))
    digests = {row["batch"]: row["digest"] for row in whole}
    assert {row["batch"] for row in rows} == set(range(BATCHES))
    # A batch that was read but not yet vouched for is read again, and is the same again.
    assert all(digests[row["batch"]] == row["digest"] for row in rows)
    assert len({row["workers"] for row in rows}) > 2
