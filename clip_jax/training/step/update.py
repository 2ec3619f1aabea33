"""Training step: the gradient of the global loss, then the optimizer."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax.models.resnet import update_running_statistics
from clip_jax.training.step.adversary import ADVERSARY, learned
from clip_jax.training.step.gradient import Batch, Objective, loss_gradient
from clip_jax.training.step.parameter_groups import keep_frozen
from clip_jax.training.step.state import TrainState

MAX_LOGIT_SCALE = math.log(100)  # paper section 2.5

Metrics = dict[str, jax.Array]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the pure function (state, batch) -> (state, metrics) of one step.

    `batch` is {"images": (B, S, S, 3) uint8, "tokens": (B, L) int32}. Jit it under a mesh with
    donated state. If the loss or gradient is not finite, only `failed` changes, and later steps
    change nothing: the host reads step n only after dispatching n + 1, and must still find the last
    good state.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Returns the next state, and the metrics of the one before; see `make_train_step`."""
        key = jax.random.fold_in(state.key, state.step)
        trained, adversary = state.params, state.adversary
        if adversary is not None:
            trained = {**trained, ADVERSARY: adversary.params}
        losses, grads, statistics = loss_gradient(objective, trained, batch, key, state.base)
        if adversary is not None:
            adversary = learned(adversary, grads.pop(ADVERSARY))
        grad_norm = optax.tree.norm(grads)
        failed = state.failed | ~jnp.isfinite(losses["loss"]) | ~jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if state.base is None:
            params["logit_scale"] = jnp.clip(params["logit_scale"], 0.0, MAX_LOGIT_SCALE)
            params = update_running_statistics(params, statistics)
            params = keep_frozen(params, state.params, objective.frozen)
        updated = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            adversary=adversary,
            ema_params=_ema(state, params, ema_decay, objective.frozen),
        )
        metrics = {
            **losses,
            "grad_norm": grad_norm,
            "logit_scale": jnp.exp((state.base or state.params)["logit_scale"]),
            "learning_rate": schedule(state.step),
            "failed": failed,
        }
        kept = jax.tree.map(
            lambda new, old: jnp.where(failed, old, new),
            updated.replace(key=None, base=None),
            state.replace(key=None, base=None),
        )
        return kept.replace(key=state.key, failed=failed, base=state.base), metrics

    return train_step


def _ema(state: TrainState, params: Any, decay: float | None, frozen: tuple[str, ...]) -> Any:
    """Moving average after this step; it follows faster early on, to forget the start."""
    if decay is None:
        return None
    count = state.step.astype(jnp.float32)
    now = jnp.minimum(decay, (1 + count) / (10 + count))
    average = jax.tree.map(lambda old, new: now * old + (1 - now) * new, state.ema_params, params)
    return keep_frozen(average, state.ema_params, frozen)
