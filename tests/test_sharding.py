"""The same training whatever the mesh: losses, parameters, and where things lie."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import tiny_config

from clip_jax import sharding
from clip_jax.errors import UserError
from clip_jax.sharding import batch_sharding, global_batch, make_mesh
from clip_jax.training.config import build_config
from clip_jax.training.optimizer import learning_rate_schedule, make_optimizer
from clip_jax.training.state import sharded_state
from clip_jax.training.step import make_train_step

BATCH = 32


def batches(config, count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = (BATCH, config.image_size, config.image_size, 3)
    return [
        {
            "images": rng.integers(0, 256, shape, dtype=np.uint8),
            "tokens": rng.integers(1, config.vocab_size, (BATCH, config.context_length)).astype(
                np.int32
            ),
        }
        for _ in range(count)
    ]


def losses_on(mesh, config, optimizer_config, steps: int = 4):
    """Losses and final parameters of a few steps, and the state's shardings."""
    optimizer = make_optimizer(optimizer_config, 10)
    schedule = learning_rate_schedule(optimizer_config, 10)
    with jax.set_mesh(mesh):
        state = sharded_state(mesh, config, optimizer, seed=0, ema=True)
        specs = jax.tree.map(lambda x: x.sharding.spec, state)
        step = jax.jit(
            make_train_step(config, optimizer, schedule, ema_decay=0.9),
            donate_argnums=0,
            in_shardings=(jax.tree.map(lambda x: x.sharding, state), batch_sharding(mesh)),
        )
        losses = []
        for batch in batches(config, steps):
            state, metrics = step(state, global_batch(mesh, batch))
            losses.append(float(metrics["loss"]))
        after = jax.tree.map(lambda x: x.sharding.spec, state)
    return losses, jax.tree.map(np.asarray, state.params), specs, after


ARCHITECTURES = {
    "vit": {},
    "vit_scan_remat": {"scan_layers": True, "remat": "full", "vision_layers": 2, "text_layers": 2},
    "resnet": {
        "vision_kind": "resnet", "vision_width": 8, "vision_layers": (1, 1, 1, 1),
        "vision_heads": 4,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_same_losses_on_any_mesh(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FSDP_MIN_BYTES", 1)  # split even these tiny parameters
    train_config = build_config(tiny_config())
    from clip_jax.models.config import override

    config = override(train_config.model.architecture(), vocab_size=64, **ARCHITECTURES[name])
    devices = jax.devices()
    one = losses_on(make_mesh(devices=devices[:1]), config, train_config.optimizer)
    for data, fsdp in ((2, 1), (1, 8), (4, 2)):
        mesh = make_mesh(data, fsdp, devices=devices[: data * fsdp])
        losses, params, specs, after = losses_on(mesh, config, train_config.optimizer)
        np.testing.assert_allclose(losses, one[0], rtol=1e-5)
        for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(one[1]), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-4)
        split = [spec for spec in jax.tree.leaves(specs.params) if "fsdp" in spec]
        assert bool(split) == (fsdp > 1)
        # Moments lie where their parameters lie, and the step leaves everything in its place.
        assert specs.params == specs.ema_params
        assert jax.tree.leaves(specs) == jax.tree.leaves(after)


def test_leaf_spec_takes_the_largest_divisible_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FSDP_MIN_BYTES", 4 * 64 * 48)
    assert sharding.leaf_spec((64, 48), np.float32, 8) == PartitionSpec("fsdp")
    assert sharding.leaf_spec((48, 64), np.float32, 8) == PartitionSpec(None, "fsdp")
    assert sharding.leaf_spec((65, 48), np.float32, 8) == PartitionSpec(None, "fsdp")
    assert sharding.leaf_spec((65, 49), np.float32, 8) == PartitionSpec()
    assert sharding.leaf_spec((64, 47), np.float32, 8) == PartitionSpec()  # too small
    assert sharding.leaf_spec((64, 48), np.float32, 1) == PartitionSpec()


def test_mesh_takes_the_rest_and_refuses_what_does_not_fit() -> None:
    assert dict(make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    with pytest.raises(UserError, match="8 devices"):
        make_mesh(3, 1)
    with pytest.raises(UserError, match="only one axis"):
        make_mesh(-1, -1)
    with pytest.raises(UserError, match="batch_size=30: must be a multiple of data×fsdp=8"):
        sharding.check_batch(make_mesh(), 30, "batch_size")
