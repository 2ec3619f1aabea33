"""The loss and every gradient are those of one device: any mesh, loss, implementation and number of
micro-batches, with random patches left out. `benchmarks/equality.py` goes through all of them."""

import functools
import itertools
import sys
from typing import Any

import jax
import numpy as np
import pytest
from places import REPOSITORY
from tiny_clip import RESNET, changed

from clip_jax import sharding
from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import init_params
from clip_jax.training.step.gradient import Objective, loss_gradient

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import equality

pytestmark = pytest.mark.slow

# All losses on the mesh that splits everything, a few settings elsewhere.
ALL = (*itertools.product(equality.LOSSES, equality.IMPLEMENTATIONS, (4,)), ("softmax", "ring", 1))
SOME = (("softmax", "chunked", 2), ("sigmoid", "ring", 4))
CASES = [
    pytest.param(mesh, setting, id="-".join(map(str, (*mesh, *setting))))
    for mesh in equality.MESHES
    for setting in (ALL if mesh == (2, 2, 2) else SOME)
]


@pytest.fixture(autouse=True)
def split_small_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters of a tiny model are to be split as large ones are."""
    monkeypatch.setattr(sharding, "FSDP_MIN_BYTES", 1024)


@functools.cache
def compiled(objective: Objective) -> Any:
    return jax.jit(functools.partial(loss_gradient, objective))


@pytest.mark.parametrize("loss", equality.LOSSES)
def test_value_is_that_of_float64(loss: str) -> None:
    value, _ = equality.one_device(loss)
    np.testing.assert_allclose(value, equality.float64_loss(loss), rtol=1e-6)


@pytest.mark.parametrize("loss", equality.LOSSES)
def test_every_leaf_has_a_gradient(loss: str) -> None:
    """Else there would be nothing to compare; softmax has no use for a bias."""
    grads = equality.one_device(loss)[1]
    zero = [
        jax.tree_util.keystr(path, simple=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max()
    ]
    assert zero == (["logit_bias"] if loss == "softmax" else [])


@pytest.mark.parametrize(("mesh", "setting"), CASES)
def test_all_settings_agree(mesh: tuple[int, int, int], setting: tuple[str, str, int]) -> None:
    loss, implementation, microbatches = setting
    objective = Objective(equality.TINY, loss, implementation, microbatches)
    assert equality.largest_difference(equality.gradient(mesh, objective), loss) < 1e-5


@pytest.mark.parametrize("frozen", [("logit_scale", "text/.*"), ("logit_bias", "vision/.*")])
def test_what_is_frozen_has_no_gradient_in_micro_batches_either(frozen: tuple[str, ...]) -> None:
    batch, params, key = equality.make_batch(), equality.make_params(), equality.patch_key()
    whole, parts = (
        compiled(Objective(equality.TINY, "sigmoid", "dense", count, frozen))(params, batch, key)
        for count in (1, 4)
    )
    for wanted, found in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(parts[1]), strict=True):
        np.testing.assert_allclose(
            found, wanted, rtol=0, atol=1e-5 * (np.abs(wanted).max() or 1e-9)
        )
    assert float(parts[1][frozen[0]]) == 0.0


def test_patches_left_out_differ_between_images_and_steps() -> None:
    """And without any, the loss is another: the comparison above is not one of equal nothings."""
    batch, params = equality.make_batch(), equality.make_params()
    values = [
        float(compiled(Objective(config))(params, batch, jax.random.key(seed))[0]["loss"])
        for config, seed in (
            (equality.TINY, 0),
            (equality.TINY, 1),
            (changed(equality.TINY, vision__patch_dropout=0.0), 0),
        )
    ]
    assert len({round(value, 5) for value in values}) == 3


def test_statistics_of_a_batch_are_those_of_the_global_one() -> None:
    """A ResNet's on a mesh of all axes; and they refuse micro-batches."""
    config = changed(ClipConfig(), **RESNET)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "tokens": rng.integers(1, 60, (8, 12), dtype=np.int32),
    }
    found = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, sharding.tree_shardings(mesh, params))
            split = sharding.global_batch(mesh, batch)
            result = compiled(Objective(config))(placed, split, jax.random.key(0))
            found.append(jax.device_get(result))
    for one, many in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-6 + 1e-4 * np.abs(one).max())
    with pytest.raises(UserError, match="microbatches=2: the model normalises by the statistics"):
        compiled(Objective(config, microbatches=2)).trace(params, batch, jax.random.key(0))
    frozen = Objective(changed(config, vision__batch_norm="frozen"), microbatches=2)
    assert np.isfinite(compiled(frozen)(params, batch, jax.random.key(0))[0]["loss"])
