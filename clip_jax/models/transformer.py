"""Transformer block (paper section 2.4) and stacks of it, from which the towers are built.

One implementation serves all families through the options of `BlockConfig`. Shape letters: B
batch, L tokens, D width, M width of the MLP.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from clip_jax.models.attention import (
    CACHE,
    FEATURES,
    MEMORY,
    NO_CONTEXT,
    Attention,
    BlockConfig,
    Context,
)
from clip_jax.models.constraints import constrain_batch, materialize
from clip_jax.models.initializers import BlockInitializers
from clip_jax.models.kinds import SharedConfig
from clip_jax.models.remat import BLOCK_INPUT, rematerialized

Array = jax.Array


def quick_gelu(x: Array) -> Array:
    """x·sigmoid(1.702 x): the GELU of OpenAI's released weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x·Φ(x), exact. Uses erf, as the erfc of `jax.nn.gelu` costs several times as much."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


class Mlp(nn.Module):
    """Linear, activation, linear, optionally gated: (B, L, D) -> (B, L, D)."""

    config: BlockConfig
    inits: BlockInitializers

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        config, inits = self.config, self.inits
        widen = functools.partial(
            nn.Dense,
            config.mlp_dim,
            dtype=config.dtype,
            kernel_init=inits.mlp_in,
            bias_init=inits.mlp_in_bias,
        )
        norm = nn.LayerNorm(config.norm_eps, dtype=config.dtype, name="norm")
        activation = jax.nn.silu if config.mlp == "swiglu" else ACTIVATIONS[config.activation]
        if config.mlp == "geglu":
            x_BLD = norm(x_BLD)
        hidden_BLM = widen(name="in")(x_BLD)
        if config.mlp == "plain":
            hidden_BLM = constrain_batch(activation(hidden_BLM), split=-1)
        else:
            gate_BLM = activation(widen(name="gate")(x_BLD))
            hidden_BLM = constrain_batch(gate_BLM * hidden_BLM, split=-1)
        if config.mlp == "swiglu":
            hidden_BLM = norm(hidden_BLM)
        return nn.Dense(
            x_BLD.shape[-1],
            dtype=config.dtype,
            kernel_init=inits.mlp_out,
            bias_init=inits.mlp_out_bias,
            name="out",
        )(materialize(hidden_BLM))


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)); `BlockConfig.norm` can move the norms."""

    config: BlockConfig
    inits: BlockInitializers

    @nn.compact
    def __call__(self, x_BLD: Array, context: Context = NO_CONTEXT) -> tuple[Array, None]:
        # The constraint keeps the batch split under FSDP; without it the partitioner follows the
        # weights' sharding, at several times the memory.
        x_BLD = checkpoint_name(constrain_batch(x_BLD), BLOCK_INPUT)
        if context.memory_BNC is not None:
            memory = self._norm("memory_norm")(context.memory_BNC)
            context = context._replace(memory_BNC=memory)
        attention = Attention(self.config, self.inits, name="attention")
        x_BLD = constrain_batch(self._branch(x_BLD, lambda x: attention(x, context), "attention"))
        x_BLD = self._branch(x_BLD, Mlp(self.config, self.inits, name="mlp"), "mlp")
        x_BLD = constrain_batch(x_BLD)
        self.sow(FEATURES, "output", x_BLD)
        return x_BLD, None

    def _branch(self, x_BLD: Array, branch: Callable[[Array], Array], name: str) -> Array:
        norm = self._norm(f"{name}_norm")
        if self.config.norm == "post":
            return norm(x_BLD + branch(x_BLD))
        added = branch(norm(x_BLD)) if self.config.norm == "pre" else norm(branch(x_BLD))
        if self.config.layer_scale is not None:
            gain = nn.initializers.constant(self.config.layer_scale)
            scale = self.param(f"{name}_scale", gain, x_BLD.shape[-1:], jnp.float32)
            added *= scale.astype(self.config.dtype)
        return x_BLD + added

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(self.config.norm_eps, dtype=self.config.dtype, name=name)


class Transformer(nn.Module):
    """Stack of blocks of the class `block`, (B, L, D) -> (B, L, D).

    `scan_layers` compiles one block and scans it over parameters with a leading layer axis
    (`blocks/…`); otherwise the blocks are `blocks_0`, `blocks_1`, … `remat` names what the
    backward pass recomputes.
    """

    layers: int
    config: BlockConfig
    scan_layers: bool = False
    remat: str = "none"
    block: type[nn.Module] = Block

    @nn.compact
    def __call__(self, x_BLD: Array, context: Context = NO_CONTEXT) -> Array:
        block = rematerialized(self.block, self.remat, in_scan=self.scan_layers)
        inits = BlockInitializers(
            self.config.init, x_BLD.shape[-1], self.config.mlp_dim, self.layers
        )
        if self.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, FEATURES: 0, CACHE: 0, MEMORY: 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=self.layers,
            )
            return scanned(self.config, inits, name="blocks")(x_BLD, context)[0]
        for index in range(self.layers):
            x_BLD, _ = block(self.config, inits, name=f"blocks_{index}")(x_BLD, context)
        return x_BLD


def stack(
    layers: int, config: BlockConfig, shared: SharedConfig, block: type[nn.Module] = Block
) -> Transformer:
    """The blocks of a tower, called "transformer" in the module that makes them."""
    return Transformer(layers, config, shared.scan_layers, shared.remat, block, name="transformer")
