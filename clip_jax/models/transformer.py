"""The pre-LayerNorm Transformer that both towers are made of (paper section 2.4).

Shape letters: B batch, L tokens, D width, H heads, K head dimension (D = H·K), M width of the MLP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.constraints import constrain_batch

Array = jax.Array
Init = Callable[..., Array]  # (key, shape, dtype) -> initial values


def quick_gelu(x: Array) -> Array:
    """x·sigmoid(1.702 x): the GELU of OpenAI's released weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x·Φ(x), exact. By erf; `jax.nn.gelu` takes erfc, which costs several times as much."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


def torch_uniform(fan_in: int) -> Init:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch gives Linear and convolution layers by
    default, and so what OpenAI's code leaves in every layer that it does not initialise itself."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Initializers:
    """Initial values of one tower's blocks, by the rule of OpenAI's released code."""

    def __init__(self, width: int, mlp_dim: int, layers: int, *, scaled: bool):
        if scaled:  # the text tower
            residual_std = width**-0.5 * (2 * layers) ** -0.5
            self.query_key_value: Init = nn.initializers.normal(width**-0.5)
            self.attention_out: Init = nn.initializers.normal(residual_std)
            self.mlp_in: Init = nn.initializers.normal((2 * width) ** -0.5)
            self.mlp_out: Init = nn.initializers.normal(residual_std)
        else:  # the image tower keeps its framework's defaults: xavier for the fused (D, 3D) matrix
            self.query_key_value = _xavier_uniform_fused(width)
            self.attention_out = torch_uniform(width)
            self.mlp_in = torch_uniform(width)
            self.mlp_out = torch_uniform(mlp_dim)
        self.mlp_in_bias = torch_uniform(width)
        self.mlp_out_bias = torch_uniform(mlp_dim)


def _xavier_uniform_fused(width: int) -> Init:
    bound = (6 / (width + 3 * width)) ** 0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class Attention(nn.Module):
    """Multi-head self-attention, (B, L, D) -> (B, L, D), softmax in float32."""

    heads: int
    causal: bool
    dtype: jnp.dtype
    inits: Initializers

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        width = x_BLD.shape[-1]
        head_dim = width // self.heads
        # One matrix for the three projections (one product instead of three); heads are an axis of
        # their own, so that tensor parallelism can split them.
        kernel = self.param(
            "query_key_value",
            self.inits.query_key_value,
            (width, 3, self.heads, head_dim),
            jnp.float32,
        )
        bias = self.param(
            "query_key_value_bias", nn.initializers.zeros, (3, self.heads, head_dim), jnp.float32
        )
        out = self.param(
            "out", self.inits.attention_out, (self.heads, head_dim, width), jnp.float32
        )
        out_bias = self.param("out_bias", nn.initializers.zeros, (width,), jnp.float32)

        qkv = jnp.einsum("bld,dshk->blshk", x_BLD, kernel.astype(self.dtype))
        qkv += bias.astype(self.dtype)
        query_BLHK, key_BLHK, value_BLHK = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        mixed_BLHK = jax.nn.dot_product_attention(
            query_BLHK, key_BLHK, value_BLHK, is_causal=self.causal
        )
        out_BLD = jnp.einsum("blhk,hkd->bld", mixed_BLHK, out.astype(self.dtype))
        return out_BLD + out_bias.astype(self.dtype)


class Mlp(nn.Module):
    """Linear, activation, linear: (B, L, D) -> (B, L, D)."""

    mlp_dim: int
    activation: str
    dtype: jnp.dtype
    inits: Initializers

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        hidden_BLM = nn.Dense(
            self.mlp_dim,
            dtype=self.dtype,
            kernel_init=self.inits.mlp_in,
            bias_init=self.inits.mlp_in_bias,
            name="in",
        )(x_BLD)
        hidden_BLM = constrain_batch(ACTIVATIONS[self.activation](hidden_BLM))
        return nn.Dense(
            x_BLD.shape[-1],
            dtype=self.dtype,
            kernel_init=self.inits.mlp_out,
            bias_init=self.inits.mlp_out_bias,
            name="out",
        )(hidden_BLM)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    heads: int
    mlp_dim: int
    causal: bool
    activation: str
    norm_eps: float
    dtype: jnp.dtype
    inits: Initializers

    @nn.compact
    def __call__(self, x_BLD: Array, _: None = None) -> tuple[Array, None]:
        # The constraint keeps the batch split under FSDP; without it the partitioner follows the
        # weights' sharding and memory grows several times over.
        x_BLD = constrain_batch(x_BLD)
        normed = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="attention_norm")(x_BLD)
        x_BLD += Attention(self.heads, self.causal, self.dtype, self.inits, name="attention")(
            normed
        )
        normed = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="mlp_norm")(x_BLD)
        x_BLD += Mlp(self.mlp_dim, self.activation, self.dtype, self.inits, name="mlp")(normed)
        return constrain_batch(x_BLD), None


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Transformer(nn.Module):
    """A stack of blocks, (B, L, D) -> (B, L, D).

    `scan_layers` compiles one block and scans it over parameters with a leading layer axis
    (`blocks/…`); otherwise the blocks are `blocks_0`, `blocks_1`, … `remat` names what the
    backward pass recomputes.
    """

    layers: int
    heads: int
    mlp_dim: int
    causal: bool
    activation: str
    norm_eps: float
    dtype: jnp.dtype
    scaled_init: bool
    scan_layers: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        block = Block
        if self.remat != "none":
            # Inside a scan the loop itself prevents common-subexpression elimination.
            block = nn.remat(
                Block, prevent_cse=not self.scan_layers, policy=REMAT_POLICIES[self.remat]
            )
        make = functools.partial(
            block,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            causal=self.causal,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            inits=Initializers(x_BLD.shape[-1], self.mlp_dim, self.layers, scaled=self.scaled_init),
        )
        if self.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            return scanned(**make.keywords, name="blocks")(x_BLD, None)[0]
        for index in range(self.layers):
            x_BLD, _ = make(name=f"blocks_{index}")(x_BLD, None)
        return x_BLD
