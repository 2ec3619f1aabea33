"""Compiled training step of a configuration, for runs and pre-flights."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.models.config import ClipConfig
from clip_jax.models.flops import step_flops
from clip_jax.models.two_tower import param_shapes
from clip_jax.sharding import batch_sharding
from clip_jax.training.config import TrainConfig
from clip_jax.training.step.adapter import adapter_method
from clip_jax.training.step.adversary import GROUPS, abstract_adversary
from clip_jax.training.step.gradient import WEIGHTS, Objective
from clip_jax.training.step.optimizer import learning_rate_schedule, make_optimizer
from clip_jax.training.step.parameter_groups import frozen_mask
from clip_jax.training.step.state import TrainState, abstract_state
from clip_jax.training.step.update import make_train_step


def abstract_run_state(
    config: TrainConfig, architecture: ClipConfig, mesh: Mesh, steps: int
) -> TrainState:
    """Shapes, dtypes and shardings of the state of a run of `steps` steps."""
    optimizer, ema = make_optimizer(config.optimizer, steps), config.optimizer.ema_decay is not None
    state = abstract_state(mesh, architecture, optimizer, ema, adapter_method(config.adapter))
    if config.adversary.field is None:
        return state
    groups = len(config.adversary.groups)
    return state.replace(adversary=abstract_adversary(mesh, architecture.embed_dim, groups))


def abstract_batch(
    config: TrainConfig, architecture: ClipConfig, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a global batch."""
    size, count = architecture.image_size, config.batch_size
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "images": ((count, size, size, 3), jnp.uint8),
        "tokens": ((count, architecture.context_length), jnp.int32),
    }
    if config.data.sample_weight is not None:
        shapes[WEIGHTS] = ((count,), jnp.float32)
    if config.adversary.field is not None:
        shapes[GROUPS] = ((count,), jnp.int32)
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def run_flops(config: TrainConfig, architecture: ClipConfig) -> float:
    """Model FLOPs of one training step; see `step_flops`."""
    frozen = frozen_mask(param_shapes(architecture), config.optimizer.freeze)
    towers = [name for name in ("vision", "text") if all(jax.tree.leaves(frozen[name]))]
    backward = 2 if config.adapter.method is None else 1
    return step_flops(architecture, config.batch_size, towers, backward)


def jit_train_step(config: TrainConfig, architecture: ClipConfig, mesh: Mesh, steps: int) -> Any:
    """Returns a run's jitted step, (state, batch) -> (state, metrics), which donates the state.

    Call it, or `.lower(abstract_run_state(…), abstract_batch(…)).compile()` it, inside
    `jax.set_mesh(mesh)`.
    """
    objective = Objective(
        architecture,
        config.loss,
        config.loss_implementation,
        config.optimizer.microbatches,
        config.optimizer.freeze,
        adapter_method(config.adapter),
        config.adversary.weight,
    )
    step = make_train_step(
        objective,
        make_optimizer(config.optimizer, steps),
        learning_rate_schedule(config.optimizer, steps),
        config.optimizer.ema_decay,
    )
    state = abstract_run_state(config, architecture, mesh, steps)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    # Otherwise the compiler would choose its own shardings for derived optimizer state (factored
    # moments), which the next step would not accept.
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
    )
