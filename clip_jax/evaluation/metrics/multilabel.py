"""Classification with any number of labels a sample: average precision and ROC AUC.

Both rank the samples by a class's score. Samples of equal score are retrieved together, so the
order of the data never matters.
"""

from typing import Any, Literal

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_scores, as_targets

Curve = Literal["steps", "interpolated", "11_points"]


def mean_average_precision(scores: Any, targets: Any, curve: Curve = "steps") -> np.ndarray:
    """Returns the contributions (N,) of the mean average precision of the classes that occur.

    Args:
      scores: float (N, C).
      targets: bool or 0/1 (N, C): whether a sample has a label; a class without samples has no
        average precision and is left out.
      curve: see `average_precision`.

    Raises:
      UserError: shapes that do not fit, NaN, or no positive at all.
    """
    scores = as_scores(scores)
    targets = as_targets(targets, scores.shape)
    if not targets.any():
        raise UserError("targets: no sample has a label; at least one must")
    present = np.flatnonzero(targets.any(0))
    total = np.zeros(len(scores))
    for c in present:
        total += average_precision(scores[:, c], targets[:, c], curve)
    return total / len(present)


def average_precision(scores: Any, targets: Any, curve: Curve = "steps") -> np.ndarray:
    """Returns the contributions (N,) of the mean precision over the levels of recall.

    Args:
      scores: float (N,).
      targets: bool or 0/1 (N,), at least one positive.
      curve: the precision at a level of recall, one level a positive: that at the positive's score
        ("steps", as scikit-learn); the best at that recall or a higher one ("interpolated", VOC
        since 2010); or the latter at recall 0, 0.1, …, 1 ("11_points", VOC 2007; Everingham et al.
        2010).

    Raises:
      UserError: shapes that do not fit, NaN, or no positive.
    """
    scores = as_scores(scores, "N")
    targets = as_targets(targets, scores.shape)
    positives = int(targets.sum())
    if not positives:
        raise UserError("targets: no sample is positive; at least one must be")
    order = np.argsort(-scores, kind="stable")
    is_positive, ranked = targets[order], -scores[order]
    last = np.searchsorted(ranked, ranked, side="right") - 1  # of those with the same score
    found = np.cumsum(is_positive)[last]
    precision = found / (last + 1)
    if curve != "steps":
        last = last[_best_after(precision)]
    if curve == "11_points":
        # In whole numbers, for 3/10 is not what 3 · 0.1 rounds to.
        cuts = last[np.searchsorted(10 * found, positives * np.arange(11))]
    else:
        cuts = last[is_positive]
    value = precision[cuts].mean()
    # The precision at a cut moves with every sample above it.
    weight = np.bincount(cuts, minlength=len(scores)) / len(cuts) / (np.arange(len(scores)) + 1)
    influence = is_positive * _sum_after(weight) - _sum_after(weight * precision)
    if curve != "11_points":  # a positive is a level of recall itself
        influence[is_positive] += (precision[cuts] - value) / positives
    contributions = np.empty(len(scores))
    contributions[order] = value + len(scores) * influence
    return contributions


def roc_auc(scores: Any, targets: Any) -> np.ndarray:
    """Returns the contributions (N,) of the area under the ROC curve of scores (N,).

    The area is the probability that a positive's score is above a negative's; a tie counts half.
    The contributions are the structural components of DeLong et al. 1988.

    Raises:
      UserError: shapes that do not fit, NaN, or targets (N,) that are all equal.
    """
    # Every program imports this module, and scipy.stats takes a second to import.
    from scipy.stats import rankdata

    scores = as_scores(scores, "N")
    targets = as_targets(targets, scores.shape)
    positives, negatives = int(targets.sum()), int((~targets).sum())
    if not positives or not negatives:
        raise UserError("targets: all are equal; accepted are some positive and some negative")
    rank = rankdata(scores)
    beaten = np.empty(len(scores))  # of the other kind, the share on the right side
    beaten[targets] = (rank[targets] - rankdata(scores[targets])) / negatives
    beaten[~targets] = 1 - (rank[~targets] - rankdata(scores[~targets])) / positives
    value = beaten[targets].mean()
    return value + len(scores) * (beaten - value) / np.where(targets, positives, negatives)


def _best_after(values: np.ndarray) -> np.ndarray:
    """Returns for each index the first at or after it that has the largest value from it on."""
    best = np.maximum.accumulate(values[::-1])[::-1]
    index = np.where(values == best, np.arange(len(values)), len(values))
    return np.minimum.accumulate(index[::-1])[::-1]


def _sum_after(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values[::-1])[::-1]
