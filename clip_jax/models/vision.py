"""Vision Transformer image tower (Dosovitskiy et al. 2021; CLIP paper section 2.4)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.attention import BlockConfig, Context
from clip_jax.models.config import ClipConfig
from clip_jax.models.constraints import constrain_batch
from clip_jax.models.initializers import torch_uniform
from clip_jax.models.pooling import AttentionPoolHead, QueryPool
from clip_jax.models.projection import project
from clip_jax.models.rope import rope_tables
from clip_jax.models.transformer import Transformer


def block_config(config: ClipConfig) -> BlockConfig:
    """Options of the image tower's blocks."""
    return BlockConfig(
        heads=config.vision_heads,
        mlp_dim=config.vision_mlp_dim,
        activation=config.vision_activation,
        norm_eps=config.vision_eps,
        dtype=jnp.dtype(config.dtype),
        init=config.vision_init,
        norm=config.vision_block_norm,
        mlp=config.vision_mlp,
        inner_norm=config.vision_inner_norm,
        key_bias=config.vision_key_bias,
        layer_scale=config.vision_layer_scale,
        attention=config.attention,
    )


class VisionTransformer(nn.Module):
    """(B, S, S, 3) float, normalised -> (B, embed_dim) in the compute dtype, not normalised.

    With `with_memory`, also returns the tokens (B, N, C) that a caption decoder attends to. Under
    `vision_pool="average"` a class token takes part in attention only, and the mean is over the
    patches. With `rows` (B,) int and a random key "dropout", each image loses a share
    `patch_dropout` of its patches.
    """

    config: ClipConfig

    @nn.compact
    def __call__(
        self,
        images_BSSC: jax.Array,
        train: bool = False,
        with_memory: bool = False,
        rows: jax.Array | None = None,
    ) -> Any:
        config = self.config
        x_BLD = self._tokens(images_BSSC)
        if rows is not None:
            x_BLD = self._drop_patches(x_BLD, rows)
        if config.vision_pre_norm:
            x_BLD = self._norm("pre_norm")(x_BLD)
        context = Context()
        if config.vision_rope != "none":
            cosine, sine = rope_tables(config)
            context = Context(rope=(jnp.asarray(cosine), jnp.asarray(sine)))
        assert isinstance(config.vision_layers, int)
        x_BLD = Transformer(
            layers=config.vision_layers,
            config=block_config(config),
            scan_layers=config.scan_layers,
            remat=config.remat,
            name="transformer",
        )(x_BLD, context)
        pooled_BD, memory_BNC = self._pool(x_BLD)
        if config.vision_pooler:
            init = nn.initializers.normal(0.02)
            pooler = nn.Dense(
                config.vision_width, dtype=pooled_BD.dtype, kernel_init=init, name="pooler"
            )
            pooled_BD = jnp.tanh(pooler(pooled_BD))
        init = nn.initializers.normal(config.vision_width**-0.5)
        embedding = project(
            self, pooled_BD, config.vision_projection, 2 * config.embed_dim, config.embed_dim, init
        )
        return (embedding, memory_BNC) if with_memory else embedding

    def _tokens(self, images_BSSC: jax.Array) -> jax.Array:
        """Embeds patches and class token, and adds positions: (B, L, D)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width, patch, grid = config.vision_width, config.patch_size, config.vision_grid
        token_init = nn.initializers.normal(width**-0.5)

        # The patch convolution (stride = kernel) is written as one matrix product, which every
        # backend runs well; pixels beyond the last whole patch are dropped (VALID).
        batch, channels = images_BSSC.shape[0], images_BSSC.shape[-1]
        patches = images_BSSC[:, : grid * patch, : grid * patch].astype(dtype)
        patches = patches.reshape(batch, grid, patch, grid, patch, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, -1)
        fan_in = patch * patch * channels
        kernel = self.param(
            "patch_embedding", torch_uniform(fan_in), (patch, patch, channels, width), jnp.float32
        )
        x_BLD = patches @ kernel.reshape(fan_in, width).astype(dtype)
        if config.vision_patch_bias:
            zeros = nn.initializers.zeros
            bias = self.param("patch_embedding_bias", zeros, (width,), jnp.float32)
            x_BLD += bias.astype(dtype)
        if config.vision_class_token:
            class_token = self.param("class_token", token_init, (width,), jnp.float32)
            class_B1D = jnp.broadcast_to(class_token.astype(dtype), (batch, 1, width))
            x_BLD = jnp.concatenate([class_B1D, x_BLD], axis=1)
        positions = self.param("positions", token_init, (config.vision_tokens, width), jnp.float32)
        return x_BLD + positions.astype(dtype)

    def _drop_patches(self, x_BLD: jax.Array, rows_B: jax.Array) -> jax.Array:
        """Keeps a random share of the patches, (B, L, D) -> (B, L', D); Li et al. 2023, FLIP.

        The choice depends only on the key and the row's number, so that it is the same for parts of
        a batch as for the whole batch.
        """
        first = int(self.config.vision_class_token)
        patches_BND = x_BLD[:, first:]
        count = patches_BND.shape[1]
        kept = max(1, int(count * (1 - self.config.patch_dropout)))
        key = self.make_rng("dropout")
        draw = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (count,)))
        chosen_BN = jax.lax.top_k(constrain_batch(draw(rows_B)), kept)[1]
        kept_BND = jnp.take_along_axis(patches_BND, chosen_BN[:, :, None], axis=1)
        return constrain_batch(jnp.concatenate([x_BLD[:, :first], kept_BND], axis=1))

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(self.config.vision_eps, dtype=jnp.dtype(self.config.dtype), name=name)

    def _pool(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the feature (B, D), and the tokens (B, N, C) for a caption decoder."""
        config = self.config
        post_norm = self._norm("post_norm")
        if config.vision_pool == "queries":
            pooled = post_norm(QueryPool(config, name="query_pool")(x_BLD))
            return pooled[:, 0], pooled[:, 1:]
        if config.vision_pool == "attention":
            x_BLD = post_norm(x_BLD)
            return AttentionPoolHead(config, name="attention_pool")(x_BLD), x_BLD
        first = int(config.vision_class_token)
        if config.vision_pool == "average":
            # LayerNorm acts on each token alone, but does not commute with the mean.
            if config.vision_post_norm == "after_pool":
                return post_norm(x_BLD[:, first:].mean(axis=1)), x_BLD[:, first:]
            x_BLD = post_norm(x_BLD)
            return x_BLD[:, first:].mean(axis=1), x_BLD[:, first:]
        memory_BNC = post_norm(x_BLD)[:, first:] if config.decoder_layers else x_BLD[:, first:]
        return post_norm(x_BLD[:, 0]), memory_BNC
