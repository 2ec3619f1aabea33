"""Fairness of a ranking: how the groups of its first items differ from a desired distribution.

Source: Geyik et al. 2019, "Fairness-aware ranking in search", section 4. Images, ranked by a text,
are measured so by Berg et al. 2022 ("A prompt array keeps the bias away"), who report k = 1000: at
k = N the order plays no role.
"""

from typing import Any

import numpy as np
from scipy.special import rel_entr

from clip_jax.arguments import whole_number
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_labels


def max_skew(ranked_groups: Any, desired: Any, k: int) -> float:
    """Returns MaxSkew@k: the largest ln(share among the first k / desired share) of a group.

    Args:
      ranked_groups: int (N,), group of each item, 0 to G − 1, in the order of the ranking.
      desired: float (G,), shares above 0 that sum to 1: 1/G each (equal opportunity) or the groups'
        shares of all items (demographic parity).
      k: number of first items, 1 to N.

    Raises:
      UserError: a group or k out of range, or shares that are no distribution.
    """
    return float(_skews(ranked_groups, desired, k).max())


def min_skew(ranked_groups: Any, desired: Any, k: int) -> float:
    """Returns MinSkew@k: the smallest ln(share among the first k / desired share) of a group.

    A group without any of the first k counts as if it had one, whose logarithm exists. The
    arguments are those of `max_skew`.
    """
    return float(_skews(ranked_groups, desired, k).min())


def ndkl(ranked_groups: Any, desired: Any) -> float:
    """Returns NDKL: the divergence KL(first i items ‖ desired) in nats, averaged over i = 1, …, N.

    The weight of i is 1/log2(i + 1). 0 is fair. The arguments are those of `max_skew`.
    """
    desired = _distribution(desired)
    groups = _ranked(ranked_groups, desired)
    first = np.arange(1, len(groups) + 1)
    # An array (N,) a group, instead of one of (N, G).
    divergence = np.zeros(len(groups))
    for g, share in enumerate(desired):
        divergence += rel_entr(np.cumsum(groups == g) / first, share)
    return float(np.average(divergence, weights=1 / np.log2(first + 1)))


def _skews(ranked_groups: Any, desired: Any, k: int) -> np.ndarray:
    desired = _distribution(desired)
    groups = _ranked(ranked_groups, desired)
    k = whole_number(k, "k", 1, len(groups))
    counts = np.bincount(groups[:k], minlength=len(desired))
    return np.log(np.maximum(counts, 1) / k) - np.log(desired)


def _distribution(desired: Any) -> np.ndarray:
    shares = np.asarray(desired, np.float64)
    if shares.ndim != 1 or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise UserError(f"desired={desired}: accepted are shares above 0 that sum to 1")
    return shares


def _ranked(ranked_groups: Any, desired: np.ndarray) -> np.ndarray:
    groups = np.asarray(ranked_groups)
    if not groups.size:
        raise UserError("ranked_groups: is empty; accepted are (N,) integers, at least one")
    return as_labels(groups, len(groups), len(desired), "ranked_group")
