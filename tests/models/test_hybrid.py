"""ViTamin and the tower of MobileCLIP-B: counts, parity with timm, names of the weights.

Largest differences measured: embeddings 5e-7, gradients relatively 1e-5 (4e-6 in train mode). Once,
names and shapes of every row were compared with open_clip's own, and full-size ViTamin-S and
MobileCLIP-B with random weights: embeddings 1e-7.
"""

import functools
from typing import Any

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
from tiny_clip import changed

from clip_jax import count_parameters
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture

pytestmark = pytest.mark.slow

PUBLISHED = {
    "ViTamin-B": 150_953_345,
    "ViTamin-B-LTT": 211_372_161,
    "ViTamin-L": 456_968_353,
    "ViTamin-L2": 687_612_833,
    "ViTamin-L2-256": 687_674_273,
    "ViTamin-L2-336": 687_863_713,
    "ViTamin-L2-384": 688_001_953,
    "ViTamin-L-256": 457_029_793,
    "ViTamin-L-336": 457_219_233,
    "ViTamin-L-384": 457_357_473,
    "ViTamin-S": 62_469_185,
    "ViTamin-S-LTT": 145_822_913,
    "ViTamin-XL-256": 924_776_257,
    "ViTamin-XL-336": 924_776_257,
    "ViTamin-XL-384": 924_776_257,
    "MobileCLIP-B": 149_777_153,
    "MobileCLIP2-B": 149_777_153,
}
VITAMIN = {
    "vision__kind": "hybrid",
    "vision__stem": "inverted",
    "vision__stem_width": 4,
    "vision__width": 12,
    "vision__layers": 2,
    "vision__heads": 2,
    "vision__mlp_dim": 24,
    "vision__mlp": "geglu",
    "vision__class_token": False,
    "vision__pre_norm": False,
    "vision__pool": "average",
    "vision__post_norm": "after_pool",
    "vision__norm_eps": 1e-6,
}
GOLDENS: dict[str, dict[str, Any]] = {
    "vitamin": VITAMIN,
    "vitamin_xl": VITAMIN | {"vision__layers": 1, "vision__positions": False},
    "mobileclip_b": {
        "vision__kind": "hybrid",
        "vision__stem": "convolutions",
        "vision__stem_width": 6,
        "vision__width": 24,
        "vision__layers": 2,
        "vision__heads": 3,
        "vision__mlp_dim": 96,
        "vision__pre_norm": False,
        "vision__projection": "linear_bias",
        "vision__norm_eps": 1e-6,
    },
}


@functools.cache
def golden(name: str) -> Golden:
    return timm_goldens.load(name, GOLDENS[name])


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


def test_mobileclip_b_in_train_mode() -> None:
    assert_train_mode(ours("mobileclip_b", train=True), golden("mobileclip_b"), 2e-5)


def test_frozen_batch_norm_in_training_is_evaluation() -> None:
    frozen = ours("mobileclip_b", train=True, vision__batch_norm="frozen")
    assert not frozen.statistics
    for name, value in ours("mobileclip_b").arrays.items():
        assert np.array_equal(frozen.arrays[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"remat": "full"}, {"scan_layers": True}])
def test_layouts_and_remat_agree(overrides: dict[str, Any]) -> None:
    plain = ours("vitamin")
    reference = golden("vitamin")
    config = changed(reference.config, **overrides)
    variant = timm_goldens.run(Golden(config, reference.arrays))
    assert_gradients(variant.gradients, plain.gradients, 1e-5)
    assert np.abs(variant.arrays["image_embeds"] - plain.arrays["image_embeds"]).max() < 1e-6


@pytest.mark.parametrize("name", GOLDENS)
def test_round_trip_is_bit_equal(name: str) -> None:
    assert_round_trip(golden(name))


def test_positions_are_resized_on_reading(caplog: pytest.LogCaptureFixture) -> None:
    """A table of 3 x 3 patches, without a row for the class token, becomes one of 6 x 6."""
    reference = golden("mobileclip_b")
    config = changed(reference.config, image_size=96)
    larger = Golden(config, reference.arrays)
    assert larger.read(larger.state)["vision"]["positions"].shape == (36, 24)
    assert "9 rows interpolated to 36" in caplog.text


@pytest.mark.parametrize("name", GOLDENS)
def test_bfloat16_is_near_float32(name: str) -> None:
    plain = golden(name).arrays["image_embeds"]
    half = timm_goldens.image_embeds(golden(name), dtype="bfloat16")
    assert (plain * half).sum(axis=-1).min() > 0.999


def test_errors() -> None:
    with pytest.raises(UserError, match="image_size=230: a hybrid ViT takes 16 and a multiple"):
        get_architecture("ViTamin-S", image_size=230)
