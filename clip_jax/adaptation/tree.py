"""Adapters as flat trees: path -> array, where a path is that of a parameter or beside one."""

import dataclasses
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clip_jax.models.config import ClipConfig

Adapter = dict[str, Any]


def flat(params: Any) -> dict[str, Any]:
    """Returns a model's parameters by path, such as "vision/transformer/blocks_3/mlp/in/kernel"."""
    return flatten_dict(params, sep="/")


def nested(leaves: dict[str, Any]) -> Any:
    """Returns the tree of dictionaries that `flat` came from."""
    return unflatten_dict(leaves, sep="/")


def with_separate_blocks(config: ClipConfig, params: Any) -> tuple[ClipConfig, Any]:
    """Returns a model whose blocks are `blocks_0`, `blocks_1`, …, which adapters name; no copies
    of the others.
    """
    if not config.scan_layers:
        return config, params
    leaves = {}
    for path, leaf in flat(params).items():
        if "/blocks/" in path:
            for layer in range(len(leaf)):
                leaves[path.replace("/blocks/", f"/blocks_{layer}/")] = leaf[layer]
        else:
            leaves[path] = leaf
    return dataclasses.replace(config, scan_layers=False), nested(leaves)


def with_stacked_blocks(params: Any, like: Any) -> Any:
    """Returns parameters in the layout of `like`, where blocks may be stacked."""
    leaves, stacked = flat(params), {}
    for path, leaf in flat(like).items():
        if "/blocks/" in path:
            names = (path.replace("/blocks/", f"/blocks_{layer}/") for layer in range(len(leaf)))
            stacked[path] = np.stack([np.asarray(leaves[name]) for name in names])
        else:
            stacked[path] = leaves[path]
    return nested(stacked)
