"""Image towers that open_clip takes from timm: ConvNeXt, FastViT (MobileCLIP-S), ViTamin and
MobileCLIP-B. One body compares each with timm's numbers in tests/support/goldens.

Largest differences measured: embeddings 2e-6, gradients relatively 5e-5; FastViT's features in
train mode relatively 6e-6, where torch itself is 2e-6 from double precision. Once, names and shapes
of every row were compared with open_clip's own, and full-size towers with random weights:
embeddings 2e-7.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_goldens
from timm_goldens import (
    Golden,
    Ours,
    assert_forward,
    assert_gradients,
    assert_round_trip,
    assert_train_mode,
)
from tiny_clip import changed, nested

from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.fastvit import entry_squeeze
from clip_jax.models.two_tower import TwoTower, init_params

pytestmark = pytest.mark.slow

CONVNEXT = {"kind": "convnext", "width": 4}
FASTVIT = {"kind": "fastvit", "width": 4, "projection": "linear_bias"}
VITAMIN: dict[str, Any] = {
    "kind": "hybrid",
    "stem": "inverted",
    "stem_width": 4,
    "width": 12,
    "layers": 2,
    "heads": 2,
    "mlp_dim": 24,
    "mlp": "geglu",
    "class_token": False,
    "pre_norm": False,
    "pool": "average",
    "post_norm": "after_pool",
    "norm_eps": 1e-6,
}
GOLDENS: dict[str, dict[str, Any]] = {
    "convnext": CONVNEXT | {"layers": (1, 1, 2, 1), "norm_eps": 1e-6},
    "convnext_mlp": CONVNEXT | {"layers": (1, 1, 1, 1), "projection": "mlp_bias"},
    "fastvit": FASTVIT | {"layers": (1, 2, 1, 1), "mlp_dim": 12, "variant": "small"},
    "fastvit_large": FASTVIT | {"layers": (1, 1, 1, 1, 1), "mlp_dim": 4, "variant": "large"},
    "vitamin": VITAMIN,
    "vitamin_xl": VITAMIN | {"layers": 1, "positions": False},
    "mobileclip_b": {
        "kind": "hybrid",
        "stem": "convolutions",
        "stem_width": 6,
        "width": 24,
        "layers": 2,
        "heads": 3,
        "mlp_dim": 96,
        "pre_norm": False,
        "projection": "linear_bias",
        "norm_eps": 1e-6,
    },
}
every_golden = pytest.mark.parametrize("name", GOLDENS)


@functools.cache
def golden(name: str) -> Golden:
    return timm_goldens.load(name, vision=GOLDENS[name])


@functools.cache
def ours(name: str, **overrides: Any) -> Ours:
    return timm_goldens.run(golden(name), **overrides)


@every_golden
def test_forward(name: str) -> None:
    assert_forward(ours(name), golden(name))


@every_golden
def test_gradients(name: str) -> None:
    assert_gradients(ours(name).gradients, golden(name).under("gradient/"), 1e-4)


@pytest.mark.parametrize("name", ["fastvit", "fastvit_large", "mobileclip_b"])
def test_train_mode(name: str) -> None:
    assert_train_mode(ours(name, train=True), golden(name), 2e-5)


def test_frozen_batch_norm_in_training_is_evaluation() -> None:
    frozen = ours("mobileclip_b", train=True, vision__batch_norm="frozen")
    assert not frozen.statistics
    for name, value in ours("mobileclip_b").arrays.items():
        assert np.array_equal(frozen.arrays[name], value), name


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("convnext", {"remat": "full"}),
        ("fastvit", {"remat": "full"}),
        ("vitamin", {"remat": "full"}),
        ("vitamin", {"scan_layers": True}),
    ],
)
def test_layouts_and_remat_agree(name: str, overrides: dict[str, Any]) -> None:
    plain, reference = ours(name), golden(name)
    variant = timm_goldens.run(Golden(changed(reference.config, **overrides), reference.arrays))
    assert_gradients(variant.gradients, plain.gradients, 1e-5)
    assert np.abs(variant.arrays["image_embeds"] - plain.arrays["image_embeds"]).max() < 1e-6


@every_golden
def test_round_trip_is_bit_equal(name: str) -> None:
    assert_round_trip(golden(name))


@every_golden
def test_bfloat16_is_near_float32(name: str) -> None:
    """FastViT's four channels average little rounding away: full size has 0.9995 and more."""
    plain = golden(name).arrays["image_embeds"]
    half = timm_goldens.image_embeds(golden(name), dtype="bfloat16")
    assert (plain * half).sum(axis=-1).min() > (0.995 if name.startswith("fastvit") else 0.999)


def test_positions_are_resized_on_reading(caplog: pytest.LogCaptureFixture) -> None:
    """A table of 3 x 3 patches, without a row for the class token, becomes one of 6 x 6."""
    reference = golden("mobileclip_b")
    larger = Golden(changed(reference.config, image_size=96), reference.arrays)
    assert larger.read(larger.state)["vision"]["positions"].shape == (36, 24)
    assert "9 rows interpolated to 36" in caplog.text


def test_convnext_without_layer_scale() -> None:
    """A tower trained without a gain has no rule and no parameter for it."""
    reference = golden("convnext")
    config = changed(reference.config, vision__layer_scale=None)
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    assert "mlp_scale" not in params["vision"]["stage1_block0"]
    state = {k: v for k, v in reference.state.items() if not k.endswith("gamma")}
    assert_round_trip(Golden(config, {f"state/{name}": value for name, value in state.items()}))


def test_initial_values_of_convnext() -> None:
    """Gains of 1e-6 make every block the identity at first; weights are N(0, 0.02²)."""
    config = changed(golden("convnext").config, vision__width=16)
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(0))["vision"]
    block = params["stage4_block0"]
    assert np.array_equal(block["mlp_scale"], np.full(128, np.float32(1e-6)))
    assert np.std(block["depthwise"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(block["mlp"]["in"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.abs(params["projection"]).max() == pytest.approx(128**-0.5, rel=0.01)


def test_features_of_every_block_of_convnext() -> None:
    reference = golden("convnext")
    images = jnp.asarray(reference.arrays["images"], jnp.float32)
    params = reference.read(reference.state)
    _, extra = TwoTower(reference.config).apply(
        {"params": params}, images, method="encode_image", mutable=["features"]
    )
    shapes = {name: x["output"][0].shape for name, x in extra["features"]["vision"].items()}
    assert shapes == {
        "stage1_block0": (5, 16, 16, 4),
        "stage2_block0": (5, 8, 8, 8),
        "stage3_block0": (5, 4, 4, 16),
        "stage3_block1": (5, 4, 4, 16),
        "stage4_block0": (5, 2, 2, 32),
    }


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("MobileCLIP-S1", [0, 64, 128]),
        ("MobileCLIP-S2", [0, 80, 160]),
        ("MobileCLIP2-S3", [0, 0, 0]),
    ],
)
def test_squeeze_is_a_quarter_in_steps_of_eight(name: str, hidden: list[int]) -> None:
    assert [entry_squeeze(get_architecture(name).vision, stage) for stage in (1, 2, 3)] == hidden


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("convnext_base", {"image_size": 225}, "image_size=225: a ConvNeXt takes a multiple of 32"),
        ("convnext_base", {"vision__layers": (1, 2)}, "a ConvNeXt takes four stage depths"),
        ("MobileCLIP2-S3", {"image_size": 224}, "image_size=224: a FastViT takes a multiple of 64"),
        ("MobileCLIP2-S3", {"vision__layers": (2, 2)}, "a FastViT takes four or five stage depths"),
        ("MobileCLIP2-S3", {"vision__width": 90}, "a FastViT takes a multiple of 4"),
        ("MobileCLIP2-S3", {"vision__mlp_dim": 99}, "vision.width=96: must divide vision.mlp_dim"),
        ("MobileCLIP2-S3", {"vision__layer_scale": None}, "vision.layer_scale=None: must be a num"),
        ("ViTamin-S", {"image_size": 230}, "image_size=230: a hybrid ViT takes a multiple of 16"),
    ],
)
def test_errors(name: str, overrides: dict[str, Any], message: str) -> None:
    if "vision__width" in overrides:
        overrides["vision__mlp_dim"] = 4 * overrides["vision__width"]
    with pytest.raises(UserError, match=message):
        get_architecture(name, **nested(overrides))
