"""ModifiedResNet, the convolutional image tower (paper section 2.4; He et al. 2019; Zhang 2019).

It differs from a plain ResNet by a stem of three convolutions, anti-aliased strides (average
pooling before the strided projection), and attention pooling instead of average pooling.

Running statistics are leaves of `params` called `mean` and `var`, so that `params` alone defines
the function. Nothing is updated in place: in training with `batch_norm="batch"` each layer sows the
batch's statistics into the collection "batch_statistics", and `update_running_statistics` blends
them in.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.models.constraints import constrain_batch
from clip_jax.models.initializers import torch_uniform
from clip_jax.models.kinds import ResNetConfig, SharedConfig
from clip_jax.models.remat import rematerialized

BATCH_STATISTICS = "batch_statistics"
RUNNING_NAMES = ("mean", "var")  # leaves of `params` that are buffers: not trained, not counted
MOMENTUM = 0.1  # weight of the new batch, as in the framework of the released weights


class BatchNorm(nn.Module):
    """Normalises channels, (B, H, W, C) -> (B, H, W, C); statistics in float32.

    With `use_batch`, uses and sows the mean and variance of this (global) batch; otherwise uses
    the stored ones.
    """

    scale_init: nn.initializers.Initializer = nn.initializers.ones
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, use_batch: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        mean = self.param("mean", nn.initializers.zeros, (channels,), jnp.float32)
        var = self.param("var", nn.initializers.ones, (channels,), jnp.float32)
        if use_batch:
            # This takes one pass over the batch, not two. Moments about the running mean, which is
            # near the batch's, lose no digits when the mean is large against the deviation.
            origin = jax.lax.stop_gradient(mean)
            shifted = x.astype(jnp.float32).reshape(-1, channels) - origin
            offset = shifted.mean(axis=0)
            var = jnp.maximum(jnp.square(shifted).mean(axis=0) - jnp.square(offset), 0.0)
            mean = origin + offset
            count = len(shifted)
            # The running variance is the unbiased one, as in the framework of the released weights.
            self.sow(BATCH_STATISTICS, "mean", mean, reduce_fn=_keep_last)
            self.sow(BATCH_STATISTICS, "var", var * count / max(count - 1, 1), reduce_fn=_keep_last)
        else:
            mean, var = jax.lax.stop_gradient((mean, var))
        # All is in float32, since a rounded gain times a large mean would leave an offset.
        gain = scale * jax.lax.rsqrt(var + self.eps)
        return ((x.astype(jnp.float32) - mean) * gain + bias).astype(x.dtype)


def _keep_last(_: Any, value: jax.Array) -> jax.Array:
    return value


def update_running_statistics(params: Any, batch_statistics: Mapping[str, Any]) -> Any:
    """Blends the sown means and variances into `params`: 0.9 old + 0.1 new."""
    flat = dict(jax.tree_util.tree_flatten_with_path(batch_statistics)[0])

    def blend(path: Any, old: jax.Array) -> jax.Array:
        if path not in flat:
            return old
        return (1 - MOMENTUM) * old + MOMENTUM * flat[path]

    return jax.tree_util.tree_map_with_path(blend, params)


@jax.custom_vjp
def _project(x_BHWC: jax.Array, kernel_CD: jax.Array) -> jax.Array:
    """Product over channels; its kernel's gradient is x'g, not (g'x)'.

    On a CPU the first factor is transposed in memory: x is there already, but g would be computed
    a second time, column by column, which took a tenth of a training step.
    """
    return x_BHWC @ kernel_CD


def _project_forward(x_BHWC: jax.Array, kernel_CD: jax.Array) -> tuple[jax.Array, Any]:
    return x_BHWC @ kernel_CD, (x_BHWC, kernel_CD)


def _project_backward(saved: Any, g_BHWD: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BHWC, kernel_CD = saved
    return g_BHWD @ kernel_CD.T, jnp.einsum("bhwc,bhwd->cd", x_BHWC, g_BHWD)


_project.defvjp(_project_forward, _project_backward)


def _convolve(
    x_BHWC: jax.Array, kernel_KKCD: jax.Array, strides: Any, padding: Any, **more: Any
) -> jax.Array:
    """Convolves as `jax.lax` does, or by one matrix product if each output sees all pixels.

    XLA's fast convolution for CPUs takes no kernel larger than the image; its fallback, a loop,
    took half of a training step for a tower whose last stage has 2x2 pixels.
    """
    is_plain = set(strides) == {1}
    if is_plain and kernel_KKCD.shape[:2] == (1, 1):  # takes half the time on a CPU
        return _project(x_BHWC, kernel_KKCD[0, 0])
    (height, width), reach = x_BHWC.shape[1:3], kernel_KKCD.shape[0] // 2
    if max(height, width) > reach + 1 or not is_plain:
        return jax.lax.conv_general_dilated(x_BHWC, kernel_KKCD, strides, padding, **more)
    # Entry (h, p) is the tap of the kernel that lies over input row h for output row p.
    rows_HP = np.arange(height)[:, None] - np.arange(height) + reach
    columns_WQ = np.arange(width)[:, None] - np.arange(width) + reach
    matrix_HWPQCD = kernel_KKCD[rows_HP[:, None, :, None], columns_WQ[None, :, None, :]]
    return jnp.einsum("bhwc,hwpqcd->bpqd", x_BHWC, matrix_HWPQCD)


def _conv(
    features: int, kernel: int, inputs: int, dtype: jnp.dtype, name: str, stride: int = 1
) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=torch_uniform(inputs * kernel * kernel),
        conv_general_dilated=_convolve,
        name=name,
    )


def _average_pool(x_BHWC: jax.Array, stride: int) -> jax.Array:
    """Means of squares of `stride`; rows and columns that fill no square are left out."""
    if stride == 1:
        return x_BHWC
    height, width = (size // stride * stride for size in x_BHWC.shape[1:3])
    # On a CPU, sums of slices join the products beside them; `nn.avg_pool` costs passes of its own.
    offsets = itertools.product(range(stride), repeat=2)
    parts = (x_BHWC[:, row:height:stride, column:width:stride] for row, column in offsets)
    total = functools.reduce(jnp.add, (part.astype(jnp.float32) for part in parts))
    return (total / stride**2).astype(x_BHWC.dtype)


class Bottleneck(nn.Module):
    """1x1, 3x3, (average pool), 1x1 with a shortcut; expansion 4, all convolutions of stride 1."""

    width: int
    stride: int
    dtype: jnp.dtype
    use_batch: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, features = x.shape[-1], 4 * self.width
        x = constrain_batch(x)
        y = _conv(self.width, 1, inputs, self.dtype, "conv1")(x)
        y = nn.relu(BatchNorm(name="norm1")(y, self.use_batch))
        y = _conv(self.width, 3, self.width, self.dtype, "conv2")(y)
        y = nn.relu(BatchNorm(name="norm2")(y, self.use_batch))
        y = _conv(features, 1, self.width, self.dtype, "conv3")(_average_pool(y, self.stride))
        y = BatchNorm(scale_init=nn.initializers.zeros, name="norm3")(y, self.use_batch)
        if self.stride > 1 or inputs != features:
            x = _conv(features, 1, inputs, self.dtype, "shortcut")(_average_pool(x, self.stride))
            x = BatchNorm(name="shortcut_norm")(x, self.use_batch)
        return constrain_batch(nn.relu(x + y))


class AttentionPool(nn.Module):
    """(B, H, W, C) -> (B, embed_dim): attention whose only query is the mean over positions."""

    heads: int
    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        init = nn.initializers.normal(channels**-0.5)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=init)
        x_BLC = x.reshape(batch, height * width, channels)
        x_BLC = jnp.concatenate([x_BLC.mean(axis=1, keepdims=True), x_BLC], axis=1)
        positions = self.param("positions", init, (height * width + 1, channels), jnp.float32)
        x_BLC += positions.astype(self.dtype)

        def split(y: jax.Array) -> jax.Array:
            return y.reshape(batch, -1, self.heads, channels // self.heads)

        bias_init = torch_uniform(channels)
        query = split(dense(channels, bias_init=bias_init, name="query")(x_BLC[:, :1]))
        key = split(dense(channels, bias_init=bias_init, name="key")(x_BLC))
        value = split(dense(channels, bias_init=bias_init, name="value")(x_BLC))
        pooled = jax.nn.dot_product_attention(query, key, value).reshape(batch, channels)
        return dense(self.embed_dim, bias_init=bias_init, name="out")(pooled)


class ModifiedResNet(nn.Module):
    """(B, S, S, 3) float, normalised -> (B, embed_dim) in the compute dtype, not normalised."""

    config: ResNetConfig
    shared: SharedConfig

    @nn.compact
    def __call__(self, images_BSSC: jax.Array, train: bool = False) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.shared.dtype)
        use_batch = train and config.batch_norm == "batch"
        width = config.width
        x = images_BSSC.astype(dtype)
        stem = ((width // 2, 2), (width // 2, 1), (width, 1))
        for index, (features, stride) in enumerate(stem, start=1):
            x = _conv(features, 3, x.shape[-1], dtype, f"stem_conv{index}", stride)(x)
            x = nn.relu(BatchNorm(name=f"stem_norm{index}")(x, use_batch))
        x = _average_pool(x, 2)
        block = rematerialized(Bottleneck, self.shared.remat)
        for stage, depth in enumerate(config.layers):
            for index in range(depth):
                x = block(
                    width=width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    dtype=dtype,
                    use_batch=use_batch,
                    name=f"stage{stage + 1}_block{index}",
                )(x)
        embed_dim = self.shared.embed_dim
        return AttentionPool(config.heads, embed_dim, dtype, name="attention_pool")(x)
