"""FastViT towers of MobileCLIP: counts, parity with timm, names of the weights.

Largest differences measured: embeddings 2e-6, gradients relatively 5e-5; in train mode features
relatively 6e-6, where torch itself is 2e-6 from double precision. Once, names and shapes of every
row were compared with open_clip's own, and full-size S0 and S3 with random weights: embeddings
2e-7.
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
from tiny_clip import nested

from clip_jax import count_parameters
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.fastvit import entry_squeeze

pytestmark = pytest.mark.slow

PUBLISHED = {
    "MobileCLIP-S1": 84_969_729,
    "MobileCLIP-S2": 99_243_329,
    "MobileCLIP2-L-14": 427_617_281,
    "MobileCLIP2-S0": 74_835_073,
    "MobileCLIP2-S2": 99_243_329,
    "MobileCLIP2-S3": 248_885_953,
    "MobileCLIP2-S4": 445_435_137,
}
TINY = {"vision__kind": "fastvit", "vision__layer_scale": 1e-5, "vision__projection": "linear_bias"}
GOLDENS: dict[str, dict[str, Any]] = {
    "fastvit": {
        "vision__width": 4,
        "vision__layers": (1, 2, 1, 1),
        "vision__mlp_dim": 12,
        "vision__variant": "small",
    },
    "fastvit_large": {
        "vision__width": 4,
        "vision__layers": (1, 1, 1, 1, 1),
        "vision__mlp_dim": 4,
        "vision__variant": "large",
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
@pytest.mark.parametrize("name", GOLDENS)
def test_train_mode(name: str) -> None:
    assert_train_mode(ours(name, train=True), golden(name), 2e-5)


@pytest.mark.slow
def test_remat_changes_nothing() -> None:
    plain, variant = ours("fastvit"), ours("fastvit", remat="full")
    assert_gradients(variant.gradients, plain.gradients, 1e-5)
    assert np.abs(variant.arrays["image_embeds"] - plain.arrays["image_embeds"]).max() < 1e-6


@pytest.mark.parametrize("name", GOLDENS)
def test_round_trip_is_bit_equal(name: str) -> None:
    assert_round_trip(golden(name))


def test_bfloat16_is_near_float32() -> None:
    """Four channels average little rounding away: full-size S0 and S3 have 0.9999 and 0.9995."""
    plain = golden("fastvit").arrays["image_embeds"]
    half = timm_goldens.image_embeds(golden("fastvit"), dtype="bfloat16")
    assert (plain * half).sum(axis=-1).min() > 0.995


def test_squeeze_is_a_quarter_in_steps_of_eight() -> None:
    hidden = {
        name: [entry_squeeze(get_architecture(name).vision, stage) for stage in (1, 2, 3)]
        for name in ("MobileCLIP-S1", "MobileCLIP-S2", "MobileCLIP2-S3")
    }
    assert hidden == {
        "MobileCLIP-S1": [0, 64, 128],
        "MobileCLIP-S2": [0, 80, 160],
        "MobileCLIP2-S3": [0, 0, 0],
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 224}, "image_size=224: a FastViT takes a multiple of 64"),
        ({"vision__layers": (2, 2, 2)}, "a FastViT takes four or five stage depths"),
        ({"vision__width": 90}, "a FastViT takes a multiple of 4"),
        ({"vision__layer_scale": None}, "vision.layer_scale=None: must be a number"),
    ],
)
def test_errors(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_architecture("MobileCLIP2-S3", **nested({"vision__mlp_dim": 360} | overrides))
