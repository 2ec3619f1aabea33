"""Cross-entropy of a classifier at the temperature that suits the rows best.

It measures how well the classes are told apart, and not how well the confidence is set, which a
penalty changes too. In the inverse temperature it is convex, so Newton's method finds it.
"""

import jax
import jax.numpy as jnp

from clip_jax.evaluation.probe.penalty_path import Rows

MAX_STEPS = 30
_LONGEST_STEP = 4.0  # factor of the inverse temperature
_LIMITS = (1e-4, 1e4)  # that of rows which are all right grows without end


def score(rows: Rows, params_PC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a classifier's accuracy () and its refined cross-entropy (), float32.

    The rows' weights have the sum 1; parameters are as in `penalty_path`.
    """

    def is_unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, change, steps = state
        return (jnp.abs(change - 1) > 1e-4) & (steps < MAX_STEPS)

    def improve(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        inverse, _, steps = state
        _, _, slope, curvature = _moments(rows, params_PC, inverse)
        step = jnp.nan_to_num(slope / curvature)
        wanted = jnp.clip(inverse - step, inverse / _LONGEST_STEP, inverse * _LONGEST_STEP)
        wanted = jnp.clip(wanted, *_LIMITS)
        return wanted, wanted / inverse, steps + 1

    first = jnp.ones(()), jnp.zeros(()), jnp.zeros((), jnp.int32)
    inverse, _, _ = jax.lax.while_loop(is_unfinished, improve, first)
    accuracy, loss, _, _ = _moments(rows, params_PC, inverse)
    return accuracy, loss


@jax.jit
def score_all(rows: Rows, params_KPC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the `score` of each of K classifiers: accuracies (K,), losses (K,)."""
    return jax.lax.map(lambda params_PC: score(rows, params_PC), params_KPC)


def _moments(
    rows: Rows, params_PC: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns accuracy, loss, and the loss's two derivatives by the inverse temperature."""

    def add_block(sums: jax.Array, block: Rows) -> tuple[jax.Array, None]:
        features_BR, labels_B, weights_B = block
        precision = jax.lax.Precision.HIGHEST
        logits_BC = jnp.matmul(features_BR, params_PC[:-1], precision=precision) + params_PC[-1]
        margins_BC = logits_BC - jnp.take_along_axis(logits_BC, labels_B[:, None], axis=1)
        chances_BC = jax.nn.softmax(inverse * margins_BC)
        mean_B = jnp.sum(chances_BC * margins_BC, 1)
        spread_B = jnp.sum(chances_BC * jnp.square(margins_BC - mean_B[:, None]), 1)
        loss_B = jax.nn.logsumexp(inverse * margins_BC, axis=1)
        hits_B = (logits_BC.argmax(1) == labels_B).astype(jnp.float32)
        return sums + jnp.stack([hits_B, loss_B, mean_B, spread_B]) @ weights_B, None

    accuracy, loss, slope, curvature = jax.lax.scan(add_block, jnp.zeros(4), rows)[0]
    return accuracy, loss, slope, curvature
