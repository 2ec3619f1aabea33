"""Classification with one label a sample: contributions (N,) of each metric.

Ties count in expectation over a random order of the tied classes, so a model whose scores are all
equal gets exactly chance and not the share of class 0.
"""

from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_labels, as_scores, as_targets, as_values
from clip_jax.evaluation.metrics.intervals import class_totals


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """float (N, C), int (N,) -> float64 (N,): probability that the label is among the top k.

    It lies strictly between 0 and 1 only if other classes tie with the label's score.
    """
    of_label = np.take_along_axis(scores, labels[:, None], axis=1)
    above = (scores > of_label).sum(1)
    tied = (scores == of_label).sum(1)  # the label itself is one of them
    return np.clip((k - above) / tied, 0.0, 1.0)


def mean_per_class(hits: Any, labels: Any) -> np.ndarray:
    """Returns the contributions (N,) of the mean, over the classes that occur, of their mean hit.

    Deviations from a class's mean are stretched by n/(n − 1) in variance, since it is the mean of
    its n samples that they deviate from. Classes of one sample deviate from the mean of them all.

    Args:
      hits: float (N,), such as those of `top_k_hits`.
      labels: int (N,), each at least 0.
    """
    hits = as_values(hits, "hits")
    sums, sizes = class_totals(hits, labels)
    means = sums / sizes
    centre = means.mean()
    number = np.unique(labels, return_inverse=True)[1]  # among the classes that occur
    stretch = np.sqrt(sizes / np.maximum(sizes - 1, 1)) / (sizes * len(sizes))
    alone = sizes == 1
    if alone.any():
        means[alone] = means[alone].mean()
    return centre + len(hits) * stretch[number] * (hits - means[number])


def macro_f1(predictions: Any, labels: Any) -> np.ndarray:
    """Returns the contributions (N,) of the mean F1 over the classes that occur among the labels.

    iWildCam's metric (Koh et al. 2021, WILDS). A class that is only predicted has no F1 of its own,
    but such a prediction is a miss of the true class.

    Args:
      predictions: int (N,), predicted classes, each at least 0.
      labels: int (N,), true classes, each at least 0.
    """
    labels = as_labels(labels, len(labels))
    predictions = as_labels(predictions, len(labels), name="prediction")
    classes = int(max(predictions.max(), labels.max())) + 1
    right = predictions == labels
    true, predicted, found = (
        np.bincount(x, minlength=classes) for x in (labels, predictions, labels[right])
    )
    total = np.where(true > 0, true + predicted, np.inf)  # of an absent class all terms are 0
    f1 = 2 * found / total
    influence = 2 * right / total[labels] - (f1 / total)[labels] - (f1 / total)[predictions]
    present = np.count_nonzero(true)
    return f1.sum() / present + len(labels) * influence / present


def jaccard_index(scores: Any, targets: Any) -> np.ndarray:
    """Returns |chosen ∩ targets| / |chosen ∪ targets| float64 (N,).

    WinoGAViL's metric (Bitton et al. 2022): as many candidates are chosen, by score, as a sample
    has targets; the earlier wins a tie.

    Args:
      scores: float (N, K), of each sample's K candidates; -inf for one that is only padding.
      targets: bool (N, K), at least one a sample.
    """
    scores = as_scores(scores, "NK")
    targets = as_targets(targets, scores.shape)
    order = np.argsort(-scores, axis=1, kind="stable")
    number = targets.sum(1)
    if not number.all():
        row = int(np.argmin(number))
        raise UserError(f"targets[{row}]: has none; accepted is at least one a sample")
    is_chosen = np.arange(scores.shape[1]) < number[:, None]
    shared = (np.take_along_axis(targets, order, 1) & is_chosen).sum(1)
    return shared / (2 * number - shared)
