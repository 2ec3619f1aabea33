"""Gradient of the global loss, for the whole batch at once or in micro-batches.

Shape letters: B pairs of the global batch, k micro-batches of m = B/k pairs, D width of the shared
space.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.adaptation.hooks import ADAPTER, entering
from clip_jax.adaptation.methods import Method
from clip_jax.adaptation.towers import entered
from clip_jax.errors import UserError
from clip_jax.losses import DEFAULT, LOSSES
from clip_jax.models.config import ClipConfig
from clip_jax.models.constraints import constrain_batch
from clip_jax.models.resnet import BATCH_STATISTICS
from clip_jax.models.two_tower import CLIPOutput, TwoTower, normalize_images
from clip_jax.sharding import constrain_like_params
from clip_jax.training.step.adversary import ADVERSARY, ADVERSARY_LOSS, GROUPS, adversary_loss
from clip_jax.training.step.parameter_groups import stop_frozen

Batch = dict[str, jax.Array]
Params = dict[str, Any]
Losses = dict[str, jax.Array]  # "loss", and ADVERSARY_LOSS if there is an adversary
WEIGHTS = "weights"  # (B,) float32 of a batch whose pairs have weights in the loss
ROWS = "rows"  # (B,) int32 of a batch: row numbers, which select the rows' random streams


@dataclasses.dataclass(frozen=True)
class Objective:
    """Loss of a run and the method for its gradient; hashable, without arrays."""

    config: ClipConfig
    loss: str = "softmax"
    implementation: str = DEFAULT
    microbatches: int = 1
    frozen: tuple[str, ...] = ()  # regular expressions of parameters without a gradient
    adapter: Method | None = None  # what is trained in place of the parameters
    adversary: float = 0.0  # factor of an adversary's reversed gradient


def _towers(
    objective: Objective, key: jax.Array, base: Params | None, params: Params, batch: Batch
) -> tuple[CLIPOutput, Any]:
    """Computes the embeddings of (part of) a batch, and the batch statistics that ResNets sow."""
    params = {name: leaf for name, leaf in params.items() if name != ADVERSARY}
    rngs = {"dropout": key}
    hooks: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if objective.adapter is None:
        # The compiler drops the backward pass of frozen parameters.
        variables = {"params": stop_frozen(params, objective.frozen)}
    else:
        variables = entered(base, params, objective.adapter.scale)
        rngs[ADAPTER] = jax.random.fold_in(key, batch[ROWS][0])  # other for each micro-batch
        hooks = entering(objective.adapter.dropout)
    with hooks:
        out, sown = TwoTower(objective.config).apply(
            variables,
            normalize_images(batch["images"], objective.config),
            batch["tokens"],
            train=True,
            rows=batch[ROWS],
            mutable=[BATCH_STATISTICS],
            rngs=rngs,
        )
    return out, sown.get(BATCH_STATISTICS, {})


def _loss(
    objective: Objective, out: CLIPOutput, batch: Batch, params: Params
) -> tuple[jax.Array, Losses]:
    """Returns the sum and the terms: the loss of the towers' output, weighted if the batch has
    weights, and that of an adversary if `params` has one."""
    loss = LOSSES[objective.loss]
    if WEIGHTS not in batch:
        value = loss.function(out, objective.implementation)
    else:
        assert loss.weighted is not None, "the configuration is checked"
        value = loss.weighted(out, objective.implementation, batch[WEIGHTS])
    if ADVERSARY not in params:
        return value, {"loss": value}
    images, groups = out.image_embeds, batch[GROUPS]
    other = adversary_loss(params[ADVERSARY], images, groups, objective.adversary)
    return value + other, {"loss": value, ADVERSARY_LOSS: other}


def loss_gradient(
    objective: Objective, params: Params, batch: Batch, key: jax.Array, base: Params | None = None
) -> tuple[Losses, Params, Any]:
    """Returns the losses, the gradient of their sum, and the batch statistics that ResNets sow
    (empty for others).

    `params` are the model's, or an adapter's of the model `base`, by which there is no gradient;
    beside them may be those of an adversary.

    `batch` is {"images": (B, S, S, 3) uint8, "tokens": (B, L) int32}, and may have "weights": (B,)
    float32 of the pairs, and for an adversary "groups": (B,) int32 of the images. Except for
    rounding, and for the dropout of an adapter, the result is the same for any number of
    micro-batches on any mesh. Raises `UserError` if it cannot be: a model with batch statistics in
    micro-batches.
    """
    batch = {**batch, ROWS: jnp.arange(len(batch["tokens"]), dtype=jnp.int32)}
    towers = functools.partial(_towers, objective, key, base)
    if objective.microbatches > 1:
        return *_cached_gradient(objective, towers, params, batch, base or {}), {}

    def loss(params: Params) -> tuple[jax.Array, Any]:
        out, statistics = towers(params, batch)
        total, losses = _loss(objective, out, batch, params)
        return total, (losses, statistics)

    grads, (losses, statistics) = jax.grad(loss, has_aux=True)(params)
    return losses, constrain_like_params(grads), statistics


def _cached_gradient(
    objective: Objective, towers: Any, params: Params, batch: Batch, base: Params
) -> tuple[Losses, Params]:
    """Computes the losses and their gradient part by part (GradCache, Gao et al. 2021).

    First come the embeddings of all parts, then the loss's gradient with respect to them, then each
    part again, forward and backward. Takes the memory of one part and of (B, D) embeddings. Both
    passes over a part use the same random keys.
    """
    count = objective.microbatches
    numbers = jnp.arange(count)

    def part(whole: jax.Array, number: jax.Array) -> jax.Array:
        """(B, …) -> (m, …): takes every k-th row, which moves nothing between devices."""
        rows = whole.reshape(-1, count, *whole.shape[1:])
        return constrain_batch(jax.lax.dynamic_index_in_dim(rows, number, 1, keepdims=False))

    def embed(params: Params, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, statistics = towers(params, {name: part(x, number) for name, x in batch.items()})
        if statistics:
            raise UserError(
                f"config.optimizer.microbatches={count}: the model normalises by the statistics of "
                "the whole batch, which its parts do not have; give 1, or "
                "config.model.vision.batch_norm='frozen'"
            )
        return out.image_embeds, out.text_embeds

    def whole(parts_kmD: jax.Array) -> jax.Array:
        """(k, m, D) -> (B, D), the inverse of `part`."""
        rows_mkD = parts_kmD.swapaxes(0, 1)
        return constrain_batch(rows_mkD.reshape(-1, rows_mkD.shape[-1]))

    _, parts = jax.lax.scan(lambda _, number: (None, embed(params, number)), None, numbers)

    def loss(embeds: tuple[jax.Array, jax.Array], scalars: Params) -> tuple[jax.Array, Losses]:
        scalars = stop_frozen({**base, **params, **scalars}, objective.frozen)
        bias = scalars.get("logit_bias", jnp.zeros((), jnp.float32))
        out = CLIPOutput(*embeds, jnp.exp(scalars["logit_scale"]), bias)
        return _loss(objective, out, batch, scalars)

    after_towers = ("logit_scale", "logit_bias", ADVERSARY)
    scalars = {name: params[name] for name in after_towers if name in params}
    embeds = jax.tree.map(whole, parts)
    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (cotangents, scalar_grads), losses = gradient(embeds, scalars)

    def add(grads: Params, number: jax.Array) -> tuple[Params, None]:
        _, pull_back = jax.vjp(lambda params: embed(params, number), params)
        (more,) = pull_back(jax.tree.map(lambda whole: part(whole, number), cotangents))
        return constrain_like_params(jax.tree.map(jnp.add, grads, more)), None

    zeros = constrain_like_params(jax.tree.map(jnp.zeros_like, params))
    grads, _ = jax.lax.scan(add, zeros, numbers)
    return losses, {**grads, **scalar_grads}
