"""Everything that a training step reads and writes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import init_params
from clip_jax.sharding import tree_shardings


class TrainState(flax.struct.PyTreeNode):
    """A pytree of arrays; no functions, no configuration."""

    step: jax.Array  # () int32: updates done
    params: Any  # float32
    opt_state: Any
    ema_params: Any  # like params, or None
    key: jax.Array  # () typed random key; a step folds its number into it
    failed: jax.Array  # () bool: a loss or gradient was not finite, and nothing has changed since

    @property
    def eval_params(self) -> Any:
        """What is evaluated and exported: the moving average where there is one."""
        return self.params if self.ema_params is None else self.ema_params


def create_state(
    config: ClipConfig, optimizer: optax.GradientTransformation, seed: int, ema: bool
) -> TrainState:
    """A fresh state. Pure: see `sharded_state`."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = init_params(config, init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        key=step_key,
        failed=jnp.zeros((), bool),
    )


def abstract_state(
    mesh: Mesh, config: ClipConfig, optimizer: optax.GradientTransformation, ema: bool
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without a byte of memory."""
    shapes = jax.eval_shape(lambda: create_state(config, optimizer, 0, ema))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(mesh, shapes),
    )


def sharded_state(
    mesh: Mesh, config: ClipConfig, optimizer: optax.GradientTransformation, seed: int, ema: bool
) -> TrainState:
    """A fresh state that is born on its shards: no device ever holds the whole of it."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(mesh, config, optimizer, ema))
    return jax.jit(lambda: create_state(config, optimizer, seed, ema), out_shardings=shardings)()
