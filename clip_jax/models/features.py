"""Inner features of a tower: the output of every block and the weights of every attention."""

import re
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from clip_jax.models.attention import FEATURES
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower

NUMBERS = re.compile(r"\d+")


class Features(NamedTuple):
    """Features of one tower's forward pass by path ("transformer/blocks_3"), ordered by depth."""

    outputs: dict[str, jax.Array]  # of each block: (B, L, D), or (B, H, W, C)
    attention: dict[str, jax.Array]  # (B, H, L, N) float32, rows sum to 1


def tower_features(config: ClipConfig, params: Any, inputs: jax.Array, tower: str) -> Features:
    """Computes the block outputs and attention maps of one tower.

    `tower` is "image" for (B, S, S, 3) normalised float, "text" for (B, L) int tokens. A class
    token is token 0 of an image; patches follow row by row. Maps of attention pools are included.
    Equal to `apply(…, mutable=["features"])`, but ordered.
    """
    _, variables = TwoTower(config).apply(
        {"params": params}, inputs, method=f"encode_{tower}", mutable=[FEATURES]
    )
    found: dict[str, dict[str, jax.Array]] = {"output": {}, "weights": {}}
    sown = flatten_dict(variables.get(FEATURES, {}))
    for path, values in sown.items():
        name = "/".join(path[1:-1]).removesuffix("/attention")
        if "blocks" in path:  # scanned: the leading axis is the layer
            for layer, value in enumerate(values[0]):
                found[path[-1]][name.replace("blocks", f"blocks_{layer}")] = value
        else:
            found[path[-1]][name] = values[0]
    return Features(*(in_order(found[kind]) for kind in ("output", "weights")))


def in_order(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sorts by depth, "blocks_2" before "blocks_10" and pools last; `jit` loses this order."""

    def key(name: str) -> tuple[bool, list[int], str]:
        return "pool" in name, [int(number) for number in NUMBERS.findall(name)], name

    return {name: values[name] for name in sorted(values, key=key)}
