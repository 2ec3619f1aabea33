"""Patterns of parameters, what is frozen, and learning rates by tower and layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from test_optimizer import VIT
from tiny_clip import changed

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.two_tower import param_shapes
from clip_jax.training.config import OptimizerConfig, TowerOptimizerConfig
from clip_jax.training.step.parameter_groups import (
    frozen_mask,
    keep_frozen,
    rate_multipliers,
    stop_frozen,
    weight_decays,
)

DEEP = changed(VIT, vision__layers=3, text__layers=2)
PARAMS: Any = {
    "vision": {"transformer": {"blocks_0": {"attention": {"out": jnp.ones(3)}}}},
    "text": {"token_embedding": 2 * jnp.ones(3)},
    "logit_scale": 3 * jnp.ones(3),
}


def flat(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def frozen(*patterns: str) -> set[str]:
    return {path for path, is_frozen in flat(frozen_mask(PARAMS, patterns)).items() if is_frozen}


def test_patterns_match_whole_paths() -> None:
    out = "vision/transformer/blocks_0/attention/out"
    assert frozen() == set()
    assert frozen("vision/.*") == {out}
    assert frozen("vision/.*", "logit_scale") == {out, "logit_scale"}
    assert frozen(r".*/blocks_\d+/.*|text/token_embedding") == {out, "text/token_embedding"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("vison/.*", "'vison/.*' matches no parameter; nearest are 'vision/.*'"),
        ("vision", "nearest are 'vision/.*'"),
        ("text/token_embeding", "nearest are 'text/token_embedding'"),
        (r"vision/transformer/blocks_1/.*", "'vision/transformer/blocks_0/.*'"),
        ("", "there are 'logit_scale', 'text/.*', 'vision/.*'"),
        ("[", "'[' is no regular expression (unterminated character set at position 0)"),
        ("vision/(.*", "is no regular expression (missing ), unterminated subpattern"),
        ("(?i)visual/.*", "there are"),
        (".*", "freezes every parameter"),
    ],
)
def test_patterns_that_cannot_be_meant(pattern: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        frozen_mask(PARAMS, (pattern,))
    assert message in str(error.value)
    assert str(error.value).startswith("config.optimizer.freeze")
    assert "\n" not in str(error.value)


def test_no_gradient_flows_into_what_is_frozen() -> None:
    def loss(params: Any, patterns: tuple[str, ...]) -> jax.Array:
        return sum(leaf.sum() ** 2 for leaf in jax.tree.leaves(stop_frozen(params, patterns)))

    assert jax.tree.leaves(jax.tree.map(jnp.sum, jax.grad(loss)(PARAMS, ()))) == [54, 36, 18]
    grads = flat(jax.grad(loss)(PARAMS, ("vision/.*",)))
    assert {path: float(x.sum()) for path, x in grads.items()} == {
        "vision/transformer/blocks_0/attention/out": 0,
        "text/token_embedding": 36,
        "logit_scale": 54,
    }


def test_what_is_frozen_is_kept_bit_for_bit() -> None:
    old = jax.tree.map(lambda x: x.at[0].set(-0.0), PARAMS)
    new = jax.tree.map(lambda x: x + 0.0, old)  # -0 becomes 0
    kept = keep_frozen(new, old, ("vision/.*",))
    signs = {path: bool(np.signbit(x[0])) for path, x in flat(kept).items()}
    assert [path for path, negative in signs.items() if negative] == [
        "vision/transformer/blocks_0/attention/out"
    ]
    assert keep_frozen(new, old, ()) is new


def multipliers(
    config: ClipConfig, vision: TowerOptimizerConfig, text: TowerOptimizerConfig | None = None
) -> dict[str, Any]:
    optimizer = OptimizerConfig(vision=vision, text=text or TowerOptimizerConfig())
    return flat(rate_multipliers(param_shapes(config), optimizer))


def test_layer_decay_of_a_vit() -> None:
    """Of 3 blocks: embeddings d⁴, blocks d³, d², d, the rest 1; and the other tower has its own."""
    towers = TowerOptimizerConfig(2.0, 0.5), TowerOptimizerConfig(1.0, 0.1)
    got = multipliers(DEEP, *towers)
    vision, text = ({"0": 2 / 8, "1": 2 / 4, "2": 2 / 2}, {"0": 0.01, "1": 0.1})
    expected = {
        "vision/patch_embedding": 2 / 16,
        "vision/class_token": 2 / 16,
        "vision/positions": 2 / 16,
        "vision/pre_norm": 2 / 16,
        "vision/post_norm": 2,
        "vision/projection": 2,
        "text/token_embedding": 1e-3,
        "text/positions": 1e-3,
        "text/final_norm": 1,
        "text/projection": 1,
        "logit_scale": 1,
        "logit_bias": 1,
        **{f"vision/transformer/blocks_{i}": rate for i, rate in vision.items()},
        **{f"text/transformer/blocks_{i}": rate for i, rate in text.items()},
    }
    for path, value in got.items():
        named = [rate for name, rate in expected.items() if f"{path}/".startswith(f"{name}/")]
        assert named == [pytest.approx(value, rel=1e-6)], path


def test_layer_decay_is_that_of_scanned_blocks() -> None:
    towers = TowerOptimizerConfig(2.0, 0.5), TowerOptimizerConfig(1.0, 0.1)
    looped = multipliers(DEEP, *towers)
    scanned = multipliers(changed(DEEP, scan_layers=True), *towers)
    for path, value in looped.items():
        for number in range(3):
            stacked = path.replace(f"/blocks_{number}/", "/blocks/")
            if stacked != path:
                assert scanned[stacked].dtype == np.float32
                assert scanned[stacked][number].item() == pytest.approx(value, rel=1e-6), path
        if "/blocks_" not in path:
            assert scanned[path] == value, path
    shapes = flat(param_shapes(changed(DEEP, scan_layers=True)))
    for path, shape in shapes.items():
        assert np.broadcast_shapes(np.shape(scanned[path]), shape.shape) == shape.shape


@pytest.mark.parametrize(
    ("vision", "exponents"),
    [
        (
            {"kind": "resnet", "width": 4, "layers": (2, 1, 1, 1)},
            {
                "stem_conv1/kernel": 6,
                "stage1_block0/conv1/kernel": 5,
                "stage1_block1/norm3/scale": 4,
                "stage4_block0/conv3/kernel": 1,
                "attention_pool/out/kernel": 0,
            },
        ),
        (
            {"kind": "convnext", "width": 4, "layers": (1, 1, 2, 1), "layer_scale": 1e-6},
            {
                "stem/kernel": 6,
                "stage1_block0/depthwise/kernel": 5,
                "stage2_downsample/kernel": 4,
                "stage3_block1/mlp_scale": 2,
                "stage4_downsample/kernel": 1,
                "post_norm/scale": 0,
            },
        ),
        (
            {
                "kind": "hybrid",
                "layers": 2,
                "stem": "inverted",
                "stem_width": 8,
                "class_token": False,
                "pool": "average",
            },
            {
                "stem/stage2_block3/widen/kernel": 3,
                "positions": 3,
                "transformer/blocks_1/attention/out": 1,
                "post_norm/scale": 0,
            },
        ),
        (
            {
                "kind": "fastvit",
                "width": 4,
                "layers": (1, 1, 1, 1),
                "mlp_dim": 12,
                "layer_scale": 1e-5,
            },
            {
                "stem1/convolution/conv/kernel": 5,
                "stage1_block0/mlp_in/kernel": 4,
                "stage2_entry/large/conv/kernel": 3,
                "stage4_block0/mixer/out": 1,
                "final/convolution/conv/kernel": 0,
            },
        ),
    ],
    ids=["resnet", "convnext", "hybrid", "fastvit"],
)
def test_layer_decay_of_stages(vision: dict[str, Any], exponents: dict[str, int]) -> None:
    config = override(VIT, vision=vision)
    got = multipliers(config, TowerOptimizerConfig(layer_decay=0.5))
    for path, exponent in exponents.items():
        assert got[f"vision/{path}"] == 0.5**exponent, path


def test_towers_have_their_own_decay() -> None:
    optimizer = OptimizerConfig(
        weight_decay=0.2, vision=TowerOptimizerConfig(weight_decay=0.0), text=TowerOptimizerConfig()
    )
    decays = flat(weight_decays(param_shapes(VIT), optimizer))
    assert decays["vision/patch_embedding"] == 0
    assert decays["text/token_embedding"] == 0.2
    assert decays["text/positions"] == decays["logit_scale"] == 0
