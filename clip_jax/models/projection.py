"""Projection of a tower's feature into the shared space."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.initializers import Init
from clip_jax.models.transformer import gelu


def project(
    module: nn.Module, pooled_BD: jax.Array, kind: str, hidden: int, embed_dim: int, init: Init
) -> jax.Array:
    """(B, D) -> (B, embed_dim): projects with the parameters `projection…` of the calling module.

    `kind` is a `ProjectionKind` of `ClipConfig`; `hidden` is the hidden width of an MLP, which has
    the exact GELU in every family.
    """
    if kind == "none":
        return pooled_BD
    dtype, width = pooled_BD.dtype, pooled_BD.shape[-1]
    zeros = nn.initializers.zeros
    if kind.startswith("mlp"):
        kernel = module.param("projection_in", init, (width, hidden), jnp.float32)
        hidden_BM = pooled_BD @ kernel.astype(dtype)
        if kind == "mlp_bias":
            hidden_BM += module.param("projection_in_bias", zeros, (hidden,), jnp.float32).astype(
                dtype
            )
        kernel = module.param("projection_out", init, (hidden, embed_dim), jnp.float32)
        return gelu(hidden_BM) @ kernel.astype(dtype)
    kernel = module.param("projection", init, (width, embed_dim), jnp.float32)
    projected = pooled_BD @ kernel.astype(dtype)
    if kind == "linear_bias":
        bias = module.param("projection_bias", zeros, (embed_dim,), jnp.float32)
        projected += bias.astype(dtype)
    return projected
