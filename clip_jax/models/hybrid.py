"""Vision Transformers on the features of a convolutional stem of total stride 16.

MobileCLIP-B (Vasu et al. 2024, MobileCLIP): three convolutions. ViTamin (Chen et al. 2024, ViTamin:
Designing Scalable Vision Models in the Vision-Language Era): two stages of inverted bottlenecks.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.kinds import HybridConfig, SharedConfig, norm_eps
from clip_jax.models.remat import rematerialized
from clip_jax.models.resnet import BatchNorm
from clip_jax.models.transformer import ACTIVATIONS
from clip_jax.models.vision import VisionTransformer

INVERTED_DEPTHS = (2, 4)  # blocks of ViTamin's two convolutional stages


def _conv(
    x_BHWC: jax.Array, channels: int, kernel: int, stride: int, name: str, **more: Any
) -> jax.Array:
    """Convolves with a bias; an odd kernel is padded equally on all sides."""
    fan_out = kernel * kernel * channels // more.get("feature_group_count", 1)
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=stride,
        padding=(kernel - 1) // 2 if kernel % 2 else 0,
        dtype=x_BHWC.dtype,
        kernel_init=nn.initializers.normal((2 / fan_out) ** 0.5),
        name=name,
        **more,
    )(x_BHWC)


class ConvolutionStem(nn.Module):
    """(B, S, S, 3) -> (B, S/16, S/16, width): 4x4, 2x2, 2x2 convolutions of equal stride.

    The first two have batch norm.
    """

    config: HybridConfig
    shared: SharedConfig

    @nn.compact
    def __call__(self, images_BSSC: jax.Array, train: bool) -> jax.Array:
        config, x = self.config, images_BSSC
        use_batch = train and config.batch_norm == "batch"
        for index, kernel in enumerate((4, 2), start=1):
            x = _conv(x, config.stem_width, kernel, kernel, f"conv{index}", use_bias=False)
            x = BatchNorm(name=f"norm{index}")(x, use_batch)
            x = ACTIVATIONS[config.activation](x)
        return _conv(x, config.width, 2, 2, "conv3")


class InvertedBlock(nn.Module):
    """1x1 to four times the width, depthwise 3x3 (strided), 1x1 back, with a shortcut."""

    channels: int
    stride: int
    activation: str
    eps: float

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        activation, hidden = ACTIVATIONS[self.activation], 4 * self.channels
        shortcut = x_BHWC
        if self.stride > 1:
            # Averages at the border leave out the padding.
            shortcut = nn.avg_pool(
                x_BHWC, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False
            )
        if x_BHWC.shape[-1] != self.channels:
            shortcut = _conv(shortcut, self.channels, 1, 1, "shortcut")
        y = nn.LayerNorm(self.eps, dtype=x_BHWC.dtype, name="norm")(x_BHWC)
        y = activation(_conv(y, hidden, 1, 1, "widen"))
        y = _conv(y, hidden, 3, self.stride, "depthwise", feature_group_count=hidden)
        return shortcut + _conv(activation(y), self.channels, 1, 1, "narrow")


class InvertedStem(nn.Module):
    """(B, S, S, 3) -> (B, S/16, S/16, width): ViTamin's stem.

    Two convolutions, two stages of inverted bottlenecks, one convolution; strides 2, 2·2 and 2.
    """

    config: HybridConfig
    shared: SharedConfig

    @nn.compact
    def __call__(self, images_BSSC: jax.Array, train: bool) -> jax.Array:
        del train
        config, width = self.config, self.config.stem_width
        block = rematerialized(InvertedBlock, self.shared.remat)
        x = self._norm("norm")(_conv(images_BSSC, width, 3, 2, "conv1"))
        x = _conv(ACTIVATIONS[config.activation](x), width, 3, 1, "conv2")
        for stage, depth in enumerate(INVERTED_DEPTHS, start=1):
            for index in range(depth):
                x = block(
                    channels=width * stage,
                    stride=1 if index else 2,
                    activation=config.activation,
                    eps=norm_eps(config, self.shared),
                    name=f"stage{stage}_block{index}",
                )(x)
        return _conv(self._norm("out_norm")(x), config.width, 3, 2, "out")

    def _norm(self, name: str) -> nn.LayerNorm:
        eps = norm_eps(self.config, self.shared)
        return nn.LayerNorm(eps, dtype=jnp.dtype(self.shared.dtype), name=name)


STEMS: dict[str, type[nn.Module]] = {"convolutions": ConvolutionStem, "inverted": InvertedStem}


class HybridTransformer(VisionTransformer):
    """(B, S, S, 3) float, normalised -> (B, embed_dim) in the compute dtype, not normalised."""

    @nn.compact
    def __call__(
        self,
        images_BSSC: jax.Array,
        train: bool = False,
        with_memory: bool = False,
        rows: jax.Array | None = None,
    ) -> Any:
        assert isinstance(self.config, HybridConfig)
        stem = STEMS[self.config.stem](self.config, self.shared, name="stem")
        features_BHWD = stem(images_BSSC.astype(jnp.dtype(self.shared.dtype)), train)
        return super().__call__(features_BHWD, train, with_memory, rows)

    def _tokens(self, images_BSSC: jax.Array) -> jax.Array:
        """Adds positions and class token to the stem's features: (B, H, W, D) -> (B, L, D)."""
        config, width = self.config, self.config.width
        assert isinstance(config, HybridConfig)
        x_BLD = images_BSSC.reshape(len(images_BSSC), -1, width)
        init = nn.initializers.normal(width**-0.5)
        if config.positions:
            positions = self.param("positions", init, (x_BLD.shape[1], width), jnp.float32)
            x_BLD += positions.astype(x_BLD.dtype)
        return self._with_class_token(x_BLD)
