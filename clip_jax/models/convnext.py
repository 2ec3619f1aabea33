"""ConvNeXt, a convolutional image tower (Liu et al. 2022, A ConvNet for the 2020s).

A block is a Transformer block in which a depthwise convolution, not attention, mixes positions; an
MLP mixes channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.attention import FEATURES, BlockConfig
from clip_jax.models.constraints import constrain_batch
from clip_jax.models.heads import project
from clip_jax.models.initializers import BlockInitializers
from clip_jax.models.kinds import ConvNextConfig, SharedConfig, norm_eps
from clip_jax.models.remat import rematerialized
from clip_jax.models.transformer import Mlp

STEM, DOWNSAMPLE, DEPTHWISE = 4, 2, 7  # kernels; the first two are also the strides
weights = nn.initializers.normal(0.02)  # section A.1 of the paper
# The projection is not part of timm's model and keeps PyTorch's default,
# U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
projection_weights = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ConvNeXtBlock(nn.Module):
    """x + gain·MLP(LN(depthwise 7x7(x))): (B, H, W, C) -> (B, H, W, C)."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        config, channels = self.config, x_BHWC.shape[-1]
        x_BHWC = constrain_batch(x_BHWC)
        y = nn.Conv(
            channels,
            (DEPTHWISE, DEPTHWISE),
            feature_group_count=channels,
            dtype=config.dtype,
            kernel_init=weights,
            name="depthwise",
        )(x_BHWC)
        y = nn.LayerNorm(config.norm_eps, dtype=config.dtype, name="norm")(y)
        inits = BlockInitializers(config.init, channels, config.mlp_dim, layers=1)
        y = Mlp(config, inits, name="mlp")(y)
        if config.layer_scale is not None:
            gain = nn.initializers.constant(config.layer_scale)
            scale = self.param("mlp_scale", gain, (channels,), jnp.float32)
            y *= scale.astype(config.dtype)
        x_BHWC = constrain_batch(x_BHWC + y)
        self.sow(FEATURES, "output", x_BHWC)
        return x_BHWC


class ConvNeXt(nn.Module):
    """(B, S, S, 3) float, normalised -> (B, embed_dim) in the compute dtype, not normalised."""

    config: ConvNextConfig
    shared: SharedConfig

    @nn.compact
    def __call__(self, images_BSSC: jax.Array, train: bool = False) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.shared.dtype)
        block = rematerialized(ConvNeXtBlock, self.shared.remat)
        x_BHWC = self._patches(images_BSSC.astype(dtype), config.width, STEM, "stem")
        x_BHWC = self._norm("stem_norm")(x_BHWC)
        for stage, depth in enumerate(config.layers):
            channels = config.width * 2**stage
            if stage:
                name = f"stage{stage + 1}_downsample"
                x_BHWC = self._norm(f"{name}_norm")(x_BHWC)
                x_BHWC = self._patches(x_BHWC, channels, DOWNSAMPLE, name)
            for index in range(depth):
                name = f"stage{stage + 1}_block{index}"
                x_BHWC = block(self._block_config(channels), name=name)(x_BHWC)
        pooled_BC = self._norm("post_norm")(x_BHWC.mean(axis=(1, 2)))
        embed_dim = self.shared.embed_dim
        return project(
            self, pooled_BC, config.projection, 2 * embed_dim, embed_dim, projection_weights
        )

    def _block_config(self, channels: int) -> BlockConfig:
        config = self.config
        return BlockConfig(
            heads=1,
            mlp_dim=4 * channels,
            activation=config.activation,
            norm_eps=norm_eps(config, self.shared),
            dtype=jnp.dtype(self.shared.dtype),
            init="normal",
            layer_scale=config.layer_scale,
        )

    def _norm(self, name: str) -> nn.LayerNorm:
        eps = norm_eps(self.config, self.shared)
        return nn.LayerNorm(eps, dtype=jnp.dtype(self.shared.dtype), name=name)

    def _patches(self, x_BHWC: jax.Array, channels: int, kernel: int, name: str) -> jax.Array:
        """Convolves with stride = kernel: (B, H, W, C) -> (B, H/k, W/k, channels)."""
        return nn.Conv(
            channels,
            (kernel, kernel),
            strides=kernel,
            dtype=jnp.dtype(self.shared.dtype),
            kernel_init=weights,
            name=name,
        )(x_BHWC)
