"""Choice of prompts on validation images: forward selection, learned weights, and what they gain.

A candidate is a template, or a set of prompts of its own for each class; an ensemble weighs the
candidates. What is measured on the images of its choice is too good, so `held_out` repeats the
choice without the images that it is measured on.

Shape letters: K candidates, N images, C classes, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_labels
from clip_jax.evaluation.zero_shot import TEXTS_PER_CALL, unit_rows

FOLDS = 5
_PRECISION = jax.lax.Precision.HIGHEST


class Judged(NamedTuple):
    """Per image, float64 (N,): the hit in [0, 1], ties in expectation, and the loss in nats."""

    hits: np.ndarray
    losses: np.ndarray

    def mean(self, used: np.ndarray) -> tuple[float, float]:
        """Returns the accuracy and the mean log likelihood of the images of a mask bool (N,)."""
        return float(self.hits[used].mean()), -float(self.losses[used].mean())


@dataclass(frozen=True)
class Trial:
    """Candidates with the images that judge them.

    Attributes:
      sums: float32 (K, C, D), see `prompt_sums`.
      images: float32 (N, D), rows of length 1.
      labels: int (N,), from 0 to C − 1.
      logit_scale: by which cosines are multiplied for the softmax.
    """

    sums: jax.Array
    images: jax.Array
    labels: jax.Array
    logit_scale: float = 100.0

    def judge(self, weights: np.ndarray) -> Judged:
        """Judges the ensemble of weights (K,), of any sum but 0."""
        return self._judge(np.asarray(weights)[None])[0]

    def judge_each(self, also: Sequence[int] = ()) -> list[Judged]:
        """Judges each candidate alone, or together with the candidates `also`."""
        return self._judge(np.maximum(np.eye(len(self.sums)), _only(also, len(self.sums))))

    def _judge(self, weights_MK: np.ndarray) -> list[Judged]:
        weights = jnp.asarray(weights_MK, jnp.float32)
        found = _judged(weights, self.sums, self.images, self.labels, self.logit_scale)
        return [Judged(*each) for each in zip(*np.asarray(found, np.float64), strict=True)]


# Weights (K,) of the candidates, chosen on the images of a mask bool (N,).
Choose = Callable[[Trial, np.ndarray], np.ndarray]


def make_trial(
    sums: np.ndarray, images: np.ndarray, labels: np.ndarray, logit_scale: float = 100.0
) -> Trial:
    """Puts the arrays of a `Trial` on the device. Raises UserError for labels outside C."""
    if not len(images):
        raise UserError("prompts: there are no images; give at least one that has a label")
    labels = as_labels(labels, len(images), sums.shape[1])
    return Trial(jnp.asarray(sums), jnp.asarray(images), jnp.asarray(labels), logit_scale)


def prompt_sums(
    embed_text: Callable[[list[str]], np.ndarray], prompts: Sequence[Sequence[Sequence[str]]]
) -> np.ndarray:
    """Sums the normalised embeddings of the prompts of K candidates and C classes.

    The sum over some candidates, normalised, is then the classifier of all their prompts.

    Args:
      embed_text: list of n strings -> float32 (n, D); every different prompt is embedded once.
      prompts: [K][C] of the prompts of a class, at least one.

    Returns:
      float32 (K, C, D).

    Raises:
      UserError: an embedding that is zero or not finite.
    """
    cells = [of_class for of_candidate in prompts for of_class in of_candidate]
    texts = list(dict.fromkeys(text for cell in cells for text in cell))
    chunks = [texts[i : i + TEXTS_PER_CALL] for i in range(0, len(texts), TEXTS_PER_CALL)]
    embeds = np.concatenate(
        [unit_rows(np.asarray(embed_text(chunk), np.float32), chunk) for chunk in chunks]
    )
    row = {text: number for number, text in enumerate(texts)}
    sums = np.stack([embeds[[row[text] for text in cell]].sum(0) for cell in cells])
    return sums.reshape(len(prompts), -1, embeds.shape[1])


def select_forward(trial: Trial, used: np.ndarray) -> list[tuple[int, float]]:
    """Adds the candidate that helps most, again and again, until none helps.

    What helps is accuracy, and at equal accuracy the likelihood of the labels.

    Args:
      used: bool (N,), the images that decide.

    Returns:
      (candidate, accuracy after its addition) in the order of addition. The accuracy is of the
      images of the choice, and too good.
    """
    path: list[tuple[int, float]] = []
    best = (-1.0, -np.inf)
    while True:
        chosen = [number for number, _ in path]
        scores = [judged.mean(used) for judged in trial.judge_each(chosen)]
        left = [number for number in range(len(scores)) if number not in chosen]
        top = max(left, key=scores.__getitem__, default=None)
        if top is None or scores[top] <= best:
            return path
        best = scores[top]
        path.append((top, best[0]))


def forward_weights(trial: Trial, used: np.ndarray) -> np.ndarray:
    """Returns 1 for the candidates of `select_forward`, 0 for the others, float64 (K,)."""
    return _only([number for number, _ in select_forward(trial, used)], len(trial.sums))


def best_weights(trial: Trial, used: np.ndarray) -> np.ndarray:
    """Returns 1 for the single best candidate, by accuracy, then likelihood; float64 (K,)."""
    scores = [judged.mean(used) for judged in trial.judge_each()]
    return _only([max(range(len(scores)), key=scores.__getitem__)], len(scores))


def learned_weights(trial: Trial, used: np.ndarray) -> np.ndarray:
    """Fits convex weights of the candidates by the likelihood of the labels, float64 (K,), sum 1.

    A Dirichlet(2) prior, as if each candidate had been right once, keeps few images from deciding
    between many candidates. The logit scale is fitted too, and forgotten: else a model that is too
    sure of itself would get the vaguest prompts.

    Args:
      used: bool (N,), the images that decide.
    """
    share = jnp.asarray(used / used.sum(), jnp.float32)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = _weighed_loss(
            jnp.asarray(values, jnp.float32), trial.sums, trial.images, trial.labels, share,
            trial.logit_scale, 1 / used.sum(),
        )  # fmt: skip
        return float(value), np.asarray(slopes, np.float64)

    found = minimize(loss, np.zeros(len(trial.sums) + 1), jac=True, method="L-BFGS-B")
    return np.asarray(softmax(found.x[:-1]))


def held_out(trial: Trial, choose: Choose, folds: int = FOLDS, seed: int = 0) -> Judged:
    """Judges every image by a choice that has not seen it: cross-validation of the choice itself.

    The folds have equal shares of every class.

    Raises UserError: fewer than 2 images.
    """
    labels = np.asarray(trial.labels)
    folds = min(folds, len(labels))
    if folds < 2:
        raise UserError(f"prompts: {len(labels)} image; a choice needs at least 2")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    fold = np.empty(len(labels), int)
    fold[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.arange(len(labels)) % folds
    hits, losses = np.empty(len(labels)), np.empty(len(labels))
    for number in range(folds):
        out = fold == number
        judged = trial.judge(choose(trial, ~out))
        hits[out], losses[out] = judged.hits[out], judged.losses[out]
    return Judged(hits, losses)


def _only(chosen: Sequence[int], count: int) -> np.ndarray:
    weights = np.zeros(count)
    weights[list(chosen)] = 1.0
    return weights


def _mixed(weights_K: jax.Array, sums_KCD: jax.Array) -> jax.Array:
    return jnp.tensordot(weights_K, sums_KCD, 1, precision=_PRECISION)


def _scores(sums_CD: jax.Array, images_ND: jax.Array) -> jax.Array:
    classifier_CD = sums_CD / jnp.linalg.norm(sums_CD, axis=1, keepdims=True)
    return jnp.matmul(images_ND, classifier_CD.T, precision=_PRECISION)


def _losses(scores_NC: jax.Array, labels_N: jax.Array, scale: jax.typing.ArrayLike) -> jax.Array:
    logs_NC = jax.nn.log_softmax(scale * scores_NC, axis=1)
    return -jnp.take_along_axis(logs_NC, labels_N[:, None], 1)[:, 0]


@jax.jit
def _judged(
    weights_MK: jax.Array, sums_KCD: jax.Array, images_ND: jax.Array, labels_N: jax.Array,
    scale: float,
) -> jax.Array:  # fmt: skip
    """Hits and losses of M ensembles, one after the other: float32 (2, M, N)."""

    def judged(weights_K: jax.Array) -> jax.Array:
        scores_NC = _scores(_mixed(weights_K, sums_KCD), images_ND)
        of_label_N1 = jnp.take_along_axis(scores_NC, labels_N[:, None], 1)
        # As `top_k_hits` counts: tied classes share the hit.
        tied_N = (scores_NC == of_label_N1).sum(1)
        hits_N = (scores_NC <= of_label_N1).all(1) / tied_N
        return jnp.stack([hits_N, _losses(scores_NC, labels_N, scale)])

    return jax.lax.map(judged, weights_MK).swapaxes(0, 1)


@jax.jit
@jax.value_and_grad
def _weighed_loss(
    values: jax.Array, sums_KCD: jax.Array, images_ND: jax.Array, labels_N: jax.Array,
    share_N: jax.Array, scale: float, prior: float,
) -> jax.Array:  # fmt: skip
    """Mean loss of an ensemble, plus its prior's; `values` are K logits of weights, and the
    logarithm of what the scale is multiplied by."""
    logits_K, fitted = values[:-1], scale * jnp.exp(values[-1])
    sums_CD = _mixed(jax.nn.softmax(logits_K), sums_KCD)
    losses_N = _losses(_scores(sums_CD, images_ND), labels_N, fitted)
    return share_N @ losses_N - prior * jax.nn.log_softmax(logits_K).sum()
