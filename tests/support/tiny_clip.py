"""Tiny CLIPs with a random value in every parameter, for the tests of loading and saving."""

from typing import Any

import jax
import numpy as np

from clip_jax.clip import Clip
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.two_tower import init_params
from clip_jax.weights.layouts.open_clip import IGNORED, open_clip_rules
from clip_jax.weights.rules.table import ArrayTensors, read_params, write_tensors

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "image_size": 32,
    "vision__patch_size": 8,
    "vision__width": 32,
    "vision__layers": 2,
    "vision__heads": 2,
    "vision__mlp_dim": 48,
    "context_length": 12,
    "vocab_size": 60,
    "text__width": 32,
    "text__layers": 2,
    "text__heads": 2,
    "text__mlp_dim": 64,
}
RESNET = {name: value for name, value in TINY.items() if not name.startswith("vision__")} | {
    "vision__kind": "resnet",
    "vision__width": 4,
    "vision__layers": (1, 1, 1, 1),
    "vision__heads": 2,
}


def random_params(config: ClipConfig) -> Any:
    """A random value in every leaf, none of them 0 or 1."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def values(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        one = path[-1].key in ("scale", "var")
        return (one + rng.uniform(-0.3, 0.3, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(values, shapes)


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """{"vision__width": 8} -> {"vision": {"width": 8}}, as `override` and `create` take it."""
    result: dict[str, Any] = {}
    for key, value in fields.items():
        part, _, name = key.rpartition("__")
        (result.setdefault(part, {}) if part else result)[name] = value
    return result


def changed(config: ClipConfig, **fields: Any) -> ClipConfig:
    """`config` with some fields changed, those of towers as `vision__width=8`."""
    return override(config, **nested(fields))


def tiny_architecture(**changes: Any) -> ClipConfig:
    base = RESNET if changes.get("vision__kind") == "resnet" else TINY
    return changed(ClipConfig(), **(base | changes))


def tiny(**changes: Any) -> Clip:
    config = tiny_architecture(**changes)
    return Clip(config, random_params(config))


def to_state_dict(config: ClipConfig, params: Any) -> dict[str, np.ndarray]:
    """open_clip's tensors by name."""
    return dict(write_tensors(config, open_clip_rules(config), params))


def from_state_dict(config: ClipConfig, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `to_state_dict`."""
    rules = open_clip_rules(config, any(name.startswith("text.") for name in tensors))
    return read_params(config, rules, ArrayTensors(tensors), IGNORED)


def images(clip: Clip) -> np.ndarray:
    size = clip.config.image_size
    return np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)


def leaves(params: Any) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_params(a: Any, b: Any) -> None:
    ours, theirs = leaves(a), leaves(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert np.array_equal(value, theirs[name]), name
