"""Logistic regression, against scikit-learn at its optimum."""

import jax
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from clip_jax.errors import UserError
from clip_jax.evaluation import fit_logistic_regression

L2 = [1e-5, 1.0, 1e-3]  # in no order


def clusters(classes: int, width: int = 12, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters, float32 (N, D) and labels (N,); the classes' sizes differ."""
    draw = np.random.default_rng(classes)
    labels = np.minimum(draw.integers(0, 2 * classes, count), classes - 1)
    labels[:classes] = np.arange(classes)
    centres = draw.normal(size=(classes, width))
    return (centres[labels] + 1.5 * draw.normal(size=(count, width))).astype(np.float32), labels


def ill_conditioned(features: np.ndarray) -> np.ndarray:
    """Scales over six decades, a mean far away, a copied and a constant column."""
    scaled = features * np.logspace(-3, 3, features.shape[1])
    scaled += 10 * scaled.std(0)
    return np.concatenate([scaled, scaled[:, :1], np.full((len(scaled), 1), 7.0)], axis=1)


def objective(features, labels, weights, bias, l2) -> float:
    """Mean cross-entropy + l2/2·‖W‖², in float64."""
    logits = features.astype(np.float64) @ weights + bias
    loss = logsumexp(logits, 1) - logits[np.arange(len(labels)), labels]
    return float(loss.mean() + l2 / 2 * np.square(weights).sum())


def of_sklearn(features, labels, l2) -> tuple[np.ndarray, np.ndarray]:
    """Weights (D, C) and bias (C,) of scikit-learn's optimum."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    classes = labels.max() + 1
    c = (2 if classes == 2 else 1) / (l2 * len(labels))
    model = linear_model.LogisticRegression(C=c, tol=1e-10, max_iter=100_000)
    model.fit(features.astype(np.float64), labels)
    if classes > 2:
        return model.coef_.T, model.intercept_
    # Of two classes it has one vector of weights, twice as long as each of ours.
    return np.outer(model.coef_[0], [-0.5, 0.5]), model.intercept_[0] * np.array([-0.5, 0.5])


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_optimum_is_that_of_scikit_learn(classes: int) -> None:
    features, labels = clusters(classes)
    weights, bias = fit_logistic_regression(features, labels, L2)
    assert weights.shape == (3, 12, classes)
    assert weights.dtype == bias.dtype == np.float64
    np.testing.assert_allclose(bias.mean(1), 0, atol=1e-12)
    for number, l2 in enumerate(L2):
        expected = of_sklearn(features, labels, l2)
        loss = objective(features, labels, weights[number], bias[number], l2)
        assert loss == pytest.approx(objective(features, labels, *expected, l2), rel=1e-5)
        ours = (features @ weights[number] + bias[number]).argmax(1)
        assert (ours == (features @ expected[0] + expected[1]).argmax(1)).mean() >= 0.999


def test_ill_conditioned_features_reach_the_optimum() -> None:
    """The gradient there is 0, by its formula; scikit-learn does not converge."""
    features, labels = clusters(4)
    features = ill_conditioned(features)
    for l2 in (1e-6, 1e-2):
        weights, bias = (each[0] for each in fit_logistic_regression(features, labels, [l2]))
        logits = features @ weights + bias
        residuals = (softmax(logits, 1) - np.eye(4)[labels]) / len(labels)
        gradient = features.T @ residuals + l2 * weights
        lengths = np.sqrt(np.square(features).mean(0))[:, None]
        assert np.abs(residuals.sum(0)).max() < 1e-5
        assert np.abs(gradient / lengths).max() < 1e-5


def check_same_fits(features, labels, fits, others) -> None:
    """Weak penalties leave weights that hardly matter, so losses and probabilities are compared."""
    for l2, *fit, weights, bias in zip(L2, *fits, *others, strict=True):
        loss = objective(features, labels, *fit, l2)
        assert objective(features, labels, weights, bias, l2) == pytest.approx(loss, rel=1e-6)
        logits, expected = features @ weights + bias, features @ fit[0] + fit[1]
        np.testing.assert_allclose(softmax(logits, 1), softmax(expected, 1), atol=1e-3)


def test_one_device_fits_what_eight_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(3, count=301)
    assert jax.local_device_count() == 8
    eight = fit_logistic_regression(features, labels, L2)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    one = fit_logistic_regression(features, labels, L2)
    check_same_fits(features, labels, eight, one)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(3)
    whole = fit_logistic_regression(features, labels, L2)
    monkeypatch.setattr("clip_jax.evaluation.probe.logistic.LOGITS_PER_BLOCK", 40)
    blocks = fit_logistic_regression(features, labels, L2)
    check_same_fits(features, labels, whole, blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros(4)}, "features: float64 of shape (4,)"),
        ({"features": [["a"]] * 4}, "features: <U1"),
        ({"features": np.array([[0.0], [np.nan], [1], [2]])}, "row 1 is not finite"),
        ({"features": np.full((4, 3), 0.1)}, "features: are the same in every row"),
        ({"labels": ["cat", "dog", "cat", "dog"]}, "labels: are text, such as 'cat'"),
        ({"labels": [0.0, 1.0, 0.0, 1.0]}, "labels: float64"),
        ({"labels": [0, 1]}, "accepted are integers (4,)"),
        ({"labels": [0, -1, 0, 1]}, "-1 is among them"),
        ({"labels": [0, 0, 0, 0]}, "at least two classes"),
        ({"labels": [0, 2, 0, 2]}, "class 1 of 3 has no row"),
        ({"l2": 1.0}, "must be a list of numbers"),
        ({"l2": [1.0, 0.0]}, "greater than 0"),
        ({"l2": [np.nan]}, "greater than 0"),
        ({"l2": ["x"]}, "greater than 0"),
    ],
)
def test_bad_input_is_one_line(changes: dict, message: str) -> None:
    good = {"features": np.eye(4), "labels": [0, 1, 0, 1], "l2": [1.0]}
    with pytest.raises(UserError) as caught:
        fit_logistic_regression(**good | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
