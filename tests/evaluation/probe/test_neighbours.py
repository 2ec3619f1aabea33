"""k-NN by blocks on the devices, against scikit-learn's."""

import numpy as np
import pytest

from clip_jax.evaluation.probe import neighbours
from clip_jax.evaluation.probe.neighbours import NEIGHBOURS, TEMPERATURE, NearestNeighbours
from clip_jax.evaluation.probe.sweep import Examples


def unit_rows(seed: int, count: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 9)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [7, 64, 1 << 14])
def test_votes_are_those_of_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sklearn = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr(neighbours, "GALLERY_BLOCK", block)
    train, queries = Examples(unit_rows(0, 100), np.arange(100) % 4), unit_rows(1, 33)
    logits = NearestNeighbours(train, 4).logits(queries)
    theirs = sklearn.KNeighborsClassifier(
        NEIGHBOURS,
        metric="cosine",
        weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
    ).fit(*train)
    votes = np.exp(logits) - np.exp(-1 / TEMPERATURE)
    shares = votes / votes.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, theirs.predict_proba(queries), rtol=1e-4, atol=1e-6)


def test_fewer_training_images_than_neighbours_all_vote() -> None:
    train = Examples(np.eye(3, dtype=np.float32), np.array([0, 1, 1]))
    logits = NearestNeighbours(train, 3).logits(np.eye(3, dtype=np.float32)[:1])
    alone, one = np.exp(-1 / TEMPERATURE), np.exp(1 / TEMPERATURE)
    np.testing.assert_allclose(np.exp(logits), [[alone + one, alone + 2, alone]])


def test_rows_that_fill_a_block_are_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their cosine would be 0, which is more than that of all others."""
    monkeypatch.setattr(neighbours, "GALLERY_BLOCK", 20)
    train = Examples(-np.ones((25, 1), np.float32), np.arange(25) % 2)
    cosines, rows = NearestNeighbours(train, 2).nearest(np.ones((3, 1), np.float32))
    np.testing.assert_array_equal(cosines, -1)
    assert rows.max() < 25
