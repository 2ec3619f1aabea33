"""Multi-head attention (paper section 2.4), and the configuration of a block.

Shape letters: B batch, L tokens, D width, H heads, K head dimension (D = H·K), N memory tokens, C
memory width.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from clip_jax.models.constraints import constrain_batch
from clip_jax.models.initializers import BlockInitializers
from clip_jax.models.kernels.choice import choose, dot_product, key_mask
from clip_jax.models.kinds import HybridConfig, VitConfig
from clip_jax.models.remat import ATTENTION_PROJECTED

Array = jax.Array

# A forward pass with `mutable=["features"]` also returns every block's output (B, L, D) and the
# weights of every attention (B, H, L, N), float32.
FEATURES = "features"
# Generation keeps these between tokens: keys and values of the tokens so far, and of the memory.
CACHE, MEMORY = "cache", "memory"
ROPE_TEMPERATURE = 10_000.0


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Options of the blocks of one tower."""

    heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    dtype: jnp.dtype
    init: str
    causal: bool = False
    # "pre": x + f(LN(x)); "post": LN(x + f(x)), BERT; "branch": x + LN(f(x)), EVA-02-E.
    norm: Literal["pre", "post", "branch"] = "pre"
    # "swiglu": silu(gate)·x, then LayerNorm (EVA-02); "geglu": LayerNorm, then gelu(gate)·x
    # (ViTamin).
    mlp: Literal["plain", "swiglu", "geglu"] = "plain"
    inner_norm: bool = False  # LayerNorm on attention's output, before its projection
    key_bias: bool = True
    query_value_bias: bool = True  # False: keys have no bias either
    layer_scale: float | None = None  # initial gain of each branch
    attention: str = "auto"  # as in `ClipConfig`


class Context(NamedTuple):
    """Inputs of a block beside its tokens, shared by all blocks of a stack."""

    mask: Array | None = None  # bool, broadcastable to (B, H, L, L or N): True may be attended to
    rope: tuple[Array, Array] | None = None  # cosine and sine, (L, K) float32
    memory_BNC: Array | None = None  # for cross-attention
    position: Array | None = None  # () int, in generation: x holds only the token at this position


NO_CONTEXT = Context()


def rope_tables(config: VitConfig | HybridConfig, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of every token's angles, (L, K) float32 each; K is the width of a head.

    The first half of a head's features rotates with one coordinate, the second with the other
    (`rope` gives the order), each feature pair with its own frequency. Positions are scaled
    so that any grid spans `rope_grid`, on which the model was trained. A class token is not
    rotated.
    """
    grid, bands = config.grid(image_size), config.width // config.heads // 4
    frequencies = (1.0 / ROPE_TEMPERATURE ** (np.arange(bands) / bands)).astype(np.float32)
    steps = np.arange(grid, dtype=np.float32) + np.float32(config.rope_offset)
    steps = steps / np.float32(grid) * np.float32(config.rope_grid)
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    coordinates = (rows, columns) if config.rope == "yx" else (columns, rows)
    angles = np.concatenate([x.reshape(-1, 1) * frequencies for x in coordinates], axis=-1)
    angles = np.repeat(angles, 2, axis=-1)  # both features of a pair share an angle
    if config.class_token:
        angles = np.concatenate([np.zeros_like(angles[:1]), angles])
    return np.cos(angles), np.sin(angles)


def rotate(x_BLHK: Array, rope: tuple[Array, Array]) -> Array:
    """Rotates each pair of neighbouring features by its angle (RoPE, Su et al. 2021)."""
    cosine_L1K, sine_L1K = (table[:, None, :] for table in rope)
    pairs = x_BLHK.reshape(*x_BLHK.shape[:-1], -1, 2).astype(jnp.float32)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x_BLHK.shape)
    return (x_BLHK * cosine_L1K + turned * sine_L1K).astype(x_BLHK.dtype)


class Attention(nn.Module):
    """Multi-head attention, (B, L, D) -> (B, L, D), softmax in float32.

    Queries come from `x_BLD`, keys and values from the context's memory, or from `x_BLD` as well.
    """

    config: BlockConfig
    inits: BlockInitializers

    @nn.compact
    def __call__(self, x_BLD: Array, context: Context = NO_CONTEXT) -> Array:
        config, dtype, width = self.config, self.config.dtype, x_BLD.shape[-1]
        if self._is_fused(x_BLD, context):
            mixed_BLD = self._fused(x_BLD, context)
        else:
            mixed_BLD = self._mixed(x_BLD, context)
        if config.inner_norm:
            norm = nn.LayerNorm(config.norm_eps, dtype=dtype, name="inner_norm")
            mixed_BLD = norm(mixed_BLD)
        shape = (config.heads, width // config.heads, width)
        out = self.param("out", self.inits.attention_out, shape, jnp.float32).astype(dtype)
        out_bias = self.param("out_bias", nn.initializers.zeros, (width,), jnp.float32)
        return mixed_BLD @ out.reshape(width, width) + out_bias.astype(dtype)

    def _is_fused(self, x_BLD: Array, context: Context) -> bool:
        """Whether this is plain self-attention by the TPU's kernel, without heads as an axis."""
        others = (context.rope, context.memory_BNC, context.position)
        if any(other is not None for other in others) or self.is_mutable_collection(FEATURES):
            return False
        heads, dtype = self.config.heads, self.config.dtype
        shape = (*x_BLD.shape[:2], heads, x_BLD.shape[-1] // heads)
        query = jax.ShapeDtypeStruct(shape, dtype)
        return choose(self.config.attention, query, query, context.mask) == "tpu"

    def _fused(self, x_BLD: Array, context: Context) -> Array:
        """Self-attention, (B, L, D), by the TPU's kernel."""
        # Pallas takes half a second to import, and only a TPU needs it.
        from clip_jax.models.kernels.tpu_attention import tpu_self_attention

        heads, dtype, width = self.config.heads, self.config.dtype, x_BLD.shape[-1]
        shape = (heads, width // heads)
        kernel_SDD = self._joint_kernel(width, shape).reshape(width, 3, width).swapaxes(0, 1)
        biases_SD = self._bias(shape).astype(dtype).reshape(3, width)
        # Three products, since the parts of a single one would be copied out for the kernel.
        query, key, value = (constrain_batch(x_BLD @ part, split=2) for part in kernel_SDD)
        mask = None if context.mask is None else key_mask(context.mask, x_BLD)
        mixed_BLD = tpu_self_attention(
            (query, key, value), biases_SD, heads, self.config.causal, mask
        )
        return constrain_batch(mixed_BLD, split=2)

    def _mixed(self, x_BLD: Array, context: Context) -> Array:
        """Attention before its last projection, (B, L, D)."""
        config, width = self.config, x_BLD.shape[-1]
        query, key, value = self._query_key_value(x_BLD, context, width // config.heads)
        if context.rope is not None:
            query, key = rotate(query, context.rope), rotate(key, context.rope)
        query, key, value = (checkpoint_name(x, ATTENTION_PROJECTED) for x in (query, key, value))
        causal = config.causal
        if context.position is not None and context.memory_BNC is None:
            key = self._with_past("key", key, context)
            value = self._with_past("value", value, context)
            causal = False  # the mask already hides later tokens
        if self.is_mutable_collection(FEATURES):
            weights = attention_weights(query, key, causal, context.mask)
            self.sow(FEATURES, "weights", weights)
        mixed = dot_product(query, key, value, causal, context.mask, config.attention)
        return constrain_batch(mixed, split=2).reshape(x_BLD.shape)

    def _query_key_value(
        self, x_BLD: Array, context: Context, head_dim: int
    ) -> tuple[Array, Array, Array]:
        """Returns query (B, L, H, K), key and value (B, N, H, K).

        The three projections share one matrix if the widths allow it (one product instead of
        three). Heads are a separate axis, so that tensor parallelism can split them.
        """
        dtype, width, heads = self.config.dtype, x_BLD.shape[-1], self.config.heads
        memory = context.memory_BNC
        init, shape = self.inits.query_key_value, (heads, head_dim)
        bias = self._bias(shape).astype(dtype)
        if memory is None or memory.shape[-1] == width:
            kernel = self._joint_kernel(width, shape)
            if memory is None:
                qkv = constrain_batch(jnp.einsum("bld,dshk->blshk", x_BLD, kernel) + bias, split=3)
                return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
            query_kernel, key_value_kernel = kernel[:, 0], kernel[:, 1:]
        else:
            query_kernel = self.param("query", init, (width, *shape), jnp.float32)
            query_kernel = query_kernel.astype(dtype)
            memory_width = memory.shape[-1]
            key_value_kernel = self.param("key_value", init, (memory_width, 2, *shape), jnp.float32)
            key_value_kernel = key_value_kernel.astype(dtype)
        query = constrain_batch(jnp.einsum("bld,dhk->blhk", x_BLD, query_kernel) + bias[0], split=2)

        def of_memory() -> Array:
            product = jnp.einsum("bnc,cshk->bnshk", memory, key_value_kernel) + bias[1:]
            return constrain_batch(product, split=3)

        if context.position is None:
            key_value = of_memory()
        else:  # the memory is the same for all tokens
            key_value = self.variable(MEMORY, "key_value", of_memory).value
        return query, key_value[:, :, 0], key_value[:, :, 1]

    def _joint_kernel(self, width: int, shape: tuple[int, int]) -> Array:
        """Returns the three projections' kernel, (D, 3, H, K), in the compute dtype."""
        init = self.inits.query_key_value
        kernel = self.param("query_key_value", init, (width, 3, *shape), jnp.float32)
        return kernel.astype(self.config.dtype)

    def _with_past(self, name: str, new_B1HK: Array, context: Context) -> Array:
        """(B, 1, H, K) -> (B, N, H, K): adds new keys or values to those of all positions."""
        assert context.mask is not None
        assert context.position is not None
        batch, _, *heads = new_B1HK.shape
        shape = (batch, context.mask.shape[-1], *heads)
        past = self.variable(CACHE, name, jnp.zeros, shape, new_B1HK.dtype)
        past.value = jax.lax.dynamic_update_slice_in_dim(
            past.value, new_B1HK, context.position, axis=1
        )
        return past.value

    def _bias(self, shape: tuple[int, int]) -> Array:
        """Returns (3, H, K) float32, with zeros for projections without a bias."""
        if not self.config.query_value_bias:
            return jnp.zeros((3, *shape), jnp.float32)
        rows = 3 if self.config.key_bias else 2
        zeros = nn.initializers.zeros
        bias = self.param("query_key_value_bias", zeros, (rows, *shape), jnp.float32)
        return bias if rows == 3 else jnp.insert(bias, 1, 0.0, axis=0)


def attention_weights(
    query_BLHK: Array, key_BNHK: Array, causal: bool, mask: Array | None
) -> Array:
    """Computes the attention weights: (B, H, L, N) float32, rows sum to 1."""
    scores = jnp.einsum("blhk,bnhk->bhln", query_BLHK, key_BNHK).astype(jnp.float32)
    scores *= query_BLHK.shape[-1] ** -0.5
    allowed = jnp.ones(scores.shape[-2:], bool)
    if causal:
        allowed = jnp.tril(allowed)
    if mask is not None:
        allowed = allowed & mask
    return jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
