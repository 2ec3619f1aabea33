"""95 % intervals hold the truth in 93.5 to 96.5 % of simulated data sets; true null hypotheses are
rejected in 4 to 6 %.

Each case draws its data sets from a new truth each time, so that no single lattice of 0/1 hits
decides. An exact interval leaves those limits once in thirty times 1,000 data sets, an exact test
once in seven; so the seeds are fixed. docs/measured.md has the rates of 20,000.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from clip_jax.evaluation.metrics.classification import macro_f1, mean_per_class
from clip_jax.evaluation.metrics.groups import worst_group
from clip_jax.evaluation.metrics.intervals import (
    bootstrap_interval,
    mean_per_class_interval,
    median_interval,
    share_interval,
)
from clip_jax.evaluation.metrics.multilabel import average_precision, roc_auc
from clip_jax.evaluation.metrics.paired import mcnemar_test, paired_difference

pytestmark = pytest.mark.slow

DATA_SETS = 1000
RESAMPLES = 1000  # of each data set; their error averages out over data sets
Rng = np.random.Generator
Interval = tuple[float, float]
Draw = Callable[[Rng], tuple[Interval, float]]  # a data set's interval, and the truth


def accuracy(rng: Rng, number: int, low: float, high: float) -> tuple[np.ndarray, float]:
    truth = rng.uniform(low, high)
    return (rng.random(number) < truth).astype(float), truth


def recall(rng: Rng, images: int, captions: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """Hits of captions, whose images differ in difficulty; the image of each; the true recall."""
    truth = rng.uniform(0.2, 0.9)
    image = np.repeat(np.arange(images), captions)
    difficulty = rng.beta(2 * truth, 2 * (1 - truth), images)
    return (rng.random(len(image)) < difficulty[image]).astype(float), image, truth


def per_class(rng: Rng, sizes: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Hits, labels and the true mean per class; accuracies of classes are of a beta."""
    mean = rng.uniform(0.4, 0.9)
    accuracies = rng.beta(spread * mean, spread * (1 - mean), len(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return (rng.random(len(labels)) < accuracies[labels]).astype(float), labels, accuracies.mean()


def accuracy_by(interval: Callable[..., Interval], *of: Any) -> Draw:
    def draw(rng: Rng) -> tuple[Interval, float]:
        hits, truth = accuracy(rng, *of)
        return interval(rng, hits), truth

    return draw


def recall_by(
    interval: Callable[..., Interval], images: int, captions: Callable[[Rng, int], Any]
) -> Draw:
    def draw(rng: Rng) -> tuple[Interval, float]:
        hits, image, truth = recall(rng, images, captions(rng, images))
        return interval(rng, hits, image), truth

    return draw


def per_class_of(sizes: Callable[[Rng], np.ndarray], spread: float) -> Draw:
    def draw(rng: Rng) -> tuple[Interval, float]:
        hits, labels, truth = per_class(rng, sizes(rng), spread)
        return mean_per_class_interval(hits, labels), truth

    return draw


def nll(rng: Rng) -> tuple[Interval, float]:
    return bootstrap(rng, rng.exponential(size=100)), 1.0


def median_rank(rng: Rng) -> tuple[Interval, float]:
    images, scale = 200, rng.uniform(3, 50)
    image = np.repeat(np.arange(images), 5)
    # Half of a rank's logarithm's variance is the image's.
    deviation = (rng.normal(size=images)[image] + rng.normal(size=5 * images)) / 2**0.5
    return median_interval(scale * np.exp(deviation), image), scale


def auc(rng: Rng) -> tuple[Interval, float]:
    shift = rng.uniform(0, 2)
    targets = rng.random(300) < 0.3
    interval = share_interval(roc_auc(rng.normal(size=300) + shift * targets, targets))
    return interval, float(norm.cdf(shift / 2**0.5))


def precision(rng: Rng) -> tuple[Interval, float]:
    targets = rng.random(1000) < 0.2
    interval = share_interval(average_precision(rng.normal(size=1000) + targets, targets))
    return interval, TRUE_PRECISION


def f1(rng: Rng) -> tuple[Interval, float]:
    labels = rng.integers(0, 5, 500)
    predictions = np.where(rng.random(500) < 0.7, labels, rng.integers(0, 5, 500))
    return share_interval(macro_f1(predictions, labels)), 0.7 + 0.3 / 5


def true_precision() -> float:
    """Mean over the positives' normal scores of the precision there, by numerical integration."""
    score = np.linspace(-6, 8, 100_001)
    positive, negative = 0.2 * norm.sf(score - 1), 0.8 * norm.sf(score)
    return float(np.average(positive / (positive + negative), weights=norm.pdf(score - 1)))


def wilson(rng: Rng, values: np.ndarray, groups: Any = None) -> Interval:
    return share_interval(values, groups)


def bootstrap(rng: Rng, values: np.ndarray, groups: Any = None) -> Interval:
    """The interval with a seed of its own, since one for all would be wrong for all alike."""
    return bootstrap_interval(values, groups, resamples=RESAMPLES, seed=int(rng.integers(2**32)))


def compared(rng: Rng, first: np.ndarray, second: np.ndarray, groups: Any = None) -> float:
    seed = int(rng.integers(2**32))
    return paired_difference(first, second, groups, resamples=RESAMPLES, seed=seed).p_value


TRUE_PRECISION = true_precision()
FIVE = lambda rng, images: 5  # noqa: E731
UNEVEN = lambda rng, images: rng.integers(1, 11, images)  # noqa: E731

INTERVALS: dict[str, Draw] = {
    "accuracy of 100": accuracy_by(wilson, 100, 0.3, 0.95),
    "accuracy of 1,000": accuracy_by(wilson, 1000, 0.1, 0.95),
    "accuracy of 1,000 by the bootstrap": accuracy_by(bootstrap, 1000, 0.1, 0.95),
    "recall, 50 images of 5 captions": recall_by(wilson, 50, FIVE),
    "recall, 1,000 images of 5 captions": recall_by(wilson, 1000, FIVE),
    "recall, 200 images of 1 to 10 captions": recall_by(wilson, 200, UNEVEN),
    "recall, 200 images of 1 to 10 captions, by the bootstrap": recall_by(bootstrap, 200, UNEVEN),
    "mean of 100 classes of 20": per_class_of(lambda rng: np.full(100, 20), 4),
    "mean of 100 classes of 1 to 10": per_class_of(lambda rng: rng.integers(1, 11, 100), 2),
    "mean of 10 classes of 2 to 100": per_class_of(lambda rng: rng.integers(2, 101, 10), 3),
    "mean of 10 classes of 200 to 2": per_class_of(
        lambda rng: (200 * 0.6 ** np.arange(10)).astype(int), 3
    ),
    "mean of 10 classes of 5": per_class_of(lambda rng: np.full(10, 5), 3),
    "mean of 100 classes of 3 that are equal": per_class_of(lambda rng: np.full(100, 3), 1e6),
    "negative log-likelihood of 100": nll,
    "median rank, 200 images of 5 captions": median_rank,
    "ROC AUC of 300": auc,
    "average precision of 1,000": precision,
    "macro-F1 of 500": f1,
}


def covered(draw: Draw, data_sets: int) -> float:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(data_sets):
        (low, high), truth = draw(rng)
        inside += low <= truth <= high
    return inside / data_sets


@pytest.mark.parametrize("case", INTERVALS)
def test_intervals_hold_the_truth(case: str) -> None:
    assert 0.935 <= covered(INTERVALS[case], DATA_SETS) <= 0.965


def test_the_interval_of_the_worst_group_is_cautious() -> None:
    """The group that looks worst is mostly not the worst; Wilson's interval of it covers 91 %."""

    def draw(rng: Rng) -> tuple[Interval, float]:
        rate = rng.uniform(0.5, 0.55, 10)
        groups = np.repeat(np.arange(10), 200)
        estimate = worst_group(rng.random(2000) < rate[groups], groups)
        return (estimate.low, estimate.high), rate.min()

    assert covered(draw, DATA_SETS) >= 0.95


# --- Two models that are equally good -------------------------------------------------------------


def two_models(rng: Rng, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two models of one accuracy, which mostly agree."""
    ease = rng.beta(2, 1, number)
    return tuple((rng.random(number) < ease).astype(float) for _ in range(2))


def paired_accuracy(rng: Rng) -> float:
    return compared(rng, *two_models(rng, 500))


def paired_small(rng: Rng) -> float:
    return compared(rng, *two_models(rng, 60))


def mid_p(rng: Rng) -> float:
    return mcnemar_test(*two_models(rng, 500))


def paired_recall(rng: Rng) -> float:
    """Images differ in which model finds them, so their captions are dependent."""
    image = np.repeat(np.arange(200), 5)
    ease = rng.beta(1, 1, (2, 200))[:, image]
    first, second = (rng.random((2, 1000)) < ease).astype(float)
    return compared(rng, first, second, image)


def paired_per_class(rng: Rng) -> float:
    labels = np.repeat(np.arange(50), rng.integers(3, 30, 50))
    first, second = (mean_per_class(x, labels) for x in two_models(rng, len(labels)))
    return compared(rng, first, second)


def paired_brier(rng: Rng) -> float:
    first, second = rng.beta(1, 3, (2, 300)) + rng.exponential(size=300)
    return compared(rng, first, second)


TESTS = {
    "accuracy of 500": paired_accuracy,
    "accuracy of 60": paired_small,
    "McNemar's, mid-p": mid_p,
    "recall, 200 images of 5 captions": paired_recall,
    "mean of 50 classes of 3 to 29": paired_per_class,
    "Brier score of 300": paired_brier,
}


def rejected(p_value: Callable[[Rng], float], data_sets: int) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([p_value(rng) < 0.05 for _ in range(data_sets)]))


@pytest.mark.parametrize("case", TESTS)
def test_paired_tests_reject_a_true_null_hypothesis_as_often_as_they_say(case: str) -> None:
    assert 0.04 <= rejected(TESTS[case], DATA_SETS) <= 0.06


def test_clusters_must_not_be_ignored() -> None:
    """The power of the simulation: without images the same intervals and tests fail."""

    def draw(rng: Rng) -> tuple[Interval, float]:
        hits, _, truth = recall(rng, 200, 5)
        return share_interval(hits), truth

    assert covered(draw, DATA_SETS) < 0.85
