"""The choice of a probe's penalty: OpenAI's search order, against all penalties."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from clip_jax.errors import UserError
from clip_jax.evaluation.probe.logistic import fit_logistic_regression
from clip_jax.evaluation.probe.sweep import LAMBDAS, Examples, fit_probe, sweep_penalties

CLASSES, WIDTH = 5, 30


def clusters(seed: int, train: int = 150, validation: int = 100) -> tuple[Examples, Examples]:
    """Clusters on scales of their own, some labels of which are wrong: training, validation."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(CLASSES, WIDTH)) / draw.uniform(1, 3)
    scales, wrong = draw.lognormal(size=WIDTH), draw.uniform(0, 0.3)

    def rows(count: int) -> Examples:
        labels = np.arange(count) % CLASSES
        features = (centres[labels] + draw.normal(size=(count, WIDTH))) * scales
        labels = np.where(draw.random(count) < wrong, draw.integers(0, CLASSES, count), labels)
        return Examples(features.astype(np.float32), labels)

    return rows(train), rows(validation)


@pytest.mark.parametrize("seed", range(10))
def test_search_finds_the_penalty_of_the_whole_sweep(seed: int) -> None:
    train, validation = clusters(seed)
    found = sweep_penalties(train, validation)
    whole = sweep_penalties(train, validation, order="all")
    assert found.best == whole.best
    np.testing.assert_array_equal(whole.lambdas_K, LAMBDAS)
    assert 7 < len(found.lambdas_K) <= 15  # seven, then at most two in each of four halvings
    assert np.isin(found.lambdas_K, LAMBDAS).all()
    of_found = whole.losses_K[np.isin(LAMBDAS, found.lambdas_K)]
    np.testing.assert_allclose(found.losses_K, of_found, rtol=1e-3)


def test_scores_are_those_of_each_fit_on_the_validation_rows() -> None:
    train, (features, labels) = clusters(1)
    sweep = sweep_penalties(train, Examples(features, labels))
    weights, bias = fit_logistic_regression(*train, sweep.lambdas_K / len(train[1]))
    for number, (each, of_class) in enumerate(zip(weights, bias, strict=True)):
        logits = features @ each + of_class

        def refined(log_scale: float, logits: np.ndarray = logits) -> float:
            log_chances = log_softmax(np.exp(log_scale) * logits, axis=1)
            return -log_chances[np.arange(len(labels)), labels].mean()

        lowest = minimize_scalar(refined, bounds=(-9, 9), options={"xatol": 1e-6}).fun
        assert sweep.losses_K[number] == pytest.approx(lowest, rel=1e-3)
        accuracy = (logits.argmax(1) == labels).mean()
        assert sweep.accuracy_K[number] == pytest.approx(accuracy, abs=0.011)  # a row near a tie


def test_final_fit_is_on_all_rows_at_the_same_lambda() -> None:
    train, validation = clusters(2)
    probe = fit_probe(train, validation)
    features, labels = (np.concatenate(parts) for parts in zip(train, validation, strict=True))
    weights, bias = fit_logistic_regression(features, labels, [probe.sweep.best / len(labels)])
    np.testing.assert_allclose(probe.weights_DC, weights[0])
    np.testing.assert_allclose(probe.logits(features), features @ weights[0] + bias[0])


def test_bad_validation_rows_are_one_line() -> None:
    train, (features, labels) = clusters(3)
    with pytest.raises(UserError, match=r"validation features: are 29 wide; accepted is 30"):
        fit_probe(train, Examples(features[:, 1:], labels))
    with pytest.raises(UserError, match=r"validation labels: 5 is among them"):
        fit_probe(train, Examples(features, labels + 1))
    with pytest.raises(UserError, match=r"validation features: row 0 is not finite"):
        fit_probe(train, Examples(features * np.nan, labels))
