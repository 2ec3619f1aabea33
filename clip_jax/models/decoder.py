"""CoCa's caption decoder (Yu et al. 2022, section 3.2).

Shape letters: B images, R rows of tokens (a multiple of B, those of an image adjacent), L tokens,
D width, N tokens of the image memory, C memory width, V vocabulary.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.attention import NO_CONTEXT, BlockConfig, Context
from clip_jax.models.initializers import BlockInitializers
from clip_jax.models.kinds import DecoderConfig, SharedConfig, TextConfig
from clip_jax.models.text import past_mask, text_block_config
from clip_jax.models.transformer import Block, stack


def decoder_block_config(
    config: DecoderConfig, text: TextConfig, shared: SharedConfig
) -> BlockConfig:
    """Options of the caption decoder's blocks: the text tower's width, MLPs of four times that."""
    return dataclasses.replace(
        text_block_config(text, shared),
        heads=config.heads,
        mlp_dim=4 * text.width,
        causal=True,
        norm="pre",
    )


class CaptionBlock(nn.Module):
    """Causal block over the tokens, then a block that attends to the image: (R, L, D) -> same."""

    config: BlockConfig
    inits: BlockInitializers

    @nn.compact
    def __call__(self, x_RLD: jax.Array, context: Context = NO_CONTEXT) -> tuple[jax.Array, None]:
        tokens = context._replace(memory_BNC=None)
        x_RLD, _ = Block(self.config, self.inits, name="self")(x_RLD, tokens)
        cross = dataclasses.replace(self.config, causal=False)
        image = context._replace(mask=None)
        assert image.memory_BNC is not None
        # The rows of an image become more queries to one memory, which is not copied.
        x_BMD = x_RLD.reshape(len(image.memory_BNC), -1, x_RLD.shape[-1])
        x_BMD, _ = Block(cross, self.inits, name="cross")(x_BMD, image)
        return x_BMD.reshape(x_RLD.shape), None


class CaptionDecoder(nn.Module):
    """(R, L, D) outputs of the text tower, (B, N, C) memory -> (R, L, V) float32 logits.

    The logits at a token predict the next token. With `position`, x is the single token (R, 1, D)
    at that position of `length`, and the collections `CACHE` and `MEMORY` hold the past.
    """

    config: DecoderConfig
    text: TextConfig
    shared: SharedConfig

    @nn.compact
    def __call__(
        self,
        x_RLD: jax.Array,
        memory_BNC: jax.Array,
        position: jax.Array | None = None,
        length: int = 0,
    ) -> jax.Array:
        config, shared, dtype = self.config, self.shared, jnp.dtype(self.shared.dtype)
        mask = None if position is None else past_mask(length, position)
        block = decoder_block_config(config, self.text, shared)
        blocks = stack(config.layers, block, shared, CaptionBlock)
        x_RLD = blocks(x_RLD, Context(mask=mask, memory_BNC=memory_BNC, position=position))
        x_RLD = nn.LayerNorm(shared.norm_eps, dtype=dtype, name="final_norm")(x_RLD)
        width = x_RLD.shape[-1]
        init, shape = nn.initializers.normal(width**-0.5), (width, config.vocab_size)
        head = self.param("head", init, shape, jnp.float32)
        return (x_RLD @ head.astype(dtype)).astype(jnp.float32)
