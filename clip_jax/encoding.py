"""Compiled steps that encode batches of images and of texts."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from clip_jax.adaptation.hooks import ADAPTER, entering
from clip_jax.models.config import ClipConfig
from clip_jax.models.heads import POOLED
from clip_jax.models.two_tower import TwoTower, l2_normalize, normalize_images


@functools.partial(jax.jit, static_argnames=("config", "normalize", "out_sharding", "projected"))
def embed_images(
    params: Any,
    images: jax.Array,
    config: ClipConfig,
    normalize: bool,
    out_sharding: NamedSharding,
    projected: bool = True,
) -> jax.Array:
    """(B, S, S, 3) uint8 -> (B, D) float32: compiled evaluation step of images.

    With `projected=False`, (B, W): what the tower has before its projection; ResNets have none.
    """
    kept = () if projected else (POOLED,)
    images = normalize_images(images, config)
    embeds, sown = _apply(params, images, config, "encode_image", kept)
    embeds = next(iter(jax.tree.leaves(sown)), embeds)
    embeds = l2_normalize(embeds) if normalize else embeds.astype(jnp.float32)
    return jax.lax.with_sharding_constraint(embeds, out_sharding)


@functools.partial(jax.jit, static_argnames=("config", "normalize", "out_sharding"))
def embed_tokens(
    params: Any, tokens: jax.Array, config: ClipConfig, normalize: bool, out_sharding: NamedSharding
) -> jax.Array:
    """(B, L) int32 -> (B, D) float32: compiled evaluation step of texts."""
    embeds, _ = _apply(params, tokens, config, "encode_text")
    embeds = l2_normalize(embeds) if normalize else embeds.astype(jnp.float32)
    return jax.lax.with_sharding_constraint(embeds, out_sharding)


def _apply(
    params: Any, inputs: jax.Array, config: ClipConfig, method: str, kept: Sequence[str] = ()
) -> Any:
    """Applies a model, with the adapter that `AdaptedClip` may have put beside its parameters.

    Returns its output, and the collections `kept`.
    """
    with entering():
        variables = {"params": params, ADAPTER: params.get(ADAPTER, {})}
        return TwoTower(config).apply(variables, inputs, method=method, mutable=list(kept))
