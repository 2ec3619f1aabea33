"""FLOP counts of a model, the reference for utilisation.

They count matrix products and convolutions, two operations per multiply-add, in the traced program
of one forward pass. The compiler's own count would not do: it sees the body of a scan once and
counts recomputation as work.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower, dummy_inputs, param_shapes

# The peaks are dense bfloat16 operations per second of one device, by `jax.Device.device_kind`,
# from the vendors' data sheets. For a kind that is not listed, utilisation is null.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def _inner(value: Any) -> Iterator[Any]:
    """Yields the programs inside a parameter of an operation."""
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inner(item)


def _operations(program: Any) -> float:
    """Counts the operations of a traced program's matrix products and convolutions."""
    total = 0.0
    for equation in program.eqns:
        name = equation.primitive.name
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * out * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * out * math.prod(kernel) / features
        else:
            times = equation.params["length"] if name == "scan" else 1
            bodies = (body for value in equation.params.values() for body in _inner(value))
            total += times * sum(_operations(body) for body in bodies)
    return total


@functools.lru_cache
def _count(
    config: ClipConfig, method: str, inputs: tuple[int, ...], training: bool = False
) -> float:
    """Counts the operations of a model method on a batch of one.

    `inputs` are the method's arguments: 0 image, 1 text. With `training`, `patch_dropout` applies.
    """
    # Stacked blocks are traced once; remat would not change a forward pass.
    config = dataclasses.replace(config, scan_layers=True, remat="none", dtype="float32")
    params = param_shapes(config)
    arguments = [dummy_inputs(config)[index] for index in inputs]

    def forward(params: Any, *arguments: jax.Array) -> jax.Array:
        more: dict[str, Any] = {}
        if training and getattr(config.vision, "patch_dropout", None):
            more = {"train": True, "rngs": {"dropout": jax.random.key(0)}}
        out: Any = TwoTower(config).apply({"params": params}, *arguments, method=method, **more)
        return jnp.sum(out)

    return _operations(jax.make_jaxpr(forward)(params, *arguments).jaxpr)


def image_flops(config: ClipConfig) -> float:
    """Forward operations of one image."""
    return _count(config, "encode_image", (0,))


def text_flops(config: ClipConfig) -> float:
    """Forward operations of one text of full length."""
    return _count(config, "encode_text", (1,))


def step_flops(
    config: ClipConfig, batch_size: int, frozen: Collection[str] = (), backward: int = 2
) -> float:
    """Operations of one training step, without recomputation.

    Backward takes twice as many as forward (once if only an adapter is trained), and none in
    `frozen` towers ("vision", "text"); the loss matrix counts three times.
    """
    image = _count(config, "encode_image", (0,), training=True)
    times = {name: 1 if name in frozen else 1 + backward for name in ("vision", "text")}
    loss = 3 * 2 * batch_size**2 * config.embed_dim
    return batch_size * (times["vision"] * image + times["text"] * text_flops(config)) + loss


def peak_flops(device_kind: str) -> float | None:
    """Peak operations per second of one device, or None if unknown."""
    return PEAK_FLOPS.get(device_kind)
