"""Contrastive losses: pure functions of arrays, float32, over the global batch.

Shape letters: B pairs of the global batch, D width of the shared space.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clip_jax.errors import UserError

Array = jax.Array


def similarity_logits(
    image_embeds_BD: Array,
    text_embeds_BD: Array,
    logit_scale: Array,
    logit_bias: Array | float = 0.0,
) -> Array:
    """(B, D), (C, D), (), () -> (B, C) float32: scale·cosine + bias of every image with every
    text."""
    # The scale goes to the (B, D) side: its gradient then needs no second (B, C) matrix.
    logits_BC = jnp.matmul(
        logit_scale * image_embeds_BD.astype(jnp.float32),
        text_embeds_BD.astype(jnp.float32).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    return logits_BC + logit_bias


@jax.custom_vjp
def _mean_logsumexp(logits_BB: Array) -> Array:
    """(B, B) -> (B,): the mean of row i's log-sum-exp and column i's.

    Its own gradient, because the derived one keeps a matrix of exponentials for either direction.
    """
    return _mean_logsumexp_forward(logits_BB)[0]


def _mean_logsumexp_forward(logits_BB: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    row_B = jax.nn.logsumexp(logits_BB, axis=1)
    column_B = jax.nn.logsumexp(logits_BB, axis=0)
    return 0.5 * (row_B + column_B), (logits_BB, row_B, column_B)


def _mean_logsumexp_backward(
    residuals: tuple[Array, Array, Array], cotangent_B: Array
) -> tuple[Array]:
    logits_BB, row_B, column_B = residuals
    rows_BB = cotangent_B[:, None] * jnp.exp(logits_BB - row_B[:, None])
    columns_BB = cotangent_B * jnp.exp(logits_BB - column_B)
    return (0.5 * (rows_BB + columns_BB),)


_mean_logsumexp.defvjp(_mean_logsumexp_forward, _mean_logsumexp_backward)


def _check_implementation(implementation: str) -> None:
    if implementation != "dense":
        raise UserError(f"implementation={implementation!r}: only 'dense' is built so far")


def softmax_loss(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, implementation: str = "dense"
) -> Array:
    """(B, D), (B, D), () -> (): the symmetric cross-entropy of CLIP (paper figure 3).

    The embeddings are L2-normalised, row i of one belongs to row i of the other, and `logit_scale`
    is exp(t). Each row's term is log-sum-exp minus the positive, a row-wise dot product: the B×B
    matrix of log-probabilities is never built (Oord et al. 2018 for the loss).
    """
    _check_implementation(implementation)
    logits_BB = similarity_logits(image_embeds, text_embeds, logit_scale)
    scaled_BD = logit_scale * image_embeds.astype(jnp.float32)
    positive_B = jnp.sum(scaled_BD * text_embeds.astype(jnp.float32), axis=-1)
    return jnp.mean(_mean_logsumexp(logits_BB) - positive_B)


def sigmoid_loss(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array,
    logit_bias: Array,
    implementation: str = "dense",
) -> Array:
    """(B, D), (B, D), (), () -> (): the pairwise loss of SigLIP (Zhai et al. 2023, equation 1).

    Minus log sigmoid of +logit for pairs that belong together and of −logit for all others, summed
    over all B² pairs and divided by B.
    """
    _check_implementation(implementation)
    logits_BB = similarity_logits(image_embeds, text_embeds, logit_scale, logit_bias)
    positive_BB = jnp.eye(logits_BB.shape[0], dtype=bool)
    return jnp.sum(jax.nn.softplus(jnp.where(positive_BB, -logits_BB, logits_BB))) / len(logits_BB)
