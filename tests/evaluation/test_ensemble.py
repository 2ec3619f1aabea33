"""Ensembles: pooled probabilities by their formulas, and weights at the optimum of a grid."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.ensemble import (
    METHODS,
    Method,
    Mixture,
    fit_mixture,
    mixed_log_probabilities,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@pytest.fixture
def cosines() -> tuple[list[np.ndarray], np.ndarray]:
    """Two models that know different halves of the classes, and one that knows nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 400)
    known = np.eye(6)[labels] * 0.15
    left, right = known.copy(), known.copy()
    left[labels >= 3], right[labels < 3] = 0, 0
    return [part + rng.normal(0, 0.1, part.shape) for part in (left, right, 0 * known)], labels


def test_formulas(cosines) -> None:
    models, _ = cosines
    weights, scales = np.array([0.5, 0.3, 0.2]), np.array([10.0, 20.0, 30.0])
    mixture = Mixture(weights, scales)
    expected = {
        "similarities": softmax(sum(w * c for w, c in zip(weights, models, strict=True)) * 17.0),
        "logits": softmax(sum(w * s * c for w, s, c in zip(weights, scales, models, strict=True))),
        "probabilities": sum(
            w * softmax(s * c) for w, s, c in zip(weights, scales, models, strict=True)
        ),
    }
    for method in METHODS:
        found = np.exp(mixed_log_probabilities(models, mixture, method))
        np.testing.assert_allclose(found, expected[method], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_fitted_weights_are_the_best(cosines, method: Method) -> None:
    models, labels = cosines

    def loss(mixture: Mixture) -> float:
        logs = mixed_log_probabilities(models, mixture, method)
        return -float(logs[np.arange(len(labels)), labels].mean())

    fitted = fit_mixture(models, labels, [10.0, 20.0, 30.0], method)
    assert fitted.weights.min() >= 0
    assert fitted.weights.sum() == pytest.approx(1)
    assert fitted.weights[2] < 0.1  # of the model that knows nothing
    rng = np.random.default_rng(1)
    best = loss(fitted)
    assert best < loss(Mixture(np.ones(3) / 3, np.array([10.0, 20.0, 30.0])))
    for _ in range(300):
        moved = Mixture(
            rng.dirichlet(1e3 * fitted.weights + 1e-3),
            fitted.scales * np.exp(rng.normal(0, 0.05, 3 if method == "probabilities" else 1)),
        )
        assert loss(moved) > best - 1e-6


def test_models_of_different_classes_are_refused() -> None:
    with pytest.raises(UserError, match="shapes"):
        fit_mixture([np.zeros((2, 3)), np.zeros((2, 4))], np.zeros(2, int), [1, 1], "logits")
