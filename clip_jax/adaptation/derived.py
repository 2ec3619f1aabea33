"""Arrays that `hooks` knows, derived from others that are trained in their place.

TOKENS/coupling (Dt, Dv), TOKENS/coupling_bias (Dv,): tokens of the image tower are a linear map of
  those of the text tower: TOKENS/prompts = P·coupling + bias, with P the learned words, or the
  tokens of the text block of the same number (Khattak et al. 2023, MaPLe, section 3.2).
SITE_singular (r,): change of the singular values of a matrix W = U·diag(s)·Vᵀ, which becomes
  U·diag(s + singular)·Vᵀ (Koleilat et al. 2025, CLIP-SVD): a low-rank update with
  a = U and b = diag(singular)·Vᵀ.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from clip_jax.adaptation.additions import (
    TOWERS,
    blocks_of,
    check_tokens,
    linear_map,
    width_of,
)
from clip_jax.adaptation.context import WORDS
from clip_jax.adaptation.low_rank import PARTS, LowRank, chosen_sites, matrix, sites
from clip_jax.adaptation.tree import Adapter, flat
from clip_jax.arguments import Checked, Range
from clip_jax.models.config import ClipConfig


@dataclasses.dataclass(frozen=True)
class Coupling(Checked):
    """Tokens of the image tower that are linear maps of those of the text tower."""

    depth: Annotated[int, Range(1)] = 9  # number of blocks, from the first; at most all


@dataclasses.dataclass(frozen=True)
class Singular(Checked):
    """Singular values of matrices of the blocks."""

    targets: tuple[str, ...] = (*PARTS, "out", "mlp")  # of `low_rank.TARGETS`
    towers: tuple[str, ...] = TOWERS


def init_coupling(config: ClipConfig, params: Any, options: Coupling, key: jax.Array) -> Adapter:
    """Makes the maps as `linear_map`. Raises UserError for a tower that cannot have tokens."""
    check_tokens(config, "vision")
    from_blocks, to_blocks = blocks_of(params, ("text",)), blocks_of(params, ("vision",))
    inputs, outputs = width_of(params, from_blocks[0]), width_of(params, to_blocks[0])
    depth = min(options.depth, len(from_blocks), len(to_blocks))
    found: Adapter = {}
    for layer, place in enumerate(["vision", *to_blocks[1:depth]]):
        kernel, bias = linear_map(jax.random.fold_in(key, layer), inputs, outputs)
        found |= {f"{place}/coupling": kernel, f"{place}/coupling_bias": bias}
    return found


def init_singular(params: Any, options: Singular) -> Adapter:
    """Makes changes of zero. Raises UserError for a target that the towers do not have."""
    chosen = chosen_sites(params, LowRank(1, targets=options.targets, towers=options.towers))
    return {
        f"{site.path}_singular": jnp.zeros(min(site.inputs, site.outputs), jnp.float32)
        for site in chosen
    }


def bases(params: Any, adapter: Adapter) -> Adapter:
    """Returns what `derived` needs of the parameters, float32.

    It is SITE_left (in, r) and SITE_right (r, out), the singular vectors of each matrix whose
    singular values the adapter changes. They are computed anew for each model, and never stored.
    """
    found: Adapter = {}
    leaves = flat(params)
    for site in sites(params):
        if f"{site.path}_singular" in adapter:
            weight = jnp.asarray(matrix(leaves[site.kernel], site), jnp.float32)
            left, _, right = jnp.linalg.svd(weight, full_matrices=False)
            found |= {f"{site.path}_left": left, f"{site.path}_right": right}
    return found


def derived(adapter: Adapter, of_base: Adapter) -> Adapter:
    """Returns the adapter with tokens and low-rank updates in place of what they come from.

    `of_base` is from `bases`. Differentiable. The scale of the updates must be 1.
    """
    found: Adapter = {}
    for path, leaf in adapter.items():
        place, _, name = path.rpartition("/")
        if name == "coupling":
            source = WORDS if place == "vision" else place.replace("vision", "text", 1) + "/prompts"
            found[f"{place}/prompts"] = adapter[source] @ leaf + adapter[f"{place}/coupling_bias"]
        elif path.endswith("_singular"):
            site = path.removesuffix("_singular")
            found[f"{site}_a"] = of_base[f"{site}_left"]
            found[f"{site}_b"] = leaf[:, None] * of_base[f"{site}_right"]
        elif name != "coupling_bias":
            found[path] = leaf
    return found
