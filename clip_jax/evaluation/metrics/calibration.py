"""Calibration: how far the probabilities of a classifier are right.

A CLIP model's probabilities are the softmax of its logit scale times the cosines.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax

from clip_jax.arguments import whole_number
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_labels, as_scores, as_values
from clip_jax.evaluation.metrics.classification import top_k_hits
from clip_jax.evaluation.metrics.intervals import share_interval

DEFAULT_BINS = 15  # Guo et al. 2017


class Reliability(NamedTuple):
    """Bins of a reliability diagram: arrays (B,), in order of confidence, without empty bins."""

    sizes: np.ndarray  # samples
    confidence: np.ndarray  # mean
    accuracy: np.ndarray
    accuracy_low: np.ndarray  # 95 % interval
    accuracy_high: np.ndarray


class Predictions(NamedTuple):
    """Each sample's part in the calibration metrics: float64 (N,) each."""

    confidence: np.ndarray  # probability of the likeliest class
    hits: np.ndarray  # whether that class is right; ties in expectation
    nll: np.ndarray  # negative log-likelihood of the label, in nats
    brier: np.ndarray  # half the squared distance from the one-hot label, in [0, 1]


def judge_predictions(logits: Any, labels: Any) -> Predictions:
    """Returns each sample's part in the calibration metrics; samples may come in blocks.

    The means of `nll` and `brier` are metrics (Brier 1950; of two classes, (p − y)²). The expected
    calibration error comes from confidence and hits, see `calibration_error`.

    Args:
      logits: float (N, C), log-probabilities up to a constant per sample.
      labels: int (N,), 0 to C − 1.

    Raises:
      UserError: logits that are not (N, C) or hold NaN, labels that are not classes.
    """
    logits = as_scores(logits).astype(np.float64)
    labels = as_labels(labels, *logits.shape)
    log_probability = log_softmax(logits, axis=1)
    of_label = log_probability[np.arange(len(labels)), labels]
    probability = np.exp(log_probability)
    squares = (probability**2).sum(1) - 2 * np.exp(of_label) + 1
    hits = top_k_hits(logits, labels, 1)
    return Predictions(probability.max(1), hits, -of_label, squares / 2)


def calibration_error(
    confidence: Any, hits: Any, bins: int = DEFAULT_BINS, *, equal_mass: bool = False
) -> np.ndarray:
    """Returns the contributions (N,) of the expected calibration error.

    It is the mean over samples of |accuracy − mean confidence| of a sample's bin (Guo et al. 2017;
    bins of equal mass: Nguyen & O'Connor 2015). It overstates the error of a well calibrated model
    with few samples a bin, and its interval with it.

    Args:
      confidence: float (N,) in [0, 1], probability of the predicted class.
      hits: float (N,), whether the prediction is right.
      bins: number of bins; an upper edge belongs to its bin.
      equal_mass: edges at quantiles of the confidence, instead of equal widths.
    """
    confidence, hits, number = _binned(confidence, hits, bins, equal_mass)
    gap = hits - confidence
    return np.sign(np.bincount(number, gap))[number] * gap


def reliability(
    confidence: Any, hits: Any, bins: int = DEFAULT_BINS, *, equal_mass: bool = False
) -> Reliability:
    """Returns the bins of a reliability diagram; the arguments are those of `calibration_error`."""
    confidence, hits, number = _binned(confidence, hits, bins, equal_mass)
    used, number = np.unique(number, return_inverse=True)
    sizes = np.bincount(number)
    limits = [share_interval(hits[number == b]) for b in range(len(used))]
    low, high = np.array(limits).T
    mean_confidence, accuracy = (np.bincount(number, x) / sizes for x in (confidence, hits))
    return Reliability(sizes, mean_confidence, accuracy, low, high)


def _binned(
    confidence: Any, hits: Any, bins: int, equal_mass: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns confidence and hits, float64 (N,), and each sample's bin, int (N,)."""
    confidence, hits = as_values(confidence, "confidence"), as_values(hits, "hits")
    if len(confidence) != len(hits):
        raise UserError(f"{len(confidence)} confidences and {len(hits)} hits: must be as many")
    if confidence.min() < 0 or confidence.max() > 1:
        raise UserError("confidence: accepted are probabilities, 0 to 1")
    inner = np.linspace(0, 1, whole_number(bins, "bins") + 1)[1:-1]
    edges = np.quantile(confidence, inner) if equal_mass else inner
    return confidence, hits, np.searchsorted(edges, confidence, side="left")
