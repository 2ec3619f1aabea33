"""Few-shot linear probe: the same fit on few images a class, over shots and seeds.

The protocol is CoOp's (Zhou et al. 2022, section 4.1, and its code): 1, 2, 4, 8 and 16 training
images a class, at most min(shots, 4) validation images a class, on which the penalty is chosen, and
the mean over seeds. A class that has fewer images gives them all.

All shots of all seeds are one program. The features of a seed's most shots are held once, of which
fewer shots are a part with other weights of rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.evaluation.probe.examples import ranks_in_class
from clip_jax.evaluation.probe.logistic import HELPER_TOLERANCE, fit_whitening, place_rows
from clip_jax.evaluation.probe.penalty_path import Rows, solve_path
from clip_jax.evaluation.probe.refined_loss import score_all
from clip_jax.evaluation.probe.sweep import LAMBDAS, Examples

SHOTS = (1, 2, 4, 8, 16)
SEEDS = 5
VALIDATION_SHOTS = 4
PENALTIES = LAMBDAS[::4]  # two a decade


class FewShot(NamedTuple):
    """Classifiers of S seeds and T numbers of shots: logits are `features @ weights + bias`."""

    shots_T: tuple[int, ...]
    weights_STDC: np.ndarray  # float64
    bias_STC: np.ndarray  # float64
    lambdas_ST: np.ndarray  # float64, chosen of `PENALTIES`


def fit_few_shot(train: Examples, validation: Examples, seeds: int = SEEDS) -> FewShot:
    """Fits a probe for each seed, and each of `SHOTS` that some class has."""
    whitening = fit_whitening(train.features)
    num_classes = int(train.labels.max()) + 1
    most = np.bincount(train.labels).max()
    shots_T = tuple(shots for shots in SHOTS if shots <= most)

    def drawn(examples: Examples, most: int, seed: int) -> Rows:
        """Rows whose weight is 1 for the last shot, and more for each before."""
        ranks = ranks_in_class(examples.labels, seed)
        part, left = examples.part(ranks < most), most - ranks[ranks < most]
        return place_rows(whitening(part.features), part.labels, num_classes, left)

    def stacked(examples: Examples, most: int) -> Rows:
        rows = [drawn(examples, most, seed) for seed in range(seeds)]
        return jax.tree.map(lambda *each: jnp.stack(each), *rows)

    start_PC = np.zeros((len(whitening.spectrum_R) + 1, num_classes), np.float32)
    solutions, chosen = _fit(
        stacked(train, shots_T[-1]),
        stacked(validation, VALIDATION_SHOTS),
        np.asarray(shots_T, np.float32),
        (1 / whitening.spectrum_R).astype(np.float32),
        start_PC,
    )
    flat = np.asarray(solutions).reshape(-1, *start_PC.shape)
    weights, bias = whitening.undo(flat)
    lead = (seeds, len(shots_T))
    return FewShot(
        shots_T,
        weights.reshape(*lead, *weights.shape[1:]),
        bias.reshape(*lead, num_classes),
        PENALTIES[np.asarray(chosen)],
    )


@jax.jit
def _fit(
    train: Rows,
    validation: Rows,
    shots_T: jax.Array,
    inverse_spectrum_R: jax.Array,
    start_PC: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the solutions (S, T, P, C), and which penalties they have (S, T)."""

    def fit(train: Rows, validation: Rows, shots: jax.Array) -> tuple[jax.Array, jax.Array]:
        train, count = _first(train, shots, shots_T[-1])
        validation, _ = _first(validation, jnp.minimum(shots, VALIDATION_SHOTS), VALIDATION_SHOTS)
        l2_K = jnp.asarray(PENALTIES, jnp.float32) / count
        tolerance_K = jnp.full(len(PENALTIES), HELPER_TOLERANCE)
        solutions_KPC, _ = solve_path(
            train, inverse_spectrum_R, l2_K, tolerance_K, len(PENALTIES), start_PC
        )
        best = jnp.argmin(score_all(validation, solutions_KPC)[1])
        return solutions_KPC[best], best

    of_seed = jax.vmap(fit, in_axes=(None, None, 0))
    return jax.vmap(of_seed, in_axes=(0, 0, None))(train, validation, shots_T)


def _first(rows: Rows, shots: jax.Array, most: jax.Array | int) -> tuple[Rows, jax.Array]:
    """Returns the rows of the first shots, with equal weights, and their number."""
    used_NB = (rows.weights_NB > most - shots).astype(jnp.float32)
    return rows._replace(weights_NB=used_NB / used_NB.sum()), used_NB.sum()
