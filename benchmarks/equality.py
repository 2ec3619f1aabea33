"""The loss and every gradient on eight simulated devices against one, for all settings.

    python benchmarks/equality.py                                # all
    python benchmarks/equality.py --meshes=2x2x2 --meshes=1x1x8    # data × fsdp × tensor

A tiny two-tower model with random patches left out, float32. Prints a table, a line a mesh, loss
and implementation, for 1, 2 and 4 micro-batches: the largest difference of any gradient leaf,
relative to the leaf's largest value; then one JSON object with the largest of all (limit 1e-5), and
the loss against numpy in float64 (limit 1e-6). About 5 minutes a mesh on two cores, most of it
compilation.
"""

import functools
import json
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from absl import app, flags

from clip_jax import sharding
from clip_jax.models.config import ClipConfig
from clip_jax.models.kinds import TransformerTextConfig, VitConfig
from clip_jax.models.two_tower import TwoTower, init_params, normalize_images
from clip_jax.training.step.gradient import Objective, loss_gradient

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (4, 2, 1))
LOSSES = ("softmax", "sigmoid")
IMPLEMENTATIONS = ("dense", "ring", "chunked")
MICROBATCHES = (1, 2, 4)
BATCH = 64
_MESHES = flags.DEFINE_multi_enum(
    "meshes",
    ["x".join(map(str, mesh)) for mesh in MESHES],
    ["x".join(map(str, mesh)) for mesh in MESHES],
    "Repeat for several.",
)
TINY = ClipConfig(
    embed_dim=32,
    image_size=16,
    context_length=6,
    vocab_size=64,
    logit_bias_init=-4.0,
    scan_layers=True,
    vision=VitConfig(patch_size=4, width=32, layers=2, heads=8, mlp_dim=64, patch_dropout=0.5),
    text=TransformerTextConfig(width=32, layers=2, heads=8, mlp_dim=64),
)
Gradient = tuple[Any, Any]  # the loss, and a tree like the parameters


def make_batch() -> dict[str, np.ndarray]:
    """Random pixels and tokens."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8)
    return {"images": images, "tokens": rng.integers(1, 64, (BATCH, 6), dtype=np.int32)}


@functools.cache
def make_params() -> Any:
    """Random parameters, biases and gains included: no gradient is 0 by symmetry."""
    noise = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x + 0.02 * noise.standard_normal(x.shape), np.float32),
        jax.jit(init_params, static_argnums=0)(TINY, jax.random.key(0)),
    )


def patch_key() -> jax.Array:
    """Draws the patches that are left out."""
    return jax.random.key(3)


def gradient(mesh_sizes: tuple[int, int, int], objective: Objective) -> Gradient:
    """Loss and gradients on a mesh. Raises `AssertionError` where a gradient does not come back
    split as its parameter is."""
    mesh = sharding.make_mesh(*mesh_sizes, devices=jax.devices()[: int(np.prod(mesh_sizes))])
    split = sharding.tree_shardings(mesh, make_params())
    rows = sharding.batch_sharding(mesh)
    function = jax.jit(
        functools.partial(loss_gradient, objective),
        in_shardings=(split, rows, sharding.replicated(mesh)),
        # Most of the time is compilation, and machine code that is not optimised computes the same.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    with jax.set_mesh(mesh):
        losses, grads, _ = function(
            jax.device_put(make_params(), split), jax.device_put(make_batch(), rows), patch_key()
        )
    for leaf, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(split), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    return jax.device_get((losses["loss"], grads))


@functools.cache
def one_device(loss: str) -> Gradient:
    """What all others are held to."""
    return gradient((1, 1, 1), Objective(TINY, loss, "dense"))


def largest_difference(result: Gradient, loss: str) -> float:
    """Of the loss and of every leaf of the gradient, relative to the largest value of each."""
    wanted = jax.tree.leaves(one_device(loss))
    found = jax.tree.leaves(result)
    scales = [np.abs(leaf).max() or 1.0 for leaf in wanted]  # softmax has no use for a bias
    return max(
        float(np.abs(other - leaf).max() / scale)
        for leaf, other, scale in zip(wanted, found, scales, strict=True)
    )


def float64_loss(loss: str) -> float:
    """The loss of the embeddings that the towers give, in numpy."""

    @jax.jit
    def towers(params: Any, images: Any, tokens: Any) -> Any:
        pixels = normalize_images(images, TINY)
        rngs = {"dropout": patch_key()}
        return TwoTower(TINY).apply({"params": params}, pixels, tokens, train=True, rngs=rngs)

    out = towers(make_params(), **make_batch())
    images, texts, scale, bias = (np.asarray(x, np.float64) for x in out)
    logits = scale * (images @ texts.T)
    if loss == "sigmoid":
        signs = 2 * np.eye(BATCH) - 1
        return float(np.logaddexp(0, -signs * (logits + bias)).sum() / BATCH)
    both = np.logaddexp.reduce(logits, axis=1) + np.logaddexp.reduce(logits, axis=0)
    return float(np.mean(both / 2 - np.diagonal(logits)))


def main(_: list[str]) -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    sharding.FSDP_MIN_BYTES = 1024  # the parameters of a tiny model are split as large ones are
    print(
        f"{'mesh':<12}{'loss':<10}{'loss matrix':<14}" + "".join(f"k = {k:<8}" for k in (1, 2, 4))
    )
    worst = 0.0
    for name in _MESHES.value:
        mesh = tuple(int(size) for size in name.split("x"))
        for loss in LOSSES:
            for implementation in IMPLEMENTATIONS:
                row = [
                    largest_difference(
                        gradient(mesh, Objective(TINY, loss, implementation, count)), loss
                    )
                    for count in MICROBATCHES
                ]
                worst = max(worst, *row)
                cells = "".join(f"{value:<12.1e}" for value in row)
                print(f"{mesh!s:<12}{loss:<10}{implementation:<14}{cells}", flush=True)
    exact = {loss: abs(float(one_device(loss)[0]) / float64_loss(loss) - 1) for loss in LOSSES}
    print(json.dumps({"largest": worst, "limit": 1e-5, "float64": exact, "float64_limit": 1e-6}))
    if worst > 1e-5 or max(exact.values()) > 1e-6:
        raise SystemExit("error: a limit is passed")


if __name__ == "__main__":
    app.run(main)
