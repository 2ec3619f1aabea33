"""The text tower (paper section 2.4): a Transformer whose feature is read at the end-of-text
token."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.architectures import ClipConfig
from clip_jax.models.transformer import Transformer


def pool_positions(tokens_BL: jax.Array, config: ClipConfig) -> jax.Array:
    """(B, L) int -> (B,) int: the position whose output stands for the caption.

    "argmax" reads the largest id (OpenAI: end-of-text is the last entry of the vocabulary), "eos"
    the first `eos_id`, "last" the last position.
    """
    if config.text_pool == "argmax":
        return jnp.argmax(tokens_BL, axis=-1)
    if config.text_pool == "eos":
        return jnp.argmax(tokens_BL == config.eos_id, axis=-1)
    return jnp.full(tokens_BL.shape[0], tokens_BL.shape[1] - 1)


class TextTransformer(nn.Module):
    """(B, L) int token ids -> (B, embed_dim) in the compute dtype, not normalised. L <=
    context_length."""

    config: ClipConfig

    @nn.compact
    def __call__(self, tokens_BL: jax.Array) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width = config.text_width
        table = self.param(
            "token_embedding", nn.initializers.normal(0.02), (config.vocab_size, width), jnp.float32
        )
        positions = self.param(
            "positions", nn.initializers.normal(0.01), (config.context_length, width), jnp.float32
        )
        x_BLD = jnp.take(table, tokens_BL, axis=0).astype(dtype)
        x_BLD += positions[: tokens_BL.shape[1]].astype(dtype)

        x_BLD = Transformer(
            layers=config.text_layers,
            heads=config.text_heads,
            mlp_dim=config.text_mlp_dim,
            causal=config.text_causal,
            activation=config.text_activation,
            norm_eps=config.norm_eps,
            dtype=dtype,
            scaled_init=True,
            scan_layers=config.scan_layers,
            remat=config.remat,
            name="transformer",
        )(x_BLD)

        # LayerNorm acts on each token alone, so that only the pooled token needs it.
        at = pool_positions(tokens_BL, config)
        pooled_BD = jnp.take_along_axis(x_BLD, at[:, None, None], axis=1)[:, 0]
        pooled_BD = nn.LayerNorm(config.norm_eps, dtype=dtype, name="final_norm")(pooled_BD)
        projection = self.param(
            "projection",
            nn.initializers.normal(width**-0.5),
            (width, config.embed_dim),
            jnp.float32,
        )
        return pooled_BD @ projection.astype(dtype)
