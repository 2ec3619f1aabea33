"""Ensembles of several models: weighted means of similarities, logits or class probabilities.

Shape letters: M models, N samples, C classes.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from clip_jax.errors import UserError

Method = Literal["similarities", "logits", "probabilities"]
METHODS: tuple[Method, ...] = ("similarities", "logits", "probabilities")


class Mixture(NamedTuple):
    """Weights of an ensemble, and what each model's cosines are multiplied by to be logits.

    Attributes:
      weights: float64 (M,), at least 0, of sum 1.
      scales: float64 (M,), at least 0.
    """

    weights: np.ndarray
    scales: np.ndarray


def mixed_log_probabilities(
    cosines: Sequence[np.ndarray], mixture: Mixture, method: Method
) -> np.ndarray:
    """Returns log probabilities, float64 (N, C), of an ensemble from M cosines (N, C).

    "similarities" averages the cosines, and multiplies by the mean scale; "logits" averages what
    each model would give the softmax, "probabilities" what the softmaxes return.
    """
    weights, scales = mixture
    if method == "probabilities":
        parts = [
            log_softmax(s * np.asarray(c, np.float64), 1)
            for c, s in zip(cosines, scales, strict=True)
        ]
        with np.errstate(divide="ignore"):
            log_weights = np.log(weights)
        return np.asarray(logsumexp(np.stack(parts) + log_weights[:, None, None], axis=0))
    factors = weights * (weights @ scales if method == "similarities" else scales)
    return np.asarray(
        log_softmax(
            sum(f * np.asarray(c, np.float64) for f, c in zip(factors, cosines, strict=True)), 1
        )
    )


def fit_mixture(
    cosines: Sequence[np.ndarray], labels: np.ndarray, scales: Sequence[float], method: Method
) -> Mixture:
    """Fits weights and scales on validation samples, by the likelihood of their labels.

    Args:
      cosines: M of float (N, C).
      labels: int (N,).
      scales: each model's own logit scale, where the search starts.

    Raises:
      UserError: no samples, or cosines of different shapes.

    Source: log-linear and linear pools (Genest & Zidek 1986), with a temperature a model (Guo et
    al. 2017).
    """
    shapes = {np.shape(c) for c in cosines}
    if len(shapes) != 1 or not len(labels):
        raise UserError(f"ensemble: cosines of shapes {sorted(shapes)}; accepted is one, N > 0")
    stacked = np.stack([np.asarray(c, np.float64) for c in cosines])
    count, rows = len(stacked), np.arange(len(labels))
    own = np.asarray(scales, np.float64)

    if method == "probabilities":

        def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
            weights, scale = softmax(values[:count]), np.exp(values[count:])
            logs = log_softmax(scale[:, None, None] * stacked, axis=2)
            picked = logs[:, rows, labels] + np.log(weights)[:, None]
            share = softmax(picked, axis=0)  # of each model in a sample's probability, (M, N)
            slopes = stacked[:, rows, labels] - (np.exp(logs) * stacked).sum(2)
            by_scale = -(share * slopes).mean(1) * scale
            return -float(logsumexp(picked, axis=0).mean()), np.r_[
                weights - share.mean(1), by_scale
            ]

        found = minimize(loss, np.r_[np.zeros(count), np.log(own)], jac=True, method="L-BFGS-B").x
        return Mixture(softmax(found[:count]), np.exp(found[count:]))

    def pooled(factors: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(np.tensordot(factors, stacked, 1), axis=1)
        slopes = stacked[:, rows, labels] - np.einsum("nc,mnc->mn", np.exp(logs), stacked)
        return -float(logs[rows, labels].mean()), -slopes.mean(1)

    bounds = [(0.0, None)] * count
    factors = minimize(pooled, own / count, jac=True, method="L-BFGS-B", bounds=bounds).x
    # Only the products of weight and scale matter here; the scales stay in proportion.
    if not factors.any():
        return Mixture(np.full(count, 1 / count), np.zeros(count))
    if method == "similarities":
        return Mixture(factors / factors.sum(), np.full(count, factors.sum()))
    weights = factors / own / (factors / own).sum()
    return Mixture(weights, own * (factors / own).sum())
