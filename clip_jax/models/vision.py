"""The Vision Transformer image tower (Dosovitskiy et al. 2021; CLIP paper section 2.4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.architectures import ClipConfig
from clip_jax.models.transformer import Transformer, torch_uniform


class VisionTransformer(nn.Module):
    """(B, S, S, 3) float, normalised -> (B, embed_dim) in the compute dtype, not normalised.

    With `vision_pool="average"` there is still a class token; it takes part in attention, and the
    mean is taken over the patches only.
    """

    config: ClipConfig

    @nn.compact
    def __call__(self, images_BSSC: jax.Array, train: bool = False) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width, patch, grid = config.vision_width, config.patch_size, config.vision_grid
        assert isinstance(config.vision_layers, int)
        token_init = nn.initializers.normal(width**-0.5)

        # Cutting into patches and multiplying is the patch convolution (stride = kernel) as one
        # matrix product, which every backend runs well; pixels beyond the last whole patch are
        # dropped (VALID).
        batch, channels = images_BSSC.shape[0], images_BSSC.shape[-1]
        patches = images_BSSC[:, : grid * patch, : grid * patch].astype(dtype)
        patches = patches.reshape(batch, grid, patch, grid, patch, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, -1)
        fan_in = patch * patch * channels
        kernel = self.param(
            "patch_embedding", torch_uniform(fan_in), (patch, patch, channels, width), jnp.float32
        )
        x_BLD = patches @ kernel.reshape(fan_in, width).astype(dtype)

        class_token = self.param("class_token", token_init, (width,), jnp.float32)
        class_B1D = jnp.broadcast_to(class_token.astype(dtype), (batch, 1, width))
        x_BLD = jnp.concatenate([class_B1D, x_BLD], axis=1)
        positions = self.param("positions", token_init, (grid * grid + 1, width), jnp.float32)
        x_BLD += positions.astype(dtype)
        if config.vision_pre_norm:
            x_BLD = nn.LayerNorm(config.norm_eps, dtype=dtype, name="pre_norm")(x_BLD)

        x_BLD = Transformer(
            layers=config.vision_layers,
            heads=config.vision_heads,
            mlp_dim=config.vision_mlp_dim,
            causal=False,
            activation=config.vision_activation,
            norm_eps=config.norm_eps,
            dtype=dtype,
            scaled_init=False,
            scan_layers=config.scan_layers,
            remat=config.remat,
            name="transformer",
        )(x_BLD)

        post_norm = nn.LayerNorm(config.norm_eps, dtype=dtype, name="post_norm")
        if config.vision_pool == "class_token":
            pooled_BD = post_norm(x_BLD[:, 0])
        else:
            pooled_BD = post_norm(x_BLD)[:, 1:].mean(axis=1)
        projection = self.param("projection", token_init, (width, config.embed_dim), jnp.float32)
        return pooled_BD @ projection.astype(dtype)
