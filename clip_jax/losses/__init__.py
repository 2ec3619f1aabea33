"""Contrastive losses: pure functions of arrays, float32, over the global batch.

Implementations, all with the same value and gradient, on any mesh or none:

- dense: a device holds the logits of its rows with all texts, computed once;
- chunked: it holds a few columns at a time, and recomputes them for the gradient;
- ring: as chunked, but texts travel from device to device instead of being gathered.

With weights (B,), the softmax loss is the weighted mean of the pairs' terms, Σ w_i ℓ_i / Σ w; all
other pairs of the batch are negatives with weight 1, as before. The sigmoid loss weights each of
its B² terms by the mean of the two pairs' weights, ½(w_i + w_j), and divides by Σ w. So both have
half a pair's weight on the gradient through its image as an anchor and half through its text.
Weights of 1 give the same bits as no weights.

A `custom_vjp` computes the gradient along with the value: reverse mode only, first order only.

Shape letters: B pairs of the global batch, D width of the shared space.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.losses.blocks import Result, matmul
from clip_jax.losses.implementations import (
    gathered_sigmoid,
    gathered_softmax,
    ring_sigmoid,
    ring_softmax,
)
from clip_jax.losses.split import Split, ambient_split
from clip_jax.models.two_tower import CLIPOutput

Array = jax.Array

IMPLEMENTATIONS = ("dense", "ring", "chunked")
# Memory decides the default: 32,768 pairs on one v5e chip take 32 MiB chunked and 4.1 GiB dense
# (docs/scale.md), and the towers outweigh the extra arithmetic.
DEFAULT: Literal["chunked"] = "chunked"

# Blocks of logits have this size, within the widths that suit matrix units and networks.
_BLOCK_BYTES = 4 << 20
_MIN_COLUMNS, _MAX_COLUMNS = 256, 4096


def similarity_logits(
    image_embeds_BD: Array,
    text_embeds_BD: Array,
    logit_scale: Array,
    logit_bias: Array | float = 0.0,
) -> Array:
    """(B, D), (C, D), (), () -> (B, C) float32: scale·cosine + bias for all images and texts."""
    # The scale multiplies the (B, D) side, so that its gradient needs no second (B, C) matrix.
    logits_BC = matmul(
        logit_scale * image_embeds_BD.astype(jnp.float32), text_embeds_BD.astype(jnp.float32).T
    )
    return logits_BC + logit_bias


def effective_implementation(implementation: str, batch_shards: int) -> tuple[str, str | None]:
    """Returns the implementation that runs on a batch in `batch_shards` parts.

    The second value is a note if it is not the one asked for. Raises `UserError` for an unknown
    name.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"implementation={implementation!r}: must be one of {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation == "ring" and batch_shards == 1:
        return "chunked", (
            "loss implementation 'ring' needs a batch in two or more parts (data×fsdp); it is in "
            "one: 'chunked' is used, with the same result"
        )
    return implementation, None


def softmax_loss(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array,
    implementation: str = DEFAULT,
    weights: Array | None = None,
) -> Array:
    """(B, D), (B, D), () -> (): the symmetric cross-entropy of CLIP (paper figure 3).

    The embeddings are L2-normalised, row i of one belongs to row i of the other, and `logit_scale`
    is exp(t). Each row's term is the log-sum-exp minus the positive, a row-wise dot product, so
    the B×B matrix of log-probabilities is never built (loss: Oord et al. 2018).

    Under `jax.set_mesh` the rows are split over the mesh. `implementation` is one of
    `IMPLEMENTATIONS`; raises `UserError` for another, and for embeddings that are no pairs.
    `weights` (B,), of at least 0, have no gradient.
    """
    return _loss("softmax", implementation, image_embeds, text_embeds, weights, logit_scale)


def sigmoid_loss(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array,
    logit_bias: Array,
    implementation: str = DEFAULT,
    weights: Array | None = None,
) -> Array:
    """(B, D), (B, D), (), () -> (): the pairwise loss of SigLIP (Zhai et al. 2023, equation 1).

    −log sigmoid of +logit for matching pairs and of −logit for all others, summed over all B² pairs
    and divided by B.

    Under `jax.set_mesh` the rows are split over the mesh. `implementation` is one of
    `IMPLEMENTATIONS`; raises `UserError` for another, and for embeddings that are no pairs.
    All of them compute a block's gradient together with the block: no logit is kept or recomputed,
    and `dense` is `chunked`. `weights` (B,), of at least 0, have no gradient.
    """
    scalars = (logit_scale, logit_bias)
    return _loss("sigmoid", implementation, image_embeds, text_embeds, weights, *scalars)


class Loss(NamedTuple):
    """A loss that a run can train with.

    Attributes:
      function: maps the towers' output and the name of an implementation to () float32 over all
        pairs of the global batch.
      logit_bias_init: initial logit bias if the architecture names none; None for a loss without.
      weighted: the same with weights (B,) of the pairs; None for a loss that takes none.
    """

    function: Callable[[CLIPOutput, str], Array]
    logit_bias_init: float | None = None
    weighted: Callable[[CLIPOutput, str, Array], Array] | None = None


# The names for `config.loss`; a configuration file may add others.
LOSSES: dict[str, Loss] = {
    "softmax": Loss(
        lambda out, implementation: softmax_loss(*out[:3], implementation),
        weighted=lambda out, implementation, w: softmax_loss(*out[:3], implementation, w),
    ),
    "sigmoid": Loss(
        lambda out, implementation: sigmoid_loss(*out, implementation),
        -10.0,
        lambda out, implementation, w: sigmoid_loss(*out, implementation, w),
    ),
}

# The sigmoid loss has no use for stored logits, so its dense and chunked are the same.
_FUNCTIONS: dict[tuple[str, str], Callable[..., Result]] = {
    ("softmax", "dense"): partial(gathered_softmax, keep_logits=True),
    ("softmax", "chunked"): partial(gathered_softmax, keep_logits=False),
    ("softmax", "ring"): ring_softmax,
    ("sigmoid", "dense"): gathered_sigmoid,
    ("sigmoid", "chunked"): gathered_sigmoid,
    ("sigmoid", "ring"): ring_sigmoid,
}


class _Plan(NamedTuple):
    """Static arguments of a compiled loss."""

    loss: str
    implementation: str
    split: Split
    columns: int


def _loss(
    name: str,
    implementation: str,
    images: Array,
    texts: Array,
    weights: Array | None,
    *scalars: Array,
) -> Array:
    if images.ndim != 2 or images.shape != texts.shape:
        raise UserError(
            f"image_embeds {images.shape}, text_embeds {texts.shape}: must be of one shape (B, D), "
            "row i of one with row i of the other"
        )
    if weights is not None and weights.shape != images.shape[:1]:
        raise UserError(f"weights {weights.shape}: must be {images.shape[:1]}, one a pair")
    split = ambient_split(len(images))
    implementation, _ = effective_implementation(implementation, split.batch_shards)
    plan = _Plan(name, implementation, split, _columns(len(images) // split.shards))
    weights = None if weights is None else jnp.asarray(weights, jnp.float32)
    values = (jnp.asarray(x, jnp.float32) for x in scalars)
    return _differentiable(plan, images, texts, weights, *values)


def _columns(rows: int) -> int:
    """Returns the width of a block of logits with that many rows."""
    return min(max(_MIN_COLUMNS, _BLOCK_BYTES // (4 * rows)), _MAX_COLUMNS)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(plan: _Plan, *arrays: Array | None) -> Array:
    return _value_and_gradients(plan, *arrays)[0]


# The jit compiles the loss once even if the caller does not compile.
@partial(jax.jit, static_argnums=0)
def _value_and_gradients(plan: _Plan, *arrays: Array | None) -> Result:
    function = partial(_FUNCTIONS[plan.loss, plan.implementation], columns=plan.columns)
    value, gradients = plan.split.run(function, arrays[:3], arrays[3:])
    return value, jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, arrays)


def _backward(_: _Plan, gradients: Any, cotangent: Array) -> Any:
    return jax.tree.map(lambda gradient: (cotangent * gradient).astype(gradient.dtype), gradients)


_differentiable.defvjp(_value_and_gradients, _backward)
