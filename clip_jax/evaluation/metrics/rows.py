"""Metrics with their 95 % intervals, and the fields of a row that they become."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from clip_jax.evaluation.metrics.checks import as_values
from clip_jax.evaluation.metrics.intervals import (
    bootstrap_interval,
    class_totals,
    mean_per_class_interval,
    median_interval,
    share_interval,
)


class Estimate(NamedTuple):
    """A metric and the limits of its interval."""

    value: float
    low: float
    high: float


def share_estimate(contributions: Any, groups: Any = None) -> Estimate:
    """Estimates a metric in [0, 1] from its contributions (N,)."""
    values = as_values(contributions)
    return Estimate(float(values.mean()), *share_interval(values, groups))


def per_class_estimate(hits: Any, labels: Any) -> Estimate:
    """Estimates the mean per class of hits (N,) with labels int (N,)."""
    sums, sizes = class_totals(hits, labels)
    return Estimate(float((sums / sizes).mean()), *mean_per_class_interval(hits, labels))


def mean_estimate(values: Any, groups: Any = None) -> Estimate:
    """Estimates a mean without bounds, such as that of ranks or of nats, by the bootstrap."""
    values = as_values(values)
    return Estimate(float(values.mean()), *bootstrap_interval(values, groups))


def median_estimate(values: Any, groups: Any = None) -> Estimate:
    """Estimates the median of values (N,), such as ranks."""
    values = as_values(values)
    return Estimate(float(np.median(values)), *median_interval(values, groups))


def metrics_row(metrics: Mapping[str, Any], groups: Any = None) -> dict[str, float]:
    """Returns {NAME: value, NAME_low: …, NAME_high: …} of every metric, flat.

    Args:
      metrics: by name, contributions (N,) of a metric in [0, 1], or any metric's `Estimate`.
      groups: int or str (N,), for contributions: samples of one group are dependent.

    Raises:
      UserError: contributions that are not finite, or whose mean is no share.
    """
    row: dict[str, float] = {}
    for name, metric in metrics.items():
        estimate = metric if isinstance(metric, Estimate) else share_estimate(metric, groups)
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return row
