"""FastViT, the image tower of MobileCLIP-S (Vasu et al. 2023, FastViT; 2024, MobileCLIP).

Blocks mix positions by a depthwise convolution, those of the last stages by attention. Convolutions
have the paper's training form: a sum of branches, each with batch norm, which the inference form
fuses.

`config.variant`: "small" (S0 to S2) has batch norm before attention, squeeze and excitation
in the entries of its last two stages of four, and pointwise branches in its stem; "large" (S3, S4)
has LayerNorm before attention and neither of the other two.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.attention import FEATURES, Attention, BlockConfig
from clip_jax.models.constraints import constrain_batch
from clip_jax.models.heads import project
from clip_jax.models.initializers import BlockInitializers, Init, torch_uniform
from clip_jax.models.kinds import FastVitConfig, SharedConfig, norm_eps
from clip_jax.models.remat import rematerialized
from clip_jax.models.resnet import BatchNorm
from clip_jax.models.transformer import ACTIVATIONS

HEAD_DIM = 32
ATTENTION_FROM = 3  # the index of the first stage whose blocks attend
weights = nn.initializers.normal(0.02)


class ConvNorm(nn.Module):
    """Convolution, batch norm: (B, H, W, C) -> (B, H/stride, W/stride, channels)."""

    channels: int
    kernel: int
    stride: int
    depthwise: bool
    use_batch: bool
    kernel_init: Init | None = None  # None: PyTorch's default

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        groups = x_BHWC.shape[-1] if self.depthwise else 1
        fan_in = self.kernel**2 * x_BHWC.shape[-1] // groups
        y = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=self.kernel // 2,
            feature_group_count=groups,
            use_bias=False,
            dtype=x_BHWC.dtype,
            kernel_init=self.kernel_init or torch_uniform(fan_in),
            name="conv",
        )(x_BHWC)
        return BatchNorm(name="norm")(y, self.use_batch)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in (0, 1) computed from all channel means (Hu et al. 2018)."""

    hidden: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        channels, dtype = x_BHWC.shape[-1], x_BHWC.dtype
        mean_B11C = x_BHWC.mean(axis=(1, 2), keepdims=True)
        squeezed = nn.relu(nn.Conv(self.hidden, (1, 1), dtype=dtype, name="squeeze")(mean_B11C))
        gate = nn.Conv(channels, (1, 1), dtype=dtype, name="excite")(squeezed)
        return x_BHWC * jax.nn.sigmoid(gate)


class Branches(nn.Module):
    """Sum of a convolution, a pointwise one and the input, each with batch norm (MobileOne).

    Source: Vasu et al. 2022. The pointwise branch exists for kernels larger than 1, the input
    branch if the shapes match. `squeeze`: hidden channels of a `SqueezeExcite` on the sum; 0: none.
    """

    channels: int
    kernel: int
    use_batch: bool
    stride: int = 1
    depthwise: bool = False
    pointwise: bool = True
    squeeze: int = 0
    activation: str | None = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        branch = functools.partial(
            ConvNorm,
            self.channels,
            stride=self.stride,
            depthwise=self.depthwise,
            use_batch=self.use_batch,
        )
        y = branch(kernel=self.kernel, name="convolution")(x_BHWC)
        if self.kernel > 1 and self.pointwise:
            y += branch(kernel=1, name="pointwise")(x_BHWC)
        if self.stride == 1 and x_BHWC.shape[-1] == self.channels:
            y += BatchNorm(name="input_norm")(x_BHWC, self.use_batch)
        if self.squeeze:
            y = SqueezeExcite(self.squeeze, name="squeeze_excite")(y)
        return y if self.activation is None else ACTIVATIONS[self.activation](y)


class Entry(nn.Module):
    """Downsampling into the next stage, (B, H, W, C) -> (B, H/2, W/2, channels).

    A 7x7 and a 3x3 depthwise branch are summed; a pointwise convolution follows.
    """

    config: FastVitConfig
    channels: int
    squeeze: int
    use_batch: bool

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        activation = self.config.activation
        branch = functools.partial(
            ConvNorm, self.channels, stride=2, depthwise=True, use_batch=self.use_batch
        )
        y = branch(kernel=7, name="large")(x_BHWC) + branch(kernel=3, name="small")(x_BHWC)
        if self.squeeze:
            y = SqueezeExcite(self.squeeze, name="squeeze_excite")(y)
        y = ACTIVATIONS[activation](y)
        return Branches(self.channels, 1, self.use_batch, activation=activation, name="mix")(y)


class FastViTBlock(nn.Module):
    """Mixes positions, then channels, (B, H, W, C) -> (B, H, W, C).

    Positions are mixed by x + gain·attention(norm(x)) or x + gain·(branches(x) - norm(x)), channels
    by x + gain·MLP(depthwise 7x7(x)).
    """

    config: FastVitConfig
    shared: SharedConfig
    attention: bool
    use_batch: bool

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        config, channels = self.config, x_BHWC.shape[-1]
        x_BHWC = constrain_batch(x_BHWC)
        mixed = self._attention(x_BHWC) if self.attention else self._convolution(x_BHWC)
        x_BHWC += self._gain("mixer", channels).astype(mixed.dtype) * mixed

        y = ConvNorm(channels, 7, 1, True, self.use_batch, weights, name="mlp_convolution")(x_BHWC)
        hidden = channels * (config.mlp_dim // config.width)
        dense = functools.partial(
            nn.Conv, kernel_size=(1, 1), dtype=x_BHWC.dtype, kernel_init=weights
        )
        y = ACTIVATIONS[config.activation](dense(hidden, name="mlp_in")(y))
        y = dense(channels, name="mlp_out")(constrain_batch(y))
        x_BHWC = constrain_batch(x_BHWC + self._gain("mlp", channels).astype(y.dtype) * y)
        self.sow(FEATURES, "output", x_BHWC)
        return x_BHWC

    def _gain(self, branch: str, channels: int) -> jax.Array:
        """Returns a branch's gain, (1, 1, C) float32."""
        init = nn.initializers.constant(self.config.layer_scale)
        return self.param(f"{branch}_scale", init, (1, 1, channels), jnp.float32)

    def _convolution(self, x_BHWC: jax.Array) -> jax.Array:
        branches = Branches(x_BHWC.shape[-1], 3, self.use_batch, depthwise=True, name="mixer")
        return branches(x_BHWC) - BatchNorm(name="mixer_norm")(x_BHWC, self.use_batch)

    def _attention(self, x_BHWC: jax.Array) -> jax.Array:
        config, channels = self.config, x_BHWC.shape[-1]
        if config.variant == "small":
            y = BatchNorm(name="mixer_norm")(x_BHWC, self.use_batch)
        else:
            eps = norm_eps(config, self.shared)
            y = nn.LayerNorm(eps, dtype=x_BHWC.dtype, name="mixer_norm")(x_BHWC)
        block = BlockConfig(
            heads=channels // HEAD_DIM,
            mlp_dim=4 * channels,
            activation=config.activation,
            norm_eps=norm_eps(config, self.shared),
            dtype=x_BHWC.dtype,
            init="normal",
            query_value_bias=False,
            attention=self.shared.attention,
        )
        inits = BlockInitializers(block.init, channels, block.mlp_dim, layers=1)
        y_BLC = y.reshape(len(y), -1, channels)
        return Attention(block, inits, name="mixer")(y_BLC).reshape(x_BHWC.shape)


class FastViT(nn.Module):
    """(B, S, S, 3) float, normalised -> (B, embed_dim) in the compute dtype, not normalised."""

    config: FastVitConfig
    shared: SharedConfig

    @nn.compact
    def __call__(self, images_BSSC: jax.Array, train: bool = False) -> jax.Array:
        config, shared = self.config, self.shared
        use_batch = train and config.batch_norm == "batch"
        x = self._stem(images_BSSC.astype(jnp.dtype(shared.dtype)), use_batch)
        block = rematerialized(FastViTBlock, shared.remat)
        for stage, depth in enumerate(config.layers):
            name, channels = f"stage{stage + 1}", config.width * 2**stage
            if stage:
                squeeze = entry_squeeze(config, stage)
                x = Entry(config, channels, squeeze, use_batch, name=f"{name}_entry")(x)
            if stage >= ATTENTION_FROM:
                x += self._depthwise(x, f"{name}_positions")
            for index in range(depth):
                attention = stage >= ATTENTION_FROM
                x = block(config, shared, attention, use_batch, name=f"{name}_block{index}")(x)
        channels = 2 * x.shape[-1]
        x = Branches(
            channels,
            3,
            use_batch,
            depthwise=True,
            squeeze=channels // 16,
            activation=config.activation,
            name="final",
        )(x)
        return project(
            self, x.mean(axis=(1, 2)), config.projection, channels, shared.embed_dim, weights
        )

    def _stem(self, x: jax.Array, use_batch: bool) -> jax.Array:
        """(B, S, S, 3) -> (B, S/4, S/4, width)."""
        config = self.config
        branches = functools.partial(
            Branches,
            config.width,
            use_batch=use_batch,
            pointwise=config.variant == "small",
            activation=config.activation,
        )
        x = branches(kernel=3, stride=2, name="stem1")(x)
        x = branches(kernel=3, stride=2, depthwise=True, name="stem2")(x)
        return branches(kernel=1, name="stem3")(x)

    def _depthwise(self, x: jax.Array, name: str) -> jax.Array:
        """Computes conditional positions (Chu et al. 2021), (B, H, W, C) -> (B, H, W, C)."""
        channels = x.shape[-1]
        init = torch_uniform(7 * 7)
        return nn.Conv(
            channels,
            (7, 7),
            feature_group_count=channels,
            dtype=x.dtype,
            kernel_init=init,
            bias_init=init,
            name=name,
        )(x)


def entry_squeeze(config: FastVitConfig, stage: int) -> int:
    """Hidden channels of squeeze and excitation in the entry of a stage; 0: none.

    Only the third and fourth stages of small towers have it: a quarter of the stage's channels,
    rounded to a multiple of 8.
    """
    if config.variant == "large" or stage < 2:
        return 0
    return max(8, (config.width * 2**stage // 4 + 4) // 8 * 8)
