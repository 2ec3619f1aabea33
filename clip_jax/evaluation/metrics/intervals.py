"""Confidence intervals of a metric from its contributions (N,).

Shares (accuracy, recall, and any metric between 0 and 1) get Wilson's score interval, with the
number of samples replaced by the effective number: that of independent 0/1 samples with the same
variance. For hits without groups it is N, and the interval is Wilson's own. It stays in [0, 1], and
has a width if all hits are 1, where a bootstrap has none. What is no share is bootstrapped.
"""

from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.bootstrap import MeanBootstrap, group_totals
from clip_jax.evaluation.metrics.checks import as_labels, as_values, check_confidence

Interval = tuple[float, float]


def bootstrap_interval(
    values: Any,
    groups: Any = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Returns the bootstrap interval (low, high) of the mean of values (N,).

    Args:
      values: float (N,), such as the hits of N queries.
      groups: int or str (N,), such as the image of each caption: samples of one group are drawn
        together. None: all samples are independent.
      confidence: probability that an interval contains the true mean.
      resamples: number of resamples.
      seed: seed of the draws; the same arguments give the same interval.

    Raises:
      UserError: no values, a value that is not finite, groups of another length, or a number out of
        range.

    Source: BCa (Efron 1987) with Hesterberg's (2015) correction for few groups.
    """
    return MeanBootstrap(values, groups, resamples, seed).interval(confidence)


def share_interval(values: Any, groups: Any = None, confidence: float = 0.95) -> Interval:
    """Returns Wilson's interval (low, high) of a mean in [0, 1], by the effective sample size.

    Args:
      values: float (N,): hits, or contributions of any metric in [0, 1].
      groups: int or str (N,): samples of one group are dependent, such as the captions of an image.
      confidence: probability that an interval contains the true mean.

    Raises:
      UserError: see `bootstrap_interval`; also for a mean outside [0, 1].

    Source: Wilson 1927; effective sample size: Kish 1965, section 8.2; with it in score intervals:
    Franco et al. 2019, Journal of Survey Statistics and Methodology 7(3).
    """
    check_confidence(confidence)
    values = as_values(values)
    sums, sizes = group_totals(values, groups)
    mean, num_groups = float(sums.sum() / sizes.sum()), len(sums)
    if not -1e-9 <= mean <= 1 + 1e-9:
        raise UserError(f"values: their mean is {mean:g}; accepted is a share, 0 to 1")
    mean = min(max(mean, 0.0), 1.0)
    variance = float(((sums - mean * sizes) ** 2).sum() / sizes.sum() ** 2)
    z = ndtri((1 + confidence) / 2)
    if 1 < num_groups < len(values):
        # The spread between groups is an estimate, of few groups a poor one.
        variance *= num_groups / (num_groups - 1)
        z = stdtrit(num_groups - 1, (1 + confidence) / 2)
    return _wilson(mean, _effective_size(mean, variance, num_groups), z)


def mean_per_class_interval(hits: Any, labels: Any, confidence: float = 0.95) -> Interval:
    """Returns the interval (low, high) of the mean per class of hits (N,), in [0, 1].

    The variance of a small class cannot be estimated from its samples alone: three hits of three
    would have none. So every class's accuracy is shrunk to the mean of all with a beta prior, whose
    strength comes from how much accuracies differ between classes (empirical Bayes), and its
    variance is the expected one. Coverage is 94 to 96 % from two samples a class on.

    Args:
      hits: float (N,) in [0, 1].
      labels: int (N,), classes; those that occur are counted.
      confidence: probability that an interval contains the true mean.

    Raises:
      UserError: hits or labels that do not fit, or a number out of range.
    """
    check_confidence(confidence)
    sums, sizes = class_totals(hits, labels)
    if (sums < 0).any() or (sums > sizes).any():
        raise UserError("hits: a class's mean is outside 0 to 1; accepted are hits in [0, 1]")
    mean, num_classes = float((sums / sizes).mean()), len(sums)
    between = mean * (1 - mean)
    variance = 0.0
    if between:
        strength = _prior_strength(sums, sizes, between)
        shrunk = (sums + strength * mean) / (sizes + strength)
        inside = shrunk * (1 - shrunk) * (sizes + strength) / (sizes + strength + 1)
        variance = float((inside / sizes).sum()) / num_classes**2
    z = ndtri((1 + confidence) / 2)
    return _wilson(mean, _effective_size(mean, variance, int(sizes.sum())), z)


def median_interval(values: Any, groups: Any = None, confidence: float = 0.95) -> Interval:
    """Returns the interval (low, high) of the median of values (N,), such as ranks.

    The share of values up to the median has a `share_interval`; the quantiles of the values at its
    limits are those of the median (Woodruff 1952).
    """
    values = as_values(values)
    below = share_interval(values <= np.median(values), groups, confidence)
    centre = float((values <= np.median(values)).mean())
    low, high = np.quantile(values, np.clip(np.array(below) - centre + 0.5, 0, 1))
    return float(low), float(high)


def class_totals(hits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum of hits (N,) and the size, float64 each, of the classes that occur."""
    hits = as_values(hits, "hits")
    labels = as_labels(labels, len(hits))
    sizes = np.bincount(labels).astype(np.float64)
    present = sizes > 0
    return np.bincount(labels, hits)[present], sizes[present]


def _prior_strength(sums: np.ndarray, sizes: np.ndarray, between: float) -> float:
    """Returns the samples that the beta prior of a class's accuracy counts for, 0.25 to 99.

    Two samples of one class differ with the probability 2·between·k/(k + 1) if the prior's mean is
    that of all classes and its strength k.
    """
    pairs = float((sizes - 1).sum())
    if not pairs:
        return 99.0
    same = float((sums * (sizes - sums) / sizes).sum()) / pairs / between
    same = min(max(same, 0.2), 0.99)
    return same / (1 - same)


def _effective_size(mean: float, variance: float, independent: int) -> float:
    """Returns the number of 0/1 samples whose mean has this variance."""
    spread = mean * (1 - mean)
    return spread / variance if spread and variance else float(independent)


def _wilson(mean: float, size: float, z: float) -> Interval:
    """Returns the score interval of a share among `size` samples at the normal quantile z."""
    centre = (mean + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * (mean * (1 - mean) / size + z * z / (4 * size * size)) ** 0.5
    # Rounding may put a limit a last digit on the wrong side.
    return float(max(min(centre - half, mean), 0.0)), float(min(max(centre + half, mean), 1.0))
