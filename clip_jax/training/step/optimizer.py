"""Optimizer of a run: clipping, a named optimizer, decoupled decay, rates by layer, freezing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clip_jax.models.two_tower import is_buffer
from clip_jax.sharding import path_of
from clip_jax.training.config import OptimizerConfig
from clip_jax.training.step.named_optimizer import muon_rate, named_optimizer
from clip_jax.training.step.parameter_groups import (
    WITHOUT_LOSS,
    frozen_mask,
    rate_multipliers,
    weight_decays,
)


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over the warm-up, then a cosine to 0 at `steps`."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, 1),
        end_value=0.0,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Makes the transformation of gradients into updates to be added to the parameters.

    Clipping by the global norm of trained gradients, then the optimizer `config.name` without its
    own weight decay, give u. With the schedule's learning rate r, a parameter w of decay d and
    multiplier m (see `rate_multipliers`) gets

        w <- w + m·(u - r·d·w)

    which for AdamW is Loshchilov and Hutter (2019). Decay never passes through the optimizer, even
    if optax would do so. Frozen parameters and running statistics get 0 and have no state; every
    path in the state ends in the path of its parameter.

    Raises `UserError` as `named_optimizer` does, and from `init` and `update` for a pattern of
    `config.freeze` that matches nothing.
    """
    schedule = learning_rate_schedule(config, steps)
    optimizer = named_optimizer(config, schedule)
    if config.clip_norm is not None:
        optimizer = optax.chain(_clip_by_global_norm(config.clip_norm), optimizer)
    parts = {"trained": optimizer, "fixed": optax.set_to_zero()}

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda fixed: "fixed" if fixed else "trained", _fixed(params, config))

    return optax.chain(optax.partition(parts, labels), _decay_and_scale(config, schedule))


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Clips gradients: g -> g·min(1, limit / ‖g‖), ‖g‖ over all leaves.

    Unlike `optax.clip_by_global_norm`, multiplies by a single factor, which the compiler fuses into
    the optimizer's reads of g; optax's quotient writes all gradients again, in separate kernels.
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, limit / optax.tree.norm(grads))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _fixed(params: Any, config: OptimizerConfig) -> Any:
    """Mask of leaves that no optimizer updates: frozen, running statistics, reached by no loss."""
    return jax.tree_util.tree_map_with_path(
        lambda path, frozen: frozen or is_buffer(path) or bool(WITHOUT_LOSS.match(path_of(path))),
        frozen_mask(params, config.freeze),
    )


class DecayState(NamedTuple):
    """State of weight decay: the step of the schedule."""

    step: jax.Array  # () int32


def _decay_and_scale(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Applies u -> m·(u - r·d·w) to every w that is not fixed."""

    def update(updates: Any, state: DecayState, params: Any) -> tuple[Any, DecayState]:
        rate = schedule(state.step)

        def leaf(u: jax.Array, w: jax.Array, d: float, m: Any, n: float, fixed: bool) -> jax.Array:
            if fixed:
                return u
            if d:
                u = u - rate * d * w
            return u if isinstance(m, float) and m * n == 1 else u * (m * n)

        updates = jax.tree.map(
            leaf,
            updates,
            params,
            weight_decays(params, config),
            rate_multipliers(params, config),
            muon_rate(config, params),
            _fixed(params, config),
        )
        return updates, DecayState(optax.safe_increment(state.step))

    return optax.GradientTransformation(lambda _: DecayState(jnp.zeros((), jnp.int32)), update)
