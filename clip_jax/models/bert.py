"""BERT, RoBERTa and XLM-RoBERTa as text towers (Devlin et al. 2019; Liu et al. 2019).

Blocks normalise after each residual sum; attention is bidirectional and masks padding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.attention import Context
from clip_jax.models.constraints import embed
from clip_jax.models.heads import project
from clip_jax.models.kinds import BertConfig, SharedConfig
from clip_jax.models.text import text_block_config
from clip_jax.models.transformer import stack


def position_ids(tokens_BL: jax.Array, config: BertConfig) -> jax.Array:
    """(B, L) int -> (B, L) int rows of the position table.

    BERT counts from 0. RoBERTa (`position_offset` > 0) counts real tokens only, from the
    offset on, and gives padding the row before it.
    """
    if not config.position_offset:
        return jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    real_BL = (tokens_BL != config.pad_id).astype(jnp.int32)
    return jnp.cumsum(real_BL, axis=1) * real_BL + config.position_offset - 1


class BertTextTransformer(nn.Module):
    """(B, L) int token ids -> (B, embed_dim) in the compute dtype, not normalised.

    With `with_tokens`, also the outputs (B, L, D) of the last block. `pool`: "first" reads
    token 0, "pooler" sends it through a Linear and tanh, "mean" averages all but padding.
    """

    config: BertConfig
    shared: SharedConfig

    @nn.compact
    def __call__(self, tokens_BL: jax.Array, with_tokens: bool = False) -> Any:
        config, shared, dtype = self.config, self.shared, jnp.dtype(self.shared.dtype)
        width, normal = config.width, nn.initializers.normal(0.02)
        real_BL = tokens_BL != config.pad_id

        def table(name: str, rows: int) -> jax.Array:
            return self.param(name, normal, (rows, width), jnp.float32)

        # The sum of the three tables stays in float32 up to the first norm.
        words = table("token_embedding", shared.vocab_size)
        x_BLD = embed(words, tokens_BL, jnp.dtype(jnp.float32))
        rows_BL = position_ids(tokens_BL, config)
        positions = table("positions", config.position_rows(shared.context_length))
        x_BLD += jnp.take(positions, rows_BL, axis=0)
        x_BLD += table("token_types", config.token_types)[0]  # a single text has type 0
        norm = nn.LayerNorm(shared.norm_eps, dtype=dtype, name="embedding_norm")
        blocks = stack(config.layers, text_block_config(config, shared), shared)
        x_BLD = blocks(norm(x_BLD), Context(mask=real_BL[:, None, None, :]))

        pooled_BD = self._pool(x_BLD, real_BL)
        hidden = (width + shared.embed_dim) // 2
        embedding = project(self, pooled_BD, config.projection, hidden, shared.embed_dim, normal)
        return (embedding, x_BLD) if with_tokens else embedding

    def _pool(self, x_BLD: jax.Array, real_BL: jax.Array) -> jax.Array:
        if self.config.pool == "mean":
            weights_BL1 = real_BL[:, :, None].astype(jnp.float32)
            total_BD = (x_BLD.astype(jnp.float32) * weights_BL1).sum(axis=1)
            return (total_BD / jnp.maximum(weights_BL1.sum(axis=1), 1)).astype(x_BLD.dtype)
        if self.config.pool == "first":
            return x_BLD[:, 0]
        init = nn.initializers.normal(0.02)
        dense = nn.Dense(x_BLD.shape[-1], dtype=x_BLD.dtype, kernel_init=init, name="pooler")
        return jnp.tanh(dense(x_BLD[:, 0]))
