"""Metrics against scikit-learn and their definitions, and contributions against derivatives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.calibration import (
    calibration_error,
    judge_predictions,
    reliability,
)
from clip_jax.evaluation.metrics.classification import (
    jaccard_index,
    macro_f1,
    mean_per_class,
    top_k_hits,
)
from clip_jax.evaluation.metrics.intervals import share_interval
from clip_jax.evaluation.metrics.multilabel import (
    average_precision,
    mean_average_precision,
    roc_auc,
)
from clip_jax.evaluation.zero_shot import METRIC, evaluate_zero_shot

Statistic = Callable[[np.ndarray], float]


def derivatives(statistic: Statistic, number: int) -> np.ndarray:
    """Derivative of a weighted statistic with respect to each sample's share of the weight."""
    weights, step = np.ones(number), 1e-5
    found = []
    for sample in range(number):
        sides = []
        for sign in (1, -1):
            changed = weights.copy()
            changed[sample] += sign * step
            sides.append(statistic(changed))
        found.append((sides[0] - sides[1]) / (2 * step))
    return number * np.array(found)


def check(contributions: np.ndarray, statistic: Statistic) -> None:
    """The mean is the statistic, and the deviations from it are its derivatives."""
    number = len(contributions)
    assert contributions.dtype == np.float64
    assert contributions.mean() == pytest.approx(statistic(np.ones(number)), abs=1e-12)
    deviations = contributions - contributions.mean()
    np.testing.assert_allclose(deviations, derivatives(statistic, number), atol=1e-6)
    assert deviations.std() > 0


# --- One label ----------------------------------------------------------------------------------


def scored(seed: int, number: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 (N, C) and labels, of which about a third of the classes do not occur."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.unique(rng.integers(0, classes, classes)), number)
    scores = rng.normal(size=(number, classes)) + 2 * np.eye(classes)[labels]
    return scores.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4, 6, 30])
def test_classification_is_scikit_learns(classes: int) -> None:
    scores, labels = scored(classes, 150, classes)
    found, samples = evaluate_zero_shot(
        scores, labels, np.eye(classes, dtype=np.float32), np.matmul
    )
    predicted, every = scores.argmax(1), np.arange(classes)
    binary = scores[:, 1] - scores[:, 0] if classes == 2 else scores
    wanted = {
        "accuracy_top1": sklearn.accuracy_score(labels, predicted),
        "mean_per_class_accuracy": sklearn.recall_score(
            labels, predicted, labels=np.unique(labels), average="macro"
        ),
        "macro_f1": sklearn.f1_score(labels, predicted, labels=np.unique(labels), average="macro"),
    }
    assert wanted["accuracy_top1"] == pytest.approx(
        sklearn.top_k_accuracy_score(labels, binary, k=1, labels=every)
    )
    if classes >= 5:
        top5 = sklearn.top_k_accuracy_score(labels, scores, k=5, labels=every)
        wanted |= {"accuracy_top5": top5, "mean_top1_top5": (wanted["accuracy_top1"] + top5) / 2}
    if classes == 2:
        wanted["roc_auc"] = sklearn.roc_auc_score(labels, binary)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
    means = {name: samples[f"{METRIC}{name}"].mean() for name in wanted}
    assert means == pytest.approx(wanted, abs=1e-12)
    assert ("accuracy_top5" in found) == (classes >= 5)
    assert ("roc_auc" in found) == (classes == 2)


def test_top_k_hits_with_ties() -> None:
    scores = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]] * 3, np.float32)
    labels = np.array([0, 2, 4])
    assert top_k_hits(scores, labels, 1).tolist() == [1.0, 0.0, 0.0]
    assert top_k_hits(scores, labels, 2).tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    assert top_k_hits(scores, labels, 4).tolist() == [1.0, 1.0, 0.0]


def test_contributions_of_macro_f1_are_derivatives() -> None:
    scores, labels = scored(0, 60, 6)
    predicted = scores.argmax(1)
    present = np.unique(labels)
    assert set(predicted) - set(present)  # a class that is only predicted

    def statistic(weights: np.ndarray) -> float:
        of_class = sklearn.f1_score(
            labels, predicted, labels=present, average=None, sample_weight=weights
        )
        return float(np.mean(of_class))

    check(macro_f1(predicted, labels), statistic)


def test_contributions_of_the_mean_per_class() -> None:
    scores, labels = scored(1, 90, 6)
    hits = top_k_hits(scores, labels, 1)
    contributions = mean_per_class(hits, labels)
    present = np.unique(labels)
    means = [hits[labels == c].mean() for c in present]
    assert contributions.mean() == pytest.approx(np.mean(means), abs=1e-12)
    # Their variance is that of a stratified sample, with each class's unbiased one.
    of_class = [hits[labels == c].var(ddof=1) / (labels == c).sum() for c in present]
    variance = np.sum(of_class) / len(present) ** 2
    assert contributions.var() / len(labels) == pytest.approx(variance)


def test_jaccard() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 12))
    targets = np.zeros((40, 12), bool)
    for row in targets:
        row[rng.permutation(10)[: rng.integers(1, 5)]] = True
    scores[::2, 10:] = -np.inf  # ten candidates, padded
    chosen = np.zeros_like(targets)
    for row, score, target in zip(chosen, scores, targets, strict=True):
        row[np.argsort(-score)[: target.sum()]] = True
    found = jaccard_index(scores, targets)
    assert found.mean() == pytest.approx(
        sklearn.jaccard_score(targets, chosen, average="samples"), abs=1e-12
    )
    assert jaccard_index([[3, 2, 1, 0]], [[1, 0, 1, 0]]).tolist() == [1 / 3]


# --- Any number of labels -----------------------------------------------------------------------


def ranked(seed: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.random(60) < 0.4
    return np.round(rng.normal(size=60) + targets, digits), targets


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_average_precision_and_auc_are_scikit_learns(digits: int) -> None:
    scores, targets = ranked(digits, digits)

    def weighted(metric: Callable[..., float]) -> Statistic:
        return lambda weights: float(metric(targets, scores, sample_weight=weights))

    check(average_precision(scores, targets), weighted(sklearn.average_precision_score))
    check(roc_auc(scores, targets), weighted(sklearn.roc_auc_score))


def precision_at_recall(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Any:
    """The curve of scikit-learn in order of recall, without its last point, which is not data."""
    curve = sklearn.precision_recall_curve(targets, scores, sample_weight=weights)
    return curve[0][-2::-1], curve[1][-2::-1]


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_average_precision_of_voc(digits: int) -> None:
    scores, targets = ranked(10 + digits, digits)

    def interpolated(weights: np.ndarray) -> float:
        precision, recall = precision_at_recall(scores, targets, weights)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float((np.diff(recall, prepend=0) * best).sum())

    def eleven_points(weights: np.ndarray) -> float:
        precision = precision_at_recall(scores, targets, weights)[0]
        # Recalls shift with the weights, but which samples make up a level of recall does not.
        at = precision_at_recall(scores, targets, np.ones(60))[1]
        return float(np.mean([precision[at >= t / 10 - 1e-9].max() for t in range(11)]))

    check(average_precision(scores, targets, "interpolated"), interpolated)
    check(average_precision(scores, targets, "11_points"), eleven_points)


def test_eleven_points_by_hand() -> None:
    # Ranks of the positives: 1, 3, 6. Precision from recall 0, 1/3, 2/3 on: 1, 2/3, 1/2.
    scores, targets = [9, 8, 7, 6, 5, 4, 3], [1, 0, 1, 0, 0, 1, 0]
    assert average_precision(scores, targets, "11_points").mean() == pytest.approx(
        (4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11
    )
    # At recall 3/10 the first three positives of ten are enough.
    targets = [1, 1, 1, 0] + [1] * 7
    found = average_precision(-np.arange(11), targets, "11_points").mean()
    assert found == pytest.approx((4 * 1 + 7 * 10 / 11) / 11)


def test_mean_average_precision_leaves_out_classes_that_do_not_occur() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((80, 6)) < 0.2
    targets[:, 4] = False
    scores = rng.normal(size=(80, 6)) + targets
    wanted = sklearn.average_precision_score(np.delete(targets, 4, 1), np.delete(scores, 4, 1))
    assert mean_average_precision(scores, targets).mean() == pytest.approx(wanted, abs=1e-12)


# --- Probabilities ------------------------------------------------------------------------------


def test_likelihood_and_brier_are_scikit_learns() -> None:
    for classes in (3, 7):
        scores, labels = scored(classes, 100, classes)
        logits = 3 * scores
        found = judge_predictions(logits, labels)
        exponential = np.exp(logits.astype(np.float64))
        probabilities = exponential / exponential.sum(1, keepdims=True)
        every = list(range(classes))
        loss = sklearn.log_loss(labels, probabilities, labels=every)
        assert found.nll.mean() == pytest.approx(loss, abs=1e-12)
        wanted = sklearn.brier_score_loss(labels, probabilities, labels=every, scale_by_half=True)
        assert found.brier.mean() == pytest.approx(wanted, abs=1e-12)
        np.testing.assert_allclose(found.confidence, probabilities.max(1))
        assert found.hits.mean() == sklearn.accuracy_score(labels, scores.argmax(1))
    binary = judge_predictions([[0.0, 1.0], [0.5, 0.0]], [1, 1])
    assert binary.brier.mean() == pytest.approx(
        sklearn.brier_score_loss([1, 1], 1 / (1 + np.exp([-1, 0.5])), pos_label=1)
    )
    # A certain mistake costs its logit, and not infinity.
    assert judge_predictions([[0.0, 800.0]], [0]).nll.tolist() == [800.0]
    assert judge_predictions([[0.0, 800.0]], [0]).brier.tolist() == [1.0]


@pytest.mark.parametrize(("equal_mass", "strategy"), [(False, "uniform"), (True, "quantile")])
def test_reliability_is_scikit_learns(equal_mass: bool, strategy: str) -> None:
    rng = np.random.default_rng(0)
    confidence = np.round(rng.beta(4, 2, 400), 3)
    hits = (rng.random(400) < confidence**1.5).astype(float)
    bins = reliability(confidence, hits, 10, equal_mass=equal_mass)
    accuracy, mean = calibration_curve(hits, confidence, n_bins=10, strategy=strategy)
    np.testing.assert_allclose(bins.accuracy, accuracy, atol=1e-12)
    np.testing.assert_allclose(bins.confidence, mean, atol=1e-12)
    assert bins.sizes.sum() == 400
    assert len(bins.sizes) == (10 if equal_mass else 9)  # the lowest tenth is empty
    error = calibration_error(confidence, hits, 10, equal_mass=equal_mass)
    wanted = (bins.sizes * np.abs(accuracy - mean)).sum() / 400
    assert error.mean() == pytest.approx(wanted, abs=1e-12)
    first = np.argsort(confidence)[: bins.sizes[0]]
    limits = bins.accuracy_low[0], bins.accuracy_high[0]
    assert limits == pytest.approx(share_interval(hits[first]))


def test_calibration_errors_by_hand() -> None:
    confidence = [0.1, 0.2, 0.6, 0.6, 0.6, 1.0]
    hits = [0, 1, 1, 0, 0, 1]
    # Bins (0, 0.5] and (0.5, 1]: |1 - 0.3| and |2 - 2.8|, over six.
    assert calibration_error(confidence, hits, 2).mean() == pytest.approx(1.5 / 6)
    # Edges at the terciles 0.4667 and 0.6: equal confidences stay together.
    wanted = (0.7 + 0.8 + 0) / 6
    assert calibration_error(confidence, hits, 3, equal_mass=True).mean() == pytest.approx(wanted)
    assert calibration_error([0.5] * 4, [1, 1, 0, 0]).mean() == 0


# --- A user's mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: macro_f1([0, -1], [0, 1]), "prediction -1: accepted is 0 or more"),
        (lambda: jaccard_index([[1, 2]], [[0, 0]]), r"targets\[0\]: has none"),
        (lambda: jaccard_index([[1, 2]], [[0, 2]]), "accepted are 0 and 1"),
        (lambda: average_precision([1, 2], [0, 0]), "no sample is positive"),
        (lambda: mean_average_precision([[1, 2]], [[0, 0]]), "no sample has a label"),
        (lambda: roc_auc([1, 2], [1, 1]), "all are equal"),
        (lambda: roc_auc([1, 2], [1]), r"\(1,\): accepted are 0 and 1 of \(2,\)"),
        (lambda: calibration_error([1.5], [1]), "accepted are probabilities"),
        (lambda: calibration_error([0.5], [1, 0]), "1 confidences and 2 hits"),
        (lambda: calibration_error([0.5], [1], 0), "bins=0"),
        (lambda: judge_predictions([[1, 2]], [5]), "label 5"),
    ],
)
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
