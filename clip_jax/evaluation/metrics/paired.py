"""Comparison of two models on the same samples."""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtr

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.bootstrap import MeanBootstrap
from clip_jax.evaluation.metrics.checks import as_values


class Difference(NamedTuple):
    """Difference of two models' metric, its interval, and the p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(
    first: Any,
    second: Any,
    groups: Any = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Bootstraps the mean of first − second, contributions float (N,) of the same N samples.

    The two-sided p-value is 1 − the confidence at which the interval ends at 0, so it is below
    0.05 exactly if the 95 % interval leaves 0 out; it is not reported below about 1/resamples.
    `groups` and the rest are those of `bootstrap_interval`.
    """
    first, second = _pair(first, second)
    bootstrap = MeanBootstrap(first - second, groups, resamples, seed)
    low, high = bootstrap.interval(confidence)
    return Difference(bootstrap.mean, low, high, bootstrap.p_value(0.0))


def mcnemar_test(first: Any, second: Any, *, exact: bool = False) -> float:
    """Returns McNemar's two-sided p-value that hits (N,) of two models are equally frequent.

    Only the samples count on which one model is better: under the null hypothesis the first is, on
    each, with probability 1/2. The default is the mid-p value of this binomial, which rejects a
    true null hypothesis as often as it says; the exact one never more often, and mostly less
    (Fagerland et al. 2013).
    """
    first, second = _pair(first, second)
    better, worse = int((first > second).sum()), int((first < second).sum())
    fewer, number = min(better, worse), better + worse
    if number == 0:
        return 1.0
    up_to = float(bdtr(fewer, number, 0.5))
    before = float(bdtr(fewer - 1, number, 0.5)) if fewer else 0.0
    return min(2 * up_to, 1.0) if exact else up_to + before


def _pair(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = as_values(first, "first"), as_values(second, "second")
    if len(first) != len(second):
        raise UserError(
            f"{len(first)} and {len(second)} values: accepted are those of the same samples"
        )
    return first, second
