"""The same training whatever the mesh: losses, parameters, and where things lie."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import tiny_config

from clip_jax import sharding
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.two_tower import param_shapes
from clip_jax.sharding import make_mesh
from clip_jax.training.config import OptimizerConfig, build_config
from clip_jax.training.step.optimizer import make_optimizer
from clip_jax.training.step.state import create_state, sharded_state


def test_moments_and_averages_lie_where_their_parameters_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharding, "FSDP_MIN_BYTES", 1)  # split even these tiny parameters
    config, mesh = build_config(tiny_config()), make_mesh(2, 2, 2)
    optimizer = make_optimizer(config.optimizer, 10)
    with jax.set_mesh(mesh):
        state = sharded_state(mesh, config.model.architecture(), optimizer, seed=0, ema=True)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
    assert any("fsdp" in spec for spec in jax.tree.leaves(specs.params))
    assert specs.params == specs.ema_params
    moments = [x for x in jax.tree.leaves(specs.opt_state) if x != PartitionSpec()]
    split = [x for x in jax.tree.leaves(specs.params) if x != PartitionSpec()]
    assert moments == 2 * split


def spec_of(path: str, shape: tuple[int, ...], fsdp: int = 1, tensor: int = 1) -> PartitionSpec:
    mesh = jax.sharding.AbstractMesh((1, fsdp, tensor), sharding.AXES)
    return sharding.leaf_spec(path, shape, np.float32, mesh)


def test_fsdp_takes_the_largest_divisible_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FSDP_MIN_BYTES", 4 * 64 * 48)
    assert spec_of("x", (64, 48), fsdp=8) == PartitionSpec("fsdp")
    assert spec_of("x", (48, 64), fsdp=8) == PartitionSpec(None, "fsdp")
    assert spec_of("x", (65, 48), fsdp=8) == PartitionSpec(None, "fsdp")
    assert spec_of("x", (65, 49), fsdp=8) == PartitionSpec()
    assert spec_of("x", (64, 47), fsdp=8) == PartitionSpec()  # too small
    assert spec_of("x", (64, 48)) == PartitionSpec()


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("vision/transformer/blocks/attention/query_key_value", (24, 1024, 3, 16, 64),
         (None, "fsdp", None, "tensor")),
        ("opt_state/0/mu/text/transformer/blocks_3/attention/query_key_value", (768, 3, 16, 64),
         ("fsdp", None, "tensor")),
        ("vision/transformer/blocks/attention/query_key_value_bias", (24, 3, 16, 64),
         (None, None, "tensor", "fsdp")),
        ("vision/transformer/blocks/attention/out", (24, 16, 64, 1024),
         (None, "tensor", None, "fsdp")),
        ("vision/transformer/blocks/mlp/in/kernel", (24, 1024, 4096), (None, "fsdp", "tensor")),
        ("vision/transformer/blocks/mlp/out/kernel", (24, 4096, 1024), (None, "tensor", "fsdp")),
        ("text/token_embedding", (49408, 768), ("tensor", "fsdp")),
        ("vision/transformer/blocks/mlp_norm/scale", (24, 4096), (None, "fsdp")),
        # Heads that the tensor axis does not divide stay together.
        ("text/transformer/blocks/attention/out", (12, 6, 64, 768), (None, None, None, "fsdp")),
        # What adafactor keeps of a kernel has fewer axes.
        ("v_row/vision/transformer/blocks_0/mlp/in/kernel", (65536,), ("fsdp",)),
        ("logit_scale", (), ()),
    ],
)  # fmt: skip
def test_where_leaves_lie(path: str, shape: tuple[int, ...], spec: tuple[str | None, ...]) -> None:
    """Heads and hidden units over tensor, the rest over fsdp, an axis of layers never."""
    assert spec_of(path, shape, fsdp=8, tensor=4) == PartitionSpec(*spec)


@pytest.mark.parametrize("name", ["ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14"])
def test_state_is_split_evenly(name: str) -> None:
    """Parameters and moments on a device: within 3 % of all of them over the devices."""
    config = get_architecture(name, scan_layers=True)
    mesh = jax.sharding.AbstractMesh((1, 32, 1), sharding.AXES)
    shapes = jax.eval_shape(
        lambda: create_state(config, make_optimizer(OptimizerConfig(), 10), 0, ema=True)
    )
    whole = here = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes.replace(key=None)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = sharding.leaf_spec(name, leaf.shape, leaf.dtype, mesh)
        whole += leaf.size
        here += leaf.size / (32 if "fsdp" in spec else 1)
    assert here / (whole / 32) < 1.03


@pytest.mark.slow
def test_every_large_leaf_of_every_architecture_is_split_over_tensor() -> None:
    """No matrix of a block is left whole because a rule does not know its name."""
    for name in ("ViT-B-16", "ViT-B-16-SigLIP", "EVA02-B-16", "coca_ViT-B-32", "roberta-ViT-B-32"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(get_architecture(name))):
            key = jax.tree_util.keystr(path, simple=True, separator="/")
            matrix = "blocks_" in key and leaf.ndim >= 2 and "bias" not in key
            if matrix or key == "text/token_embedding":
                rows = 2 if leaf.shape[0] % 2 == 0 else 1
                split = "tensor" in spec_of(key, leaf.shape, tensor=2)
                assert split or rows == 1, f"{name}: {key} {leaf.shape}"


class FakeDevice:
    """A chip of one of two slices, as `mesh_utils` looks at it."""

    platform, device_kind, process_index, core_on_chip = "tpu", "fake", 0, 0

    def __init__(self, number: int):
        self.id, self.slice_index = number, number // 4
        self.coords = (number % 4, 0, 0)


def test_only_the_data_axis_crosses_slices() -> None:
    mesh = make_mesh(-1, 2, devices=[FakeDevice(number) for number in range(8)])
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert slices.shape == (4, 2, 1)
    assert (slices[:, :1] == slices).all()  # fsdp stays inside
    assert sorted(set(slices[:2].flat)) == [0]
    with pytest.raises(UserError, match="multiple of the 2 slices"):
        make_mesh(1, 8, devices=[FakeDevice(number) for number in range(8)])


def test_fsdp_may_cross_the_hosts_of_a_gpu_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "platform", "gpu")
    assert make_mesh(1, 8, devices=[FakeDevice(n) for n in range(8)]).shape["fsdp"] == 8


def test_mesh_takes_the_rest_and_refuses_what_does_not_fit() -> None:
    assert dict(make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    with pytest.raises(UserError, match="8 devices"):
        make_mesh(3, 1)
    with pytest.raises(UserError, match="only one axis"):
        make_mesh(-1, -1)
    with pytest.raises(UserError, match="batch_size=30: must be a multiple of data×fsdp=8"):
        sharding.check_batch(make_mesh(), 30, "batch_size")
    with pytest.raises(UserError, match="8 devices × 3 micro-batches, such as 24 or 48"):
        sharding.check_batch(make_mesh(), 32, "batch_size", parts=3)


def test_a_mesh_axis_may_take_parts_of_two_axes_of_the_torus() -> None:
    class Chip:
        platform, device_kind, process_index, core_on_chip, slice_index = "tpu", "v5p", 0, 0, 0

        def __init__(self, number: int):
            self.id, self.coords = number, np.unravel_index(number, (8, 8, 4))

    mesh = make_mesh(-1, 16, devices=[Chip(number) for number in range(256)])
    assert dict(mesh.shape) == {"data": 16, "fsdp": 16, "tensor": 1}
    # No other chips lie between those that exchange parameters: a box of 16 in the torus.
    coords = np.array([chip.coords for chip in mesh.devices[0, :, 0]])
    assert np.prod(coords.max(0) - coords.min(0) + 1) == 16
