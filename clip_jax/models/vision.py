"""Vision Transformer image tower (Dosovitskiy et al. 2021; CLIP paper section 2.4)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.attention import BlockConfig, Context, rope_tables
from clip_jax.models.constraints import constrain_batch
from clip_jax.models.heads import AttentionPoolHead, QueryPool, project
from clip_jax.models.initializers import torch_uniform
from clip_jax.models.kinds import HybridConfig, SharedConfig, VitConfig, norm_eps
from clip_jax.models.transformer import stack


def _plain_block(config: VitConfig | HybridConfig, shared: SharedConfig) -> BlockConfig:
    """Options that the tower's blocks and its pool share."""
    return BlockConfig(
        heads=config.heads,
        mlp_dim=config.mlp_dim,
        activation=config.activation,
        norm_eps=norm_eps(config, shared),
        dtype=jnp.dtype(shared.dtype),
        init=config.init,
        attention=shared.attention,
    )


def block_config(config: VitConfig | HybridConfig, shared: SharedConfig) -> BlockConfig:
    """Options of the image tower's blocks."""
    return dataclasses.replace(
        _plain_block(config, shared),
        norm=config.block_norm,
        mlp=config.mlp,
        inner_norm=config.inner_norm,
        key_bias=config.key_bias,
        layer_scale=config.layer_scale,
    )


def pool_config(config: VitConfig | HybridConfig, shared: SharedConfig) -> BlockConfig:
    """Options of a pool by learned queries."""
    plain = _plain_block(config, shared)
    return dataclasses.replace(plain, heads=config.pool_heads, mlp_dim=config.pool_mlp_dim)


class VisionTransformer(nn.Module):
    """(B, S, S, 3) float, normalised -> (B, embed_dim) in the compute dtype, not normalised.

    With `with_memory`, also returns the tokens (B, N, C) that a caption decoder attends to. Under
    `pool="average"` a class token takes part in attention only, and the mean is over the
    patches. With `rows` (B,) int and a random key "dropout", each image loses a share
    `patch_dropout` of its patches.
    """

    config: VitConfig | HybridConfig
    shared: SharedConfig

    @nn.compact
    def __call__(
        self,
        images_BSSC: jax.Array,
        train: bool = False,
        with_memory: bool = False,
        rows: jax.Array | None = None,
    ) -> Any:
        config, shared = self.config, self.shared
        x_BLD = self._tokens(images_BSSC)
        if rows is not None:
            x_BLD = self._drop_patches(x_BLD, rows)
        if config.pre_norm:
            x_BLD = self._norm("pre_norm")(x_BLD)
        context = Context()
        if config.rope != "none":
            cosine, sine = rope_tables(config, shared.image_size)
            context = Context(rope=(jnp.asarray(cosine), jnp.asarray(sine)))
        x_BLD = stack(config.layers, block_config(config, shared), shared)(x_BLD, context)
        pooled_BD, memory_BNC = self._pool(x_BLD, with_memory)
        if config.pooler:
            init = nn.initializers.normal(0.02)
            pooler = nn.Dense(config.width, dtype=pooled_BD.dtype, kernel_init=init, name="pooler")
            pooled_BD = jnp.tanh(pooler(pooled_BD))
        init = nn.initializers.normal(config.width**-0.5)
        embedding = project(
            self, pooled_BD, config.projection, 2 * shared.embed_dim, shared.embed_dim, init
        )
        return (embedding, memory_BNC) if with_memory else embedding

    def _tokens(self, images_BSSC: jax.Array) -> jax.Array:
        """Embeds patches and class token, and adds positions: (B, L, D)."""
        config, dtype = self.config, jnp.dtype(self.shared.dtype)
        assert isinstance(config, VitConfig)
        width, patch = config.width, config.patch_size
        grid = config.grid(self.shared.image_size)
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
        if config.patch_bias:
            zeros = nn.initializers.zeros
            bias = self.param("patch_embedding_bias", zeros, (width,), jnp.float32)
            x_BLD += bias.astype(dtype)
        x_BLD = self._with_class_token(x_BLD)
        positions = self.param("positions", token_init, (x_BLD.shape[1], width), jnp.float32)
        return x_BLD + positions.astype(dtype)

    def _with_class_token(self, x_BLD: jax.Array) -> jax.Array:
        """Puts the class token, if there is one, before the patches."""
        batch, _, width = x_BLD.shape
        if not self.config.class_token:
            return x_BLD
        init = nn.initializers.normal(width**-0.5)
        class_token = self.param("class_token", init, (width,), jnp.float32).astype(x_BLD.dtype)
        class_B1D = jnp.broadcast_to(class_token, (batch, 1, width))
        return jnp.concatenate([class_B1D, x_BLD], axis=1)

    def _drop_patches(self, x_BLD: jax.Array, rows_B: jax.Array) -> jax.Array:
        """Keeps a random share of the patches, (B, L, D) -> (B, L', D); Li et al. 2023, FLIP.

        The choice depends only on the key and the row's number, so that it is the same for parts of
        a batch as for the whole batch.
        """
        first = int(self.config.class_token)
        patches_BND = x_BLD[:, first:]
        count = patches_BND.shape[1]
        kept = max(1, int(count * (1 - self.config.patch_dropout)))
        key = self.make_rng("dropout")
        draw = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (count,)))
        chosen_BN = jax.lax.top_k(constrain_batch(draw(rows_B)), kept)[1]
        kept_BND = jnp.take_along_axis(patches_BND, chosen_BN[:, :, None], axis=1)
        return constrain_batch(jnp.concatenate([x_BLD[:, :first], kept_BND], axis=1))

    def _norm(self, name: str) -> nn.LayerNorm:
        eps = norm_eps(self.config, self.shared)
        return nn.LayerNorm(eps, dtype=jnp.dtype(self.shared.dtype), name=name)

    def _pool(self, x_BLD: jax.Array, with_memory: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the feature (B, D), and the tokens (B, N, C) for a caption decoder."""
        config, shared = self.config, self.shared
        post_norm = self._norm("post_norm")
        if config.pool == "queries":
            block, count = pool_config(config, shared), config.pool_queries
            pool = QueryPool(block, shared.embed_dim, count, name="query_pool")
            pooled = post_norm(pool(x_BLD))
            return pooled[:, 0], pooled[:, 1:]
        if config.pool == "attention":
            x_BLD = post_norm(x_BLD)
            head = AttentionPoolHead(pool_config(config, shared), name="attention_pool")
            return head(x_BLD), x_BLD
        first = int(config.class_token)
        if config.pool == "average":
            # LayerNorm acts on each token alone, but does not commute with the mean.
            if config.post_norm == "after_pool":
                return post_norm(x_BLD[:, first:].mean(axis=1)), x_BLD[:, first:]
            x_BLD = post_norm(x_BLD)
            return x_BLD[:, first:].mean(axis=1), x_BLD[:, first:]
        memory_BNC = (post_norm(x_BLD) if with_memory else x_BLD)[:, first:]
        return post_norm(x_BLD[:, 0]), memory_BNC
