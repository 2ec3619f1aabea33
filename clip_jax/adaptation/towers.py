"""Towers with an adapter: its arrays enter beside their kernels, in place of them, or merged."""

from typing import Any

import jax

from clip_jax.adaptation.hooks import ADAPTER, entering
from clip_jax.adaptation.low_rank import is_hooked, merged, sites
from clip_jax.adaptation.tree import Adapter, flat, nested
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower


def entered(params: Any, adapter: Adapter, scale: Any) -> dict[str, Any]:
    """Returns the variables of a `TwoTower` with the adapter, which `entering` lets in.

    Differentiable with respect to the adapter. Leaves named like a parameter replace it; low-rank
    updates without a hook are merged.
    """
    params = merged(params, adapter, scale, hooked_too=False)
    left = {path: leaf for path, leaf in adapter.items() if path not in flat(params)}
    for site in sites(params):
        names = [f"{site.path}_{name}" for name in ("a", "b", "magnitude")]
        if names[0] in left:
            a, b, _ = (left.pop(name, None) for name in names)
            if is_hooked(site, adapter):
                left[names[0]], left[names[1]] = a, b * scale
    return {"params": params, ADAPTER: nested(left)}


def encode(
    config: ClipConfig,
    params: Any,
    adapter: Adapter,
    inputs: jax.Array,
    tower: str,
    scale: Any = 1.0,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Encodes normalised images (B, S, S, 3) or tokens (B, L) -> (B, D), not L2-normalised.

    Args:
      config, params: of a model whose blocks are separate (`tree.with_separate_blocks`).
      tower: "vision" or "text".
      scale: s of the low-rank updates.
      dropout: rate before low-rank updates; if it is not 0, `key` is needed.
    """
    variables = entered(params, adapter, scale)
    method = {"vision": "encode_image", "text": "encode_text"}[tower]
    rngs = {} if key is None else {ADAPTER: key}
    with entering(dropout):
        embeds: Any = TwoTower(config).apply(variables, inputs, method=method, rngs=rngs)
    return embeds
