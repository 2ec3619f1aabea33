"""The loss and every gradient are those of one device: any mesh, any loss, any implementation, any
number of micro-batches, with random patches left out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import reference_sigmoid, reference_softmax

from clip_jax import sharding
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower, init_params
from clip_jax.sharding import make_mesh
from clip_jax.training.gradient import Objective, loss_gradient, normalize_images

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (4, 2, 1))
BATCH = 64
TINY = ClipConfig(
    embed_dim=32,
    image_size=16,
    patch_size=4,
    vision_width=32,
    vision_layers=2,
    vision_heads=8,
    vision_mlp_dim=64,
    context_length=6,
    vocab_size=64,
    text_width=32,
    text_layers=2,
    text_heads=8,
    text_mlp_dim=64,
    logit_bias_init=-4.0,
    scan_layers=True,
    patch_dropout=0.5,
)
KEY = jax.random.key(3)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8)
    return {"images": images, "tokens": rng.integers(1, 64, (BATCH, 6), dtype=np.int32)}


@functools.cache
def params() -> Any:
    """Random parameters, biases and gains included: none of the gradients is 0 by symmetry."""
    noise = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x + 0.02 * noise.standard_normal(x.shape), np.float32),
        init_params(TINY, jax.random.key(0)),
    )


def gradient(mesh_sizes: tuple[int, int, int], objective: Objective) -> tuple[Any, Any]:
    devices = jax.devices()[: int(np.prod(mesh_sizes))]
    mesh = make_mesh(*mesh_sizes, devices=devices)
    split = sharding.tree_shardings(mesh, params())
    rows = sharding.batch_sharding(mesh)
    function = jax.jit(
        functools.partial(loss_gradient, objective),
        in_shardings=(split, rows, sharding.replicated(mesh)),
    )
    with jax.set_mesh(mesh):
        value, grads, _ = function(
            jax.device_put(params(), split), jax.device_put(batch(), rows), KEY
        )
    for leaf, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(split), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    return jax.device_get((value, grads))


@functools.cache
def one_device(loss: str) -> tuple[Any, Any]:
    return gradient((1, 1, 1), Objective(TINY, loss))


def assert_equal(result: tuple[Any, Any], loss: str) -> None:
    value, grads = one_device(loss)
    np.testing.assert_allclose(result[0], value, rtol=1e-5)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(result[1]), strict=True
    ):
        largest = np.abs(leaf).max()
        assert largest > 0 or (loss == "softmax" and "logit_bias" in str(path)), path
        np.testing.assert_allclose(
            other, leaf, rtol=0, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path)
        )


@pytest.fixture(autouse=True)
def split_small_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters of a tiny model are to be split as large ones are."""
    monkeypatch.setattr(sharding, "FSDP_MIN_BYTES", 1024)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_value_is_that_of_float64(loss: str) -> None:
    """Of the embeddings that the towers give, in numpy."""
    out = TwoTower(TINY).apply(
        {"params": params()},
        normalize_images(jnp.asarray(batch()["images"]), TINY),
        batch()["tokens"],
        train=True,
        rngs={"dropout": KEY},
    )
    exact: Any = [np.asarray(x, np.float64) for x in out]
    expected = reference_softmax(*exact[:3]) if loss == "softmax" else reference_sigmoid(*exact)
    np.testing.assert_allclose(one_device(loss)[0], expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("implementation", ["dense", "ring", "chunked"])
@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_all_settings_agree(
    mesh: tuple[int, int, int], loss: str, implementation: str, microbatches: int
) -> None:
    objective = Objective(TINY, loss, implementation, microbatches)
    assert_equal(gradient(mesh, objective), loss)
