"""Text tower (paper section 2.4): a Transformer whose feature is read at the end-of-text token."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.models.attention import BlockConfig, Context
from clip_jax.models.constraints import embed
from clip_jax.models.heads import project
from clip_jax.models.kinds import BertConfig, SharedConfig, TextConfig, TransformerTextConfig
from clip_jax.models.transformer import stack


def pool_positions(tokens_BL: jax.Array, config: TransformerTextConfig) -> jax.Array:
    """(B, L) int -> (B,) int: the position whose output represents the caption.

    "argmax" reads the largest id (OpenAI: end-of-text is the last entry of the vocabulary), "eos"
    the first `eos_id`, "last" the last position.
    """
    if config.pool == "argmax":
        return jnp.argmax(tokens_BL, axis=-1)
    if config.pool == "eos":
        return jnp.argmax(tokens_BL == config.eos_id, axis=-1)
    return jnp.full(tokens_BL.shape[0], tokens_BL.shape[1] - 1)


def needed_tokens(tokens_NL: np.ndarray, config: TextConfig) -> np.ndarray:
    """(N, L) int -> (N,) int: how many leading tokens decide a caption's embedding.

    Under a causal mask nothing after the pooled position does, and BERT masks padding. Other
    towers need all L.
    """
    length = np.full(len(tokens_NL), tokens_NL.shape[1])
    if isinstance(config, BertConfig):
        real_NL = tokens_NL != config.pad_id
        return np.where(real_NL.any(1), length - np.argmax(real_NL[:, ::-1], axis=1), length)
    if not config.causal:
        return length
    if config.pool == "argmax":
        return np.argmax(tokens_NL, axis=1) + 1
    if config.pool == "eos":
        return np.argmax(tokens_NL == config.eos_id, axis=1) + 1
    return length


def past_mask(length: int, position: jax.Array) -> jax.Array:
    """Mask of the keys up to the token at `position`, for generation: (1, 1, 1, L) bool."""
    return (jnp.arange(length) <= position)[None, None, None, :]


def class_mask(tokens_BL: jax.Array, config: TransformerTextConfig) -> jax.Array:
    """(B, L) int -> (B, 1, 1, L + 1) bool: the keys that CoCa's text tower may attend to.

    Padding is masked. "aligned" has the sequence's order, caption and then class token; "shifted"
    is one position late throughout, as in the training of the released weights.
    """
    valid_BL = tokens_BL != config.pad_id
    class_B1 = jnp.ones_like(valid_BL[:, :1])
    shifted = config.class_mask == "shifted"
    valid = jnp.concatenate([class_B1, valid_BL] if shifted else [valid_BL, class_B1], axis=1)
    return valid[:, None, None, :]


class TextTransformer(nn.Module):
    """(B, L) int token ids -> (B, embed_dim) in the compute dtype, not normalised.

    L is at most context_length. With `with_tokens`, also returns the outputs (B, L, D) of the last
    block, for a caption decoder. With `position`, returns only the output (B, 1, D) of the token at
    that position; the collection `CACHE` holds the keys and values of earlier tokens.
    """

    config: TransformerTextConfig
    shared: SharedConfig

    @nn.compact
    def __call__(
        self,
        tokens_BL: jax.Array,
        with_tokens: bool = False,
        position: jax.Array | None = None,
    ) -> Any:
        config, shared, dtype = self.config, self.shared, jnp.dtype(self.shared.dtype)
        width, normal = config.width, nn.initializers.normal
        table = self.param("token_embedding", normal(0.02), (shared.vocab_size, width), jnp.float32)
        rows = config.position_rows(shared.context_length)
        positions = self.param("positions", normal(0.01), (rows, width), jnp.float32)
        x_BLD = embed(table, tokens_BL, dtype)
        context = Context()
        appended = config.pool == "appended"
        if appended and position is None:
            class_token = self.param("class_token", normal(0.01), (width,), jnp.float32)
            class_B1D = jnp.broadcast_to(class_token.astype(dtype), (len(x_BLD), 1, width))
            x_BLD = jnp.concatenate([x_BLD, class_B1D], axis=1)
            context = Context(mask=class_mask(tokens_BL, config))
        x_BLD += positions[: x_BLD.shape[1]].astype(dtype)
        if position is not None:
            mask = past_mask(x_BLD.shape[1], position)
            if appended:  # the class token comes last, so no other token sees it
                mask &= class_mask(tokens_BL, config)[..., :-1]
            context = Context(mask=mask, position=position)
            x_BLD = jax.lax.dynamic_slice_in_dim(x_BLD, position, 1, axis=1)

        blocks = stack(config.layers, text_block_config(config, shared), shared)
        x_BLD = blocks(x_BLD, context)

        if position is not None:
            return x_BLD
        if appended:
            pooled_BD = x_BLD[:, -1]
        else:
            at = pool_positions(tokens_BL, config)
            pooled_BD = jnp.take_along_axis(x_BLD, at[:, None, None], axis=1)[:, 0]
        # LayerNorm acts on each token alone, so only the pooled token needs it.
        pooled_BD = nn.LayerNorm(shared.norm_eps, dtype=dtype, name="final_norm")(pooled_BD)
        hidden = (width + shared.embed_dim) // 2
        init = normal(width**-0.5)
        embedding = project(self, pooled_BD, config.projection, hidden, shared.embed_dim, init)
        return (embedding, x_BLD[:, : tokens_BL.shape[1]]) if with_tokens else embedding


def text_block_config(config: TextConfig, shared: SharedConfig) -> BlockConfig:
    """Options of the text tower's blocks."""
    return BlockConfig(
        heads=config.heads,
        mlp_dim=config.mlp_dim,
        activation=config.activation,
        norm_eps=shared.norm_eps,
        dtype=jnp.dtype(shared.dtype),
        init="openai_text" if config.init == "openai" else config.init,
        causal=config.causal,
        norm="post" if config.kind == "bert" else "pre",
        attention=shared.attention,
    )
