"""Bootstrap of a mean, with groups drawn whole.

Resampling needs no N×R draws: groups of equal content are one cell, and a resample is a multinomial
count of the cells. Contents of too many kinds are sorted into cells of similar ones, each with the
cell's mean; the variance inside of cells, which that leaves out, is at most a few thousandths.

Levels are those of BCa (Efron 1987), which corrects bias and skewness, at quantiles of Student's t
with the variance's factor G/(G − 1) (Hesterberg 2015), which corrects the narrowness of few
groups.
"""

from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from clip_jax.arguments import whole_number
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_values, check_confidence

# 10,000 resamples of 128 cells take 0.2 s.
_MAX_CELLS = 128


def group_totals(values: np.ndarray, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum of the values (N,) and the size, float64 (G,) each, of every group.

    `groups` are (N,) integers or texts; None makes each value a group.
    """
    if groups is None:
        return values, np.ones(len(values))
    groups = np.asarray(groups)
    if groups.shape != values.shape or groups.dtype.kind not in "biuUS":
        raise UserError(
            f"groups {groups.dtype} {groups.shape}: accepted are ({len(values)},) integers or texts"
        )
    number = np.unique(groups, return_inverse=True)[1]
    return np.bincount(number, values), np.bincount(number).astype(np.float64)


class MeanBootstrap:
    """Bootstrap distribution of the mean of values (N,); groups (N,) are drawn whole."""

    def __init__(self, values: Any, groups: Any, resamples: int, seed: int) -> None:
        """Draws the resamples. Raises `UserError` for values, groups or numbers it cannot use."""
        resamples = whole_number(resamples, "resamples")
        sums, sizes = group_totals(as_values(values), groups)
        self._groups = len(sums)
        self.mean = float(sums.sum() / sizes.sum())
        rng = np.random.default_rng(seed)
        cell_sum, cell_size, count = _cells(sums, sizes, self.mean)
        drawn = rng.multinomial(self._groups, count / self._groups, resamples)
        self._means = np.sort((drawn @ cell_sum) / (drawn @ cell_size))
        self._bias = float(ndtri(self._share_below(self.mean)))
        deviations = sums - self.mean * sizes
        spread = float((deviations**2).sum())
        third = float((deviations**3).sum())
        self._acceleration = third / (6 * spread**1.5) if spread else 0.0

    def interval(self, confidence: float) -> tuple[float, float]:
        """Returns the limits of the mean at a confidence; one group gives the mean itself."""
        check_confidence(confidence)
        if self._groups == 1:
            return self.mean, self.mean
        tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        shifted = self._bias + stdtrit(self._groups - 1, tails) * self._widening
        # Only three groups or so at 99.9 % bring the denominator to 0.
        corrected = shifted / np.maximum(1 - self._acceleration * shifted, 1e-3)
        low, high = np.quantile(self._means, ndtr(self._bias + corrected))
        return float(low), float(high)

    def p_value(self, hypothesis: float) -> float:
        """Returns 1 − the confidence at which a limit of `interval` is the hypothesis."""
        if self._groups == 1:
            return 1.0
        corrected = ndtri(self._share_below(hypothesis)) - self._bias
        z = corrected / (1 + self._acceleration * corrected) - self._bias
        return float(2 * stdtr(self._groups - 1, -abs(z) / self._widening))

    @property
    def _widening(self) -> float:
        return (self._groups / (self._groups - 1)) ** 0.5

    def _share_below(self, value: float) -> float:
        """Returns the share of resamples below a value; those equal to it count half."""
        resamples = len(self._means)
        sides = [np.searchsorted(self._means, value, side) for side in ("left", "right")]
        # No resample on one side says only that its share is less than 1/R.
        return float(np.clip(sum(sides) / 2, 0.5, resamples - 0.5)) / resamples


def _cells(sums: np.ndarray, sizes: np.ndarray, mean: float) -> tuple[np.ndarray, ...]:
    """Returns the mean sum, the mean size, and the count of groups by cell."""
    kinds, count = np.unique(sums + 1j * sizes, return_counts=True)
    if len(kinds) <= _MAX_CELLS:
        return kinds.real, kinds.imag, count
    deviations = sums - mean * sizes
    order = np.argsort(deviations, kind="stable")
    squares = deviations[order] ** 2
    # Half of the cells go by the number of groups, half by their squares: outliers are alone.
    share = np.cumsum(squares / squares.mean() + 1) / (2 * len(sums))
    starts = np.unique(np.searchsorted(share, np.arange(_MAX_CELLS) / _MAX_CELLS, side="right"))
    count = np.diff(np.append(starts, len(sums)))
    cell_sum, cell_size = (np.add.reduceat(x[order], starts) / count for x in (sums, sizes))
    return cell_sum, cell_size, count
