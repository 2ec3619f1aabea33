"""ConvNeXt towers: counts, parity with timm, names of the weights.

Largest differences measured: embeddings 3e-7, gradients relatively 4e-6. Once, names and shapes
of every row were compared with open_clip's own, and full-size convnext_tiny with random weights:
embeddings 1e-7.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_goldens
from timm_goldens import Golden, Ours, assert_forward, assert_gradients, assert_round_trip
from tiny_clip import changed, nested

from clip_jax import count_parameters
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.two_tower import TwoTower, init_params

pytestmark = pytest.mark.slow

PUBLISHED = {
    "convnext_base": 151_518_849,
    "convnext_base_w": 179_385_345,
    "convnext_base_w_320": 179_385_345,
    "convnext_large": 321_060_289,
    "convnext_large_d": 351_772_609,
    "convnext_large_d_320": 351_772_609,
    "convnext_small": 113_276_001,
    "convnext_tiny": 92_296_801,
    "convnext_xlarge": 653_892_865,
    "convnext_xxlarge": 1_200_576_385,
    "convnext_xxlarge_320": 1_200_576_385,
}
TINY = {"vision__kind": "convnext", "vision__width": 4, "vision__layer_scale": 1e-6}
GOLDENS: dict[str, dict[str, Any]] = {
    "convnext": {
        "vision__layers": (1, 1, 2, 1),
        "vision__norm_eps": 1e-6,
        "vision__projection": "linear",
    },
    "convnext_mlp": {
        "vision__layers": (1, 1, 1, 1),
        "vision__norm_eps": 1e-5,
        "vision__projection": "mlp_bias",
    },
}


@functools.cache
def golden(name: str) -> Golden:
    return timm_goldens.load(name, TINY | GOLDENS[name])


@functools.cache
def ours(name: str, **overrides: Any) -> Ours:
    return timm_goldens.run(golden(name), **overrides)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name: str) -> None:
    assert count_parameters(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", GOLDENS)
def test_forward(name: str) -> None:
    assert_forward(ours(name), golden(name))


@pytest.mark.parametrize("name", GOLDENS)
def test_gradients(name: str) -> None:
    assert_gradients(ours(name).gradients, golden(name).under("gradient/"), 1e-4)


@pytest.mark.slow
def test_remat_changes_nothing() -> None:
    plain, variant = ours("convnext"), ours("convnext", remat="full")
    assert_gradients(variant.gradients, plain.gradients, 1e-5)
    assert np.abs(variant.arrays["image_embeds"] - plain.arrays["image_embeds"]).max() < 1e-6


@pytest.mark.parametrize("name", GOLDENS)
def test_round_trip_is_bit_equal(name: str) -> None:
    assert_round_trip(golden(name))


def test_without_layer_scale() -> None:
    """A tower trained without a gain has no rule and no parameter for it."""
    config = changed(golden("convnext").config, vision__layer_scale=None)
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    assert "mlp_scale" not in params["vision"]["stage1_block0"]
    reference = golden("convnext")
    state = {k: v for k, v in reference.state.items() if not k.endswith("gamma")}
    arrays = {f"state/{name}": value for name, value in state.items()}
    assert_round_trip(Golden(config, arrays))


def test_bfloat16_is_near_float32() -> None:
    plain = golden("convnext").arrays["image_embeds"]
    half = timm_goldens.image_embeds(golden("convnext"), dtype="bfloat16")
    assert (plain * half).sum(axis=-1).min() > 0.999


def test_initial_values() -> None:
    """Gains of 1e-6 make every block the identity at first; weights are N(0, 0.02²)."""
    config = changed(golden("convnext").config, vision__width=16)
    initialize = jax.jit(functools.partial(init_params, config))
    params = initialize(jax.random.key(0))["vision"]
    block = params["stage4_block0"]
    assert np.array_equal(block["mlp_scale"], np.full(128, np.float32(1e-6)))
    assert np.std(block["depthwise"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(block["mlp"]["in"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.abs(params["projection"]).max() == pytest.approx(128**-0.5, rel=0.01)


def test_features_of_every_block() -> None:
    config = golden("convnext").config
    params = golden("convnext").read(golden("convnext").state)
    images = jnp.asarray(golden("convnext").arrays["images"], jnp.float32)
    _, extra = TwoTower(config).apply(
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
    ("overrides", "message"),
    [
        ({"image_size": 225}, "image_size=225: a ConvNeXt takes a multiple of 32"),
        ({"vision__layers": 12}, "a ConvNeXt takes four stage depths"),
    ],
)
def test_errors(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_architecture("convnext_base", **nested(overrides))
