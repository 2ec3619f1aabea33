"""One update: normalise, two towers, global loss, AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax.losses import sigmoid_loss, softmax_loss
from clip_jax.models.config import ClipConfig
from clip_jax.models.resnet import BATCH_STATISTICS, update_running_statistics
from clip_jax.models.two_tower import CLIPOutput, TwoTower
from clip_jax.training.state import TrainState

MAX_LOGIT_SCALE = math.log(100)  # paper section 2.5

LOSSES: dict[str, Callable[[CLIPOutput], jax.Array]] = {
    "softmax": lambda out: softmax_loss(out.image_embeds, out.text_embeds, out.logit_scale),
    "sigmoid": lambda out: sigmoid_loss(
        out.image_embeds, out.text_embeds, out.logit_scale, out.logit_bias
    ),
}

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def normalize_images(images: jax.Array, config: ClipConfig) -> jax.Array:
    """(B, S, S, 3) uint8 -> float32: scaled to [0, 1], minus mean, over standard deviation."""
    mean, std = jnp.asarray(config.image_mean), jnp.asarray(config.image_std)
    # One multiplication and one addition a pixel: (x/255 − mean)/std.
    return images.astype(jnp.float32) * (1 / (255 * std)) - mean / std


def loss_and_statistics(
    params: Any, batch: Batch, config: ClipConfig, loss: str
) -> tuple[jax.Array, Any]:
    """The loss of a global batch, and the batch statistics that ResNets sow (empty for others)."""
    out, sown = TwoTower(config).apply(
        {"params": params},
        normalize_images(batch["images"], config),
        batch["tokens"],
        train=True,
        mutable=[BATCH_STATISTICS],
    )
    return LOSSES[loss](out), sown.get(BATCH_STATISTICS, {})


def make_train_step(
    config: ClipConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    loss: str = "softmax",
    ema_decay: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, {"images": (B, S, S, 3) uint8, "tokens": (B, L) int32}) -> (state, metrics).

    Pure; jit it under a mesh with donated state. When the loss or the gradient is not finite, the
    state comes back unchanged but for `failed`, and stays so: the host looks at step n only after
    it has dispatched n + 1, and must still find the last good state.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (value, statistics), grads = jax.value_and_grad(loss_and_statistics, has_aux=True)(
            state.params, batch, config, loss
        )
        grad_norm = optax.tree.norm(grads)
        failed = state.failed | ~jnp.isfinite(value) | ~jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params["logit_scale"] = jnp.clip(params["logit_scale"], 0.0, MAX_LOGIT_SCALE)
        params = update_running_statistics(params, statistics)
        updated = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=_ema(state, params, ema_decay),
        )
        metrics = {
            "loss": value,
            "grad_norm": grad_norm,
            "logit_scale": jnp.exp(state.params["logit_scale"]),
            "learning_rate": schedule(state.step),
            "failed": failed,
        }
        kept = jax.tree.map(
            lambda new, old: jnp.where(failed, old, new),
            updated.replace(key=None),
            state.replace(key=None),
        )
        return kept.replace(key=state.key, failed=failed), metrics

    return train_step


def _ema(state: TrainState, params: Any, decay: float | None) -> Any:
    """The moving average after this step; early on it follows faster, so that it forgets the
    start."""
    if decay is None:
        return None
    count = state.step.astype(jnp.float32)
    now = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda old, new: now * old + (1 - now) * new, state.ema_params, params)
