"""Training options by parameter: frozen or not, learning rate, weight decay.

Parameters are identified by paths such as "vision/transformer/blocks_3/mlp/in/kernel"; a pattern is
a regular expression that matches a whole path.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax.errors import UserError
from clip_jax.sharding import leaves_by_path, path_of
from clip_jax.training.config import OptimizerConfig, TowerOptimizerConfig, check_patterns

FREEZE = "config.optimizer.freeze"

# Decay applies to weights that multiply activations. Gains, biases, position tables, the class
# token and the logit scale have none (CLIP paper section 2.5); running statistics are not trained.
NO_DECAY = re.compile(r"(^|/)(\w*bias|\w*scale|\w*magnitude|positions|class_token|mean|var)$")

# No loss of the trainer reaches a caption decoder, which decay alone would shrink.
WITHOUT_LOSS = re.compile(r"decoder/")

# These match paths below a tower's name. In ResNet, ConvNeXt and FastViT the entry of a stage
# counts as part of its first block; a hybrid's whole stem counts as an embedding.
_EMBEDDING = re.compile(
    r"(patch_embedding|patch_embedding_bias|class_token|positions|pre_norm|token_embedding"
    r"|token_types|embedding_norm|stem\w*)(/|$)"
)
_BLOCK = re.compile(r"transformer/blocks_(\d+)/")
_STACK = re.compile(r"transformer/blocks/")
_STAGE = re.compile(r"stage(\d+)_(?:block(\d+)|\w+)/")


def matching(patterns: Sequence[str], paths: Iterable[str], key: str) -> frozenset[str]:
    """Returns the paths that at least one pattern matches completely.

    Raises `UserError` that names `key` and the nearest paths for a pattern that matches none.
    """
    check_patterns(patterns, key)
    paths = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        matched = [path for path in paths if re.fullmatch(pattern, path)]
        if not matched:
            raise UserError(f"{key}: {pattern!r} matches no parameter; {_nearest(pattern, paths)}")
        found.update(matched)
    return frozenset(found)


def _nearest(pattern: str, paths: list[str]) -> str:
    parts = [path.split("/") for path in paths]
    groups = {"/".join(p[:n]) for p in parts for n in range(1, len(p))}
    spelt = re.sub(r"(/?\.[*+])+$", "", pattern).strip("/^$")
    near = difflib.get_close_matches(spelt, [*groups, *paths], n=3, cutoff=0.6)
    if near:
        names = (name + "/.*" if name in groups else name for name in near)
        return f"nearest are {', '.join(map(repr, names))}"
    first = dict.fromkeys(p[0] + "/.*" * (len(p) > 1) for p in parts)
    return f"there are {', '.join(map(repr, first))}"


def frozen_mask(params: Any, patterns: Sequence[str], key: str = FREEZE) -> Any:
    """Mask of the frozen leaves: a tree of bool like `params`.

    Raises `UserError` for a pattern that matches nothing, and if nothing is left to train.
    """
    paths = list(leaves_by_path(params))
    frozen = matching(patterns, paths, key)
    if patterns and len(frozen) == len(paths):
        raise UserError(f"{key}={tuple(patterns)}: freezes every parameter; nothing is left")
    return jax.tree_util.tree_map_with_path(lambda path, _: path_of(path) in frozen, params)


def stop_frozen(params: Any, patterns: Sequence[str]) -> Any:
    """Stops the gradient of the frozen leaves, so that their backward pass is not computed.

    Call it inside the function that is differentiated.
    """
    if not patterns:
        return params
    return jax.tree.map(
        lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf,
        params,
        frozen_mask(params, patterns),
    )


def keep_frozen(new: Any, old: Any, patterns: Sequence[str]) -> Any:
    """Returns `new` with the frozen leaves of `old`, bit for bit.

    Undoes all that a step does to them (running statistics, clamping, averaging).
    """
    if not patterns:
        return new
    return jax.tree.map(
        lambda after, before, frozen: before if frozen else after,
        new,
        old,
        frozen_mask(old, patterns),
    )


def decay_mask(params: Any) -> Any:
    """Mask of the leaves that weight decay acts on."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not NO_DECAY.search(path_of(path)), params
    )


def _tower(path: str, config: OptimizerConfig) -> TowerOptimizerConfig | None:
    """Returns the settings of a parameter's tower.

    None for the logit scale, the logit bias and a caption decoder.
    """
    return {"vision": config.vision, "text": config.text}.get(path.partition("/")[0])


def weight_decays(params: Any, config: OptimizerConfig) -> Any:
    """Weight decay of every leaf, a float: its tower's, else the run's, or 0."""

    def decay(path: Any, decays: bool) -> float:
        tower = _tower(path_of(path), config)
        own = None if tower is None else tower.weight_decay
        return (config.weight_decay if own is None else own) if decays else 0.0

    return jax.tree_util.tree_map_with_path(decay, decay_mask(params))


def rate_multipliers(params: Any, config: OptimizerConfig) -> Any:
    """Learning rate multiplier of every leaf: float, or (layers, 1, …) float32 for stacked blocks.

    It is the tower's multiplier times its layer_decay to the power of the distance from the top
    (Bao et al. 2021, BEiT; Clark et al. 2020, ELECTRA). Of n blocks, block i has distance n - i,
    embeddings have n + 1, and parameters after the blocks have 0.
    """
    distances = {
        tower: _distances(
            {
                path.removeprefix(f"{tower}/"): leaf.shape
                for path, leaf in leaves_by_path(params).items()
                if path.startswith(f"{tower}/")
            }
        )
        for tower in ("vision", "text")
    }

    def multiplier(path: Any, leaf: Any) -> float | np.ndarray:
        name = path_of(path)
        tower = _tower(name, config)
        if tower is None:
            return 1.0
        if tower.layer_decay == 1:
            return tower.learning_rate_multiplier
        first, _, rest = name.partition("/")
        distance = distances[first][rest]
        rate = tower.learning_rate_multiplier * tower.layer_decay**distance
        if isinstance(distance, int):
            return float(rate)
        return rate.reshape(-1, *[1] * (leaf.ndim - 1)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(multiplier, params)


def _distances(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Maps paths below a tower to distances from the top, (layers,) int for stacked blocks."""
    blocks = {path: block for path in shapes if (block := _block(path)) is not None}
    order = {block: index for index, block in enumerate(sorted(set(blocks.values())))}
    stacked = {path: shapes[path][0] for path in shapes if _STACK.match(path)}
    count = max([len(order), *stacked.values()])

    def distance(path: str) -> Any:
        if path in stacked:
            return count - np.arange(count)
        if path in blocks:
            return count - order[blocks[path]]
        return count + 1 if _EMBEDDING.match(path) else 0

    return {path: distance(path) for path in shapes}


def _block(path: str) -> tuple[int, int] | None:
    """Returns (stage, block) of a parameter that belongs to a block, else None."""
    if found := _BLOCK.match(path):
        return 0, int(found[1])
    if found := _STAGE.match(path):
        return int(found[1]), int(found[2] or 0)
    return None


def stack_of(path: str) -> str | None:
    """Returns the tower ("vision", "text", "decoder") of a parameter of stacked blocks, or None."""
    tower, _, rest = path.partition("/")
    return tower if _STACK.match(rest) else None
