"""Heads of towers: pooling by learned queries, and the projection into the shared space."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.attention import Attention, BlockConfig, Context
from clip_jax.models.initializers import BlockInitializers, Init
from clip_jax.models.transformer import Mlp, gelu

POOLED = "pooled"  # collection of what towers have before their projection


class AttentionPoolHead(nn.Module):
    """(B, N, D) -> (B, D): one learned query attends to all tokens, then x + MLP(LN(x)).

    This is the "MAP head" of Zhai et al. 2022 (Scaling Vision Transformers) that SigLIP uses.
    """

    config: BlockConfig

    @nn.compact
    def __call__(self, tokens_BND: jax.Array) -> jax.Array:
        block, width = self.config, tokens_BND.shape[-1]
        inits = BlockInitializers(block.init, width, block.mlp_dim, layers=1)
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, width), jnp.float32)
        probe_B1D = jnp.broadcast_to(probe.astype(block.dtype), (len(tokens_BND), 1, width))
        context = Context(memory_BNC=tokens_BND)
        pooled = Attention(block, inits, name="attention")(probe_B1D, context)
        normed = nn.LayerNorm(block.norm_eps, dtype=block.dtype, name="mlp_norm")(pooled)
        return (pooled + Mlp(block, inits, name="mlp")(normed))[:, 0]


class QueryPool(nn.Module):
    """(B, N, C) -> (B, Q, embed_dim): Q learned queries attend to all tokens (CoCa)."""

    config: BlockConfig
    width: int  # embed_dim
    count: int  # Q

    @nn.compact
    def __call__(self, tokens_BNC: jax.Array) -> jax.Array:
        block, width, count = self.config, self.width, self.count
        inits = BlockInitializers(block.init, width, block.mlp_dim, layers=1)
        queries = self.param("queries", nn.initializers.normal(1.0), (count, width), jnp.float32)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(block.norm_eps, dtype=block.dtype, name=name)

        queries = norm("query_norm")(queries.astype(block.dtype))
        queries_BQD = jnp.broadcast_to(queries, (len(tokens_BNC), count, width))
        context = Context(memory_BNC=norm("memory_norm")(tokens_BNC))
        return Attention(block, inits, name="attention")(queries_BQD, context)


def project(
    module: nn.Module, pooled_BD: jax.Array, kind: str, hidden: int, embed_dim: int, init: Init
) -> jax.Array:
    """(B, D) -> (B, embed_dim): projects with the parameters `projection…` of the calling module.

    `kind` is a `ProjectionKind` of `ClipConfig`; `hidden` is the hidden width of an MLP, which has
    the exact GELU in every family. Sows the pooled features if the collection `POOLED` is mutable.
    """
    module.sow(POOLED, "features", pooled_BD)
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
