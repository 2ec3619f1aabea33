"""Rates of groups of samples, such as the regions or the people that images are of."""

from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_values
from clip_jax.evaluation.metrics.intervals import share_interval
from clip_jax.evaluation.metrics.rows import Estimate


def group_rates(values: Any, groups: Any, confidence: float = 0.95) -> dict[Any, Estimate]:
    """Returns the mean of values (N,) in [0, 1], with its interval, of every group.

    Args:
      values: float (N,), such as hits, or whether an image got a label.
      groups: int or str (N,).
      confidence: of each interval alone.

    Raises:
      UserError: values that are not finite, or groups of another length.
    """
    values, groups = as_values(values), np.asarray(groups)
    if groups.shape != values.shape:
        raise UserError(f"groups {groups.shape}: accepted are {values.shape}, one a value")
    rates = {}
    for group in np.unique(groups):
        inside = values[groups == group]
        low, high = share_interval(inside, confidence=confidence)
        rates[group.item()] = Estimate(float(inside.mean()), low, high)
    return rates


def worst_group(values: Any, groups: Any, confidence: float = 0.95) -> Estimate:
    """Returns the lowest rate of a group, with the interval of the lowest true rate.

    The group that looks worst looks so partly by chance. So the upper limit is the lowest upper
    limit at a confidence that holds for all groups together (Bonferroni); the interval is cautious.
    The arguments are those of `group_rates`.
    """
    rates = group_rates(values, groups, confidence)
    together = group_rates(values, groups, 1 - (1 - confidence) / len(rates))
    return Estimate(
        min(rate.value for rate in rates.values()),
        min(rate.low for rate in rates.values()),
        min(rate.high for rate in together.values()),
    )
