"""Few-shot probe: which rows each fit is on, and that it is at scikit-learn's optimum."""

import numpy as np
import pytest
from scipy.special import softmax

from clip_jax.evaluation.probe.examples import ranks_in_class
from clip_jax.evaluation.probe.few_shot import PENALTIES, fit_few_shot
from clip_jax.evaluation.probe.sweep import Examples

SEEDS = 2


def examples(seed: int, count: int) -> Examples:
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(count) % 3)
    features = np.eye(3, 6)[labels] + 0.4 * draw.normal(size=(count, 6))
    return Examples(features.astype(np.float32), labels)


def test_each_fit_is_of_its_shots_alone() -> None:
    """The reference fits scikit-learn on the rows of a seed's shots, at the λ that was chosen."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    train = examples(0, 30)
    found = fit_few_shot(train, examples(1, 12), SEEDS)
    assert found.shots_T == (1, 2, 4, 8)  # no class has 16
    for seed in range(SEEDS):
        ranks = ranks_in_class(train.labels, seed)
        for number, shots in enumerate(found.shots_T):
            features, labels = train.part(ranks < shots)
            assert np.bincount(labels).tolist() == [shots] * 3
            lam = found.lambdas_ST[seed, number]
            assert lam in PENALTIES
            model = linear_model.LogisticRegression(C=1 / lam, tol=1e-10, max_iter=10_000)
            expected = model.fit(features, labels).predict_proba(train.features)
            weights, bias = found.weights_STDC[seed, number], found.bias_STC[seed, number]
            chances = softmax(train.features @ weights + bias, axis=1)
            np.testing.assert_allclose(chances, expected, atol=0.02)


def test_ranks_are_a_random_order_within_each_class() -> None:
    labels = np.array([2, 0, 2, 1, 2, 0])
    seen = set()
    for seed in range(20):
        ranks = ranks_in_class(labels, seed)
        for number, size in ((0, 2), (1, 1), (2, 3)):
            assert sorted(ranks[labels == number]) == list(range(size))
        seen.add(tuple(ranks[labels == 2]))
    assert len(seen) == 6
