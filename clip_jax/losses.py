"""Contrastive losses: pure functions of arrays, float32, over the global batch.

Shape letters: B pairs of the global batch, D width of the shared space.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def similarity_logits(
    image_embeds_BD: Array,
    text_embeds_BD: Array,
    logit_scale: Array,
    logit_bias: Array | float = 0.0,
) -> Array:
    """(B, D), (C, D), (), () -> (B, C) float32: scale·cosine + bias of every image with every
    text."""
    cosine_BC = jnp.matmul(
        image_embeds_BD.astype(jnp.float32),
        text_embeds_BD.astype(jnp.float32).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    return logit_scale * cosine_BC + logit_bias


def softmax_loss(image_embeds_BD: Array, text_embeds_BD: Array, logit_scale: Array) -> Array:
    """(B, D), (B, D), () -> (): the symmetric cross-entropy of CLIP (paper figure 3).

    The embeddings are L2-normalised, row i of one belongs to row i of the other, and `logit_scale`
    is exp(t). Each row's term is log-sum-exp minus the positive, a row-wise dot product: the B×B
    matrix of log-probabilities is never built (Oord et al. 2018 for the loss).
    """
    logits_BB = similarity_logits(image_embeds_BD, text_embeds_BD, logit_scale)
    positive_B = logit_scale * jnp.sum(
        image_embeds_BD.astype(jnp.float32) * text_embeds_BD.astype(jnp.float32), axis=-1
    )
    image_to_text_B = jax.nn.logsumexp(logits_BB, axis=1)
    text_to_image_B = jax.nn.logsumexp(logits_BB, axis=0)
    return jnp.mean(0.5 * (image_to_text_B + text_to_image_B) - positive_B)


def sigmoid_loss(
    image_embeds_BD: Array, text_embeds_BD: Array, logit_scale: Array, logit_bias: Array
) -> Array:
    """(B, D), (B, D), (), () -> (): the pairwise loss of SigLIP (Zhai et al. 2023, equation 1).

    Minus log sigmoid of +logit for pairs that belong together and of −logit for all others, summed
    over all B² pairs and divided by B.
    """
    logits_BB = similarity_logits(image_embeds_BD, text_embeds_BD, logit_scale, logit_bias)
    sign_BB = 2.0 * jnp.eye(logits_BB.shape[0], dtype=jnp.float32) - 1.0
    return -jnp.sum(jax.nn.log_sigmoid(sign_BB * logits_BB)) / logits_BB.shape[0]
