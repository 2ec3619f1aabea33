"""One order of samples, whatever reads them: every sample once an epoch, through any kill."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import REPOSITORY, SUPPORT
from shards import words, write_shards
from stream_reader import written

from clip_jax.data.records import Source
from clip_jax.data.sources import open_source
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.data.stream.order import ShuffledOrder, check_weights
from clip_jax.data.stream.pipeline import shuffled_order, training_batches
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation

SIZES = (7, 1, 0, 22, 5, 13)  # 48 samples, unevenly
BATCH = 12
BATCHES = 300  # of the readers that are killed


@pytest.fixture
def pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    return write_shards(tmp_path / "shards", SIZES)


def read(source: Source, count: int, **options: Any) -> np.ndarray:
    """Samples of the first batches, (count, rows)."""
    augmentation = Augmentation(crop_scale=(1, 1))
    settings = {"batch_size": BATCH, "seed": 1} | options
    iterator = training_batches(source, words, 8, "bicubic", augmentation, **settings)
    try:
        batches = list(itertools.islice(iterator, count))
    finally:
        iterator.close()
    numbers = np.stack([batch["tokens"][:, 1] for batch in batches])
    np.testing.assert_array_equal([b["images"][:, 0, 0, 0] for b in batches], numbers)
    return numbers


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_have_disjoint_shares_of_every_epoch(pattern: str, hosts: int) -> None:
    """More hosts than some archives have samples; no host needs archives of its own."""
    share = BATCH // hosts
    parts = [
        read(open_source(pattern), 8, rows=range(h * share, (h + 1) * share)) for h in range(hosts)
    ]
    batches = np.concatenate(parts, axis=1)
    for epoch in batches.reshape(2, 48):
        assert sorted(epoch.tolist()) == list(range(48))
    np.testing.assert_array_equal(batches, read(open_source(pattern), 8))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_do_not_matter(pattern: str, workers: int) -> None:
    source = open_source(pattern)
    np.testing.assert_array_equal(read(source, 8, workers=workers), read(source, 8))


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
