"""Retrieval: contributions (Q,) of queries, from how many items rank above the best positive.

Ties are broken uniformly at random, in expectation; so constant embeddings score exactly chance,
and the order of the data never matters.
"""

from typing import Any

import numpy as np

from clip_jax.evaluation.metrics.checks import as_scores
from clip_jax.evaluation.metrics.classification import top_k_hits


def hits_at_k(counts: np.ndarray, k: int) -> np.ndarray:
    """Returns float64 (Q,): the probability that a random order puts a positive in the top k.

    `counts` int (Q, 3): items above the best positive, negatives and positives that tie with it.
    """
    above, negatives, positives = counts.T.astype(np.float64)
    # The probability that none of the first j tied items is a positive is a product of
    # hypergeometric factors.
    miss = np.ones(len(counts))
    for j in range(k):
        left = np.maximum(negatives - j, 0.0)
        miss = np.where(above + j < k, miss * left / (left + positives), miss)
    return 1.0 - miss


def expected_ranks(counts: np.ndarray) -> np.ndarray:
    """Returns float64 (Q,): the expected rank of the first positive, from 1, in a random order.

    `counts` are those of `hits_at_k`.
    """
    above, negatives, positives = counts.T.astype(np.float64)
    return 1 + above + negatives / (positives + 1)


def selection_hits(scores: Any) -> dict[str, np.ndarray]:
    """Returns the hits float64 (N,) of choosing among the texts and images of one instance.

    `text_accuracy`: every image finds its text; `image_accuracy`: every text finds its image;
    `accuracy`: both. The three of Winoground (Thrush et al. 2022) and SugarCrepe.

    Args:
      scores: float (N, I, T), similarities of I images with T texts; image i belongs to text i, and
        what is left over is a distractor.
    """
    scores = as_scores(scores, "NIT").astype(np.float64)
    own = range(min(scores.shape[1:]))
    label = [np.full(len(scores), i) for i in own]
    text = np.prod([top_k_hits(scores[:, i, :], label[i], 1) for i in own], axis=0)
    image = np.prod([top_k_hits(scores[:, :, i], label[i], 1) for i in own], axis=0)
    return {"text_accuracy": text, "image_accuracy": image, "accuracy": text * image}
