"""Logistic regression for a falling sequence of penalties, as one compiled program of L-BFGS.

The solutions of two penalties are where the search for the next one starts. On the benchmark that
takes a tenth of the evaluations that penalties side by side take, each from zero, and none waits
for another. What does go side by side, by `jax.vmap`, are problems that differ in their weights of
rows, such as the seeds and shots of a few-shot probe.

Features are white, so that a diagonal estimate of the Hessian is a good first one. The line search
looks at slopes only, since near the optimum a difference of two losses has no digit left in
float32; convexity makes that safe. `optax.lbfgs` under `vmap` would compute both branches of its
line search, and so two gradients a trial.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MAX_EVALUATIONS = 3000  # of a penalty; one that is much weaker than any of use may take hundreds
HISTORY = 10  # pairs of steps and changes of gradient; scipy's number
# A step is too long if the slope at its end is this share of that at its start, but upwards.
OVERSHOOT = 0.9
_TINY = 1e-30


class Rows(NamedTuple):
    """Training rows in N blocks of B rows, which are evenly over the devices."""

    features_NBR: jax.Array  # float32, white: mean 0, covariance I
    labels_NB: jax.Array  # int32
    weights_NB: jax.Array  # float32, of sum 1; rows that only fill a block weigh 0


class _State(NamedTuple):
    """State of the search; P = R + 1 rows of parameters, the last of which is the bias."""

    number: jax.Array  # () int32: the penalty that is being solved
    evaluations: jax.Array  # () int32: how many this penalty has taken
    params_PC: jax.Array  # the last accepted point, its gradient, and a direction downwards
    gradient_PC: jax.Array
    direction_PC: jax.Array
    slope: jax.Array  # () along the direction, at most 0
    step: jax.Array  # () length of the next trial
    steps_HPC: jax.Array  # history, a ring
    changes_HPC: jax.Array
    curvatures_H: jax.Array  # 1 / <step, change>; 0: no pair
    newest: jax.Array  # () int32: pairs ever written
    solutions_KPC: jax.Array
    counts_K: jax.Array  # int32: evaluations that each penalty took


@jax.jit
def solve_path(
    rows: Rows,
    inverse_spectrum_R: jax.Array,
    l2_K: jax.Array,
    tolerance_K: jax.Array,
    count: int,
    start_PC: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Minimises weighted cross-entropy + l2/2·Σ weight²·inverse_spectrum for falling `l2_K`.

    Only the first `count` penalties are solved, so that sweeps of about one length share a program.
    The first search begins at `start_PC`. A penalty is solved at a squared distance to the optimum
    of its tolerance, in the norm of the Hessian, relative to the loss and to the squared length of
    the solution.

    Returns solutions float32 (K, P, C) and the evaluations that each took, int32 (K,); one that
    took `MAX_EVALUATIONS` is not solved.
    """
    penalty_P1 = jnp.append(inverse_spectrum_R, 0.0)[:, None]
    # Solutions are nearly linear in the logarithm of the penalty, over short distances.
    log_l2_K = jnp.log(l2_K)
    ratios = (log_l2_K[2:] - log_l2_K[1:-1]) / (log_l2_K[1:-1] - log_l2_K[:-2])
    ratios_K = jnp.append(jnp.zeros(min(2, len(l2_K))), jnp.where(ratios <= 2, ratios, 0.0))

    def body(state: _State) -> _State:
        l2_P1 = l2_K[state.number] * penalty_P1
        params = state.params_PC + state.step * state.direction_PC
        loss, gradient, curvature_C = _loss_and_gradient(rows, params, l2_P1)
        slope = jnp.vdot(gradient, state.direction_PC)
        accepted = slope <= -OVERSHOOT * state.slope
        state = _remember(state, gradient, accepted)

        inverse_PC = 1 / (curvature_C + l2_P1 + _TINY)
        direction = _direction(state, gradient, inverse_PC)
        decrement = -jnp.vdot(gradient, direction)
        length = jnp.vdot(params, params / inverse_PC)
        evaluations = state.evaluations + 1
        is_solved = decrement <= tolerance_K[state.number] * jnp.minimum(loss, length)
        is_last = accepted & is_solved | (evaluations >= MAX_EVALUATIONS)
        solutions = state.solutions_KPC.at[state.number].set(params)
        before = solutions[jnp.maximum(state.number - 1, 0)]
        number = jnp.where(is_last, state.number + 1, state.number)
        ratio = ratios_K[jnp.minimum(number, len(l2_K) - 1)]

        shorter = jnp.clip(state.slope / (state.slope - slope), 0.1, 0.9)
        chosen = functools.partial(_chosen, is_last, accepted)
        return _State(
            number,
            jnp.where(is_last, 0, evaluations),
            chosen(params + ratio * (params - before), params, state.params_PC),
            chosen(gradient, gradient, state.gradient_PC),
            chosen(jnp.zeros_like(direction), direction, state.direction_PC),
            chosen(0.0, -decrement, state.slope),
            chosen(1.0, 1.0, state.step * shorter),
            state.steps_HPC,
            state.changes_HPC,
            jnp.where(is_last, 0.0, state.curvatures_H),
            state.newest,
            solutions,
            state.counts_K.at[state.number].set(evaluations),
        )

    zeros = jnp.zeros_like(start_PC)
    history = jnp.zeros((HISTORY, *start_PC.shape))
    solutions = jnp.zeros((len(l2_K), *start_PC.shape))
    first = _State(
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        start_PC,
        zeros,
        zeros,
        jnp.zeros(()),
        jnp.ones(()),
        history,
        history,
        jnp.zeros(HISTORY),
        jnp.zeros((), jnp.int32),
        solutions,
        jnp.zeros(len(l2_K), jnp.int32),
    )
    last = jax.lax.while_loop(lambda state: state.number < count, body, first)
    return last.solutions_KPC, last.counts_K


def _chosen(is_last: jax.Array, accepted: jax.Array, next_penalty: Any, after: Any, same: Any):
    """Picks the value for the next penalty's start, for the point after a step, or for a retry."""
    return jnp.where(is_last, next_penalty, jnp.where(accepted, after, same))


def _loss_and_gradient(
    rows: Rows, params_PC: jax.Array, l2_P1: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the loss (), its gradient (P, C), and the mean of p·(1 − p) of each class (C,)."""

    def add_block(sums: Any, block: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, _block_sums(params_PC, *block)), None

    zeros = jnp.zeros(()), jnp.zeros_like(params_PC), jnp.zeros(params_PC.shape[1])
    (loss, gradient, curvature_C), _ = jax.lax.scan(add_block, zeros, tuple(rows))
    loss += 0.5 * jnp.sum(l2_P1 * jnp.square(params_PC))
    return loss, gradient + l2_P1 * params_PC, curvature_C


def _block_sums(
    params_PC: jax.Array, features_BR: jax.Array, labels_B: jax.Array, weights_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One block's part of the loss (), the gradient (P, C) and the curvature (C,).

    Nothing is a difference of near values: both 1 − p of the label and a loss near 0 are sums over
    the other classes. So separable rows, which a weak penalty fits to losses of 1e-7, keep their
    digits.
    """
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    logits_BC = matmul(features_BR, params_PC[:-1]) + params_PC[-1]
    is_label = labels_B[:, None] == jnp.arange(params_PC.shape[1])
    of_label = jnp.sum(jnp.where(is_label, logits_BC, 0.0), 1, keepdims=True)
    margins_BC = jnp.where(is_label, -jnp.inf, logits_BC - of_label)
    largest_B1 = jnp.maximum(margins_BC.max(1, keepdims=True), 0.0)
    others_BC = jnp.exp(margins_BC - largest_B1)  # odds of the other classes, against the label
    odds_B1 = others_BC.sum(1, keepdims=True)
    total_B1 = odds_B1 + jnp.expm1(-largest_B1)  # exp(loss − largest) − 1
    losses_B = (largest_B1 + jnp.log1p(total_B1))[:, 0]
    errors_BC = jnp.where(is_label, odds_B1, others_BC) / (1 + total_B1)  # |p − target|
    curvature_C = weights_B @ (errors_BC * (1 - errors_BC))
    residuals_BC = jnp.where(is_label, -errors_BC, errors_BC) * weights_B[:, None]
    gradient = matmul(features_BR.T, residuals_BC)
    gradient_PC = jnp.concatenate([gradient, residuals_BC.sum(0, keepdims=True)])
    return weights_B @ losses_B, gradient_PC, curvature_C


def _remember(state: _State, gradient: jax.Array, accepted: jax.Array) -> _State:
    """Adds the accepted step to the history; the first point of a penalty has no step."""
    step = state.step * state.direction_PC
    change = gradient - state.gradient_PC
    product = jnp.vdot(step, change)
    is_pair = accepted & (product > _TINY)
    at = state.newest % HISTORY

    def put(ring: jax.Array, value: jax.Array) -> jax.Array:
        return ring.at[at].set(jnp.where(is_pair, value, ring[at]))

    return state._replace(
        steps_HPC=put(state.steps_HPC, step),
        changes_HPC=put(state.changes_HPC, change),
        curvatures_H=put(state.curvatures_H, 1 / jnp.maximum(product, _TINY)),
        newest=state.newest + is_pair,
    )


def _direction(state: _State, gradient: jax.Array, inverse_PC: jax.Array) -> jax.Array:
    """Direction of L-BFGS (Nocedal & Wright 2006, algorithm 7.4), from a diagonal inverse Hessian.

    Pairs whose curvature is 0 change nothing.
    """

    def back(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        vector, alphas = carry
        at = (state.newest - 1 - i) % HISTORY
        alpha = state.curvatures_H[at] * jnp.vdot(state.steps_HPC[at], vector)
        return vector - alpha * state.changes_HPC[at], alphas.at[i].set(alpha)

    def forth(i: jax.Array, vector: jax.Array, alphas: jax.Array) -> jax.Array:
        at = (state.newest - HISTORY + i) % HISTORY
        beta = state.curvatures_H[at] * jnp.vdot(state.changes_HPC[at], vector)
        return vector + (alphas[HISTORY - 1 - i] - beta) * state.steps_HPC[at]

    vector, alphas = jax.lax.fori_loop(0, HISTORY, back, (gradient, jnp.zeros(HISTORY)))
    vector *= inverse_PC
    return -jax.lax.fori_loop(0, HISTORY, functools.partial(forth, alphas=alphas), vector)
