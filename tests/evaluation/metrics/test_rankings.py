"""Ranks and recalls of queries against sorting, selection, and the rows of retrieval."""

from itertools import permutations

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.intervals import share_interval
from clip_jax.evaluation.metrics.ranking import expected_ranks, hits_at_k, selection_hits
from clip_jax.evaluation.retrieval import (
    image_to_image_queries,
    retrieval_queries,
    retrieval_recalls,
)
from clip_jax.evaluation.retrieval_metrics import image_to_image_metrics, retrieval_metrics


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_hits_and_ranks_are_means_over_all_orders() -> None:
    # One item above the best positive; two negatives and two positives tie with it; one below.
    counts = np.array([[1, 2, 2]])
    orders = [[0, *middle, 0] for middle in permutations((1, 0, 1, 0))]
    ranks = np.array([order.index(1) + 1 for order in orders])
    assert expected_ranks(counts)[0] == pytest.approx(ranks.mean())
    for k in range(1, 7):
        assert hits_at_k(counts, k)[0] == pytest.approx((ranks <= k).mean())


def sorted_ranks(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores.astype(np.float64), axis=1)
    return np.take_along_axis(positive, order, 1).argmax(1) + 1


def test_retrieval_rows_hold_ranks_and_limits_by_image() -> None:
    rng = np.random.default_rng(0)
    image_of_text = rng.permutation(np.repeat(np.arange(150), rng.integers(1, 9, 150)))
    images = unit(rng, 150, 8)
    texts = images[image_of_text] + 0.25 * rng.normal(size=(len(image_of_text), 8))
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    mask = rng.random(len(image_of_text)) < 0.7
    row, samples = retrieval_metrics(images, texts, image_of_text, (1, 5), text_query_mask=mask)
    recalls = retrieval_recalls(images, texts, image_of_text, (1, 5), text_query_mask=mask)
    assert recalls.items() <= row.items()

    positive = np.arange(150)[:, None] == image_of_text
    to_image = sorted_ranks(texts @ images.T, positive.T)[mask]
    to_text = sorted_ranks(images @ texts.T, positive)
    for direction, ranks in (("text_to_image", to_image), ("image_to_text", to_text)):
        assert row[f"{direction}_mean_rank"] == pytest.approx(ranks.mean())
        assert row[f"{direction}_median_rank"] == np.median(ranks)
        np.testing.assert_array_equal(samples[f"{direction}_ranks"], ranks)
        assert row[f"{direction}_recall_at_5"] == pytest.approx((ranks <= 5).mean())
    limits = row["text_to_image_recall_at_1_low"], row["text_to_image_recall_at_1_high"]
    assert limits == pytest.approx(share_interval(to_image == 1, image_of_text[mask]))
    limits = row["image_to_text_recall_at_1_low"], row["image_to_text_recall_at_1_high"]
    assert limits == pytest.approx(share_interval(to_text == 1))
    both = (np.mean(to_text == 1) + np.mean(to_image == 1)) / 2
    assert row["mean_recall_at_1"] == pytest.approx(both)
    assert row["mean_recall_at_1_low"] < both < row["mean_recall_at_1_high"]
    for name in row:
        if not name.startswith("num_") and not name.endswith(("_low", "_high")):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]

    queries = retrieval_queries(images, texts, image_of_text, text_query_mask=mask)
    assert queries["text_to_image"].images.tolist() == image_of_text[mask].tolist()
    assert hits_at_k(queries["text_to_image"].counts, 1).tolist() == (to_image == 1).tolist()


def test_images_find_others_of_their_class() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 40, 120)
    labels[:3] = 100, 101, 102  # classes of one image are no queries, but in the gallery
    images = unit(rng, 40, 6)[labels % 40] + 0.6 * unit(rng, 120, 6)
    images = (images * rng.uniform(0.5, 2, (120, 1))).astype(np.float32)
    scores = images @ images.T
    np.fill_diagonal(scores, -np.inf)
    positive = (labels[:, None] == labels) & ~np.eye(120, dtype=bool)
    asked = positive.any(1)
    ranks = sorted_ranks(scores, positive)[asked]
    row, _ = image_to_image_metrics(images, labels, (1, 5))
    assert row["image_to_image_recall_at_1"] == pytest.approx((ranks == 1).mean())
    assert row["image_to_image_recall_at_5"] == pytest.approx((ranks <= 5).mean())
    assert row["image_to_image_mean_rank"] == pytest.approx(ranks.mean())
    assert (row["num_images"], row["num_image_queries"]) == (120, asked.sum())
    assert 0.1 < row["image_to_image_recall_at_1"] < 0.9
    assert image_to_image_queries(images, labels).images.tolist() == np.flatnonzero(asked).tolist()


def test_equal_images_find_each_other_by_chance() -> None:
    labels = np.arange(90) % 30
    row, _ = image_to_image_metrics(np.ones((90, 4)) / 2, labels, (1,))
    assert row["image_to_image_recall_at_1"] == pytest.approx(2 / 89)
    with pytest.raises(UserError, match="no two images have the same one"):
        image_to_image_metrics(np.eye(3), [0, 1, 2])


def test_selection_by_hand() -> None:
    # Rows are images, columns texts: all right; texts find, images do not; nothing is found.
    right = [[2, 1], [0, 3]]
    half = [[2, 3], [0, 4]]
    wrong = [[0, 1], [1, 0]]
    found = selection_hits(np.array([right, half, wrong]))
    assert {name: hits.tolist() for name, hits in found.items()} == {
        "text_accuracy": [1, 0, 0],
        "image_accuracy": [1, 1, 0],
        "accuracy": [1, 0, 0],
    }
    # Equal scores give chance: one of two texts; of two texts and two images, all at once.
    assert selection_hits(np.ones((1, 1, 2)))["accuracy"] == [0.5]
    assert selection_hits(np.ones((1, 2, 2)))["accuracy"] == [1 / 16]
    with pytest.raises(UserError, match=r"\(N, I, T\)"):
        selection_hits(np.ones((2, 2)))
