"""State that a training step reads and writes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.adaptation.methods import Method
from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import init_params
from clip_jax.sharding import tree_shardings
from clip_jax.training.step.adversary import Adversary


class TrainState(flax.struct.PyTreeNode):
    """Pytree of arrays, without functions or configuration."""

    step: jax.Array  # () int32: number of updates done
    params: Any  # float32, what is trained: all of the model, or an adapter
    opt_state: Any
    ema_params: Any  # like params, or None
    key: jax.Array  # () typed random key, into which a step folds its number
    failed: jax.Array  # () bool: a loss or gradient was not finite, and nothing has changed since
    adversary: Adversary | None = None  # it learns beside `params`
    base: Any = None  # float32, never changed: parameters of the model of an adapter

    @property
    def eval_params(self) -> Any:
        """Arrays to evaluate and export: the moving average of `params` if there is one."""
        return self.params if self.ema_params is None else self.ema_params


def create_state(
    config: ClipConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema: bool,
    adapter: Method | None = None,
    model: Any = None,
) -> TrainState:
    """Makes a fresh state; pure, see `sharded_state`.

    Its parameters are those of `model`, by default random; with an `adapter` they are the base.
    Raises `UserError` for an adapter that the architecture cannot have.
    """
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params, base = init_params(config, init_key) if model is None else model, None
    if adapter is not None:
        try:
            params, base = adapter.init(config, params, init_key), params
        except UserError as error:
            raise UserError(f"config.adapter: {error}") from error
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        key=step_key,
        failed=jnp.zeros((), bool),
        base=base,
    )


def abstract_state(
    mesh: Mesh,
    config: ClipConfig,
    optimizer: optax.GradientTransformation,
    ema: bool,
    adapter: Method | None = None,
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating it."""
    shapes = jax.eval_shape(lambda: create_state(config, optimizer, 0, ema, adapter))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(mesh, shapes),
    )


def sharded_state(
    mesh: Mesh, config: ClipConfig, optimizer: optax.GradientTransformation, seed: int, ema: bool
) -> TrainState:
    """Makes a fresh state directly on its shards, so that no device ever holds all of it."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(mesh, config, optimizer, ema))
    return jax.jit(lambda: create_state(config, optimizer, seed, ema), out_shardings=shardings)()
