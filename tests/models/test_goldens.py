"""The models against open_clip and timm, in the tiny CLIPs of tests/support/goldens: features,
losses, gradients, running statistics, and weights in their names. Nothing here needs torch.

Largest differences measured: embeddings 2e-6; gradients relatively 7e-6 (ViTs) to 5e-5; features in
train mode relatively 7e-6, where torch itself is 2e-6 from double precision. Once, names and shapes
of every row were compared with open_clip's own, and full-size towers with random weights.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import (
    ALL,
    COCA,
    NATIVE,
    TIMM,
    Golden,
    assert_gradients,
    assert_train_mode,
    cosine,
    features,
    golden,
    loss_and_outputs,
    ours,
    relative_error,
)
from tiny_clip import changed, nested

from clip_jax.errors import UserError
from clip_jax.losses import sigmoid_loss
from clip_jax.models.architectures import get_architecture
from clip_jax.models.two_tower import TwoTower, init_params

slow = pytest.mark.slow
WITH_GRADIENTS = [*NATIVE, *(pytest.param(name, marks=slow) for name in TIMM)]


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_outputs_and_gradients(name: str) -> None:
    got, reference = ours(name), golden(name)
    for key, value in got.arrays.items():
        bound = 2e-6 if key == "softmax_loss" and name in NATIVE else 2e-5
        assert relative_error(value, reference.arrays[key]) < bound, key
    for key in ("image_embeds", "text_embeds"):
        mine, theirs = got.arrays[key], reference.arrays[key]
        assert np.abs(mine - theirs).max() < 2e-5
        assert cosine(mine, theirs).min() > 0.999999
    assert_gradients(got.gradients, reference.under("gradient/"), 1e-4)


def test_sigmoid_loss_and_gradients() -> None:
    arrays, bias = golden("vit_average_pool").arrays, golden("vit_average_pool").state["logit_bias"]
    inputs = [arrays[name] for name in ("image_embeds", "text_embeds", "scale")]
    loss, gradients = jax.value_and_grad(sigmoid_loss, argnums=(0, 1, 2, 3))(*inputs, bias)
    assert relative_error(loss, arrays["sigmoid_loss"]) < 2e-6
    names = ("image_embeds", "text_embeds", "scale", "bias")
    for name, gradient in zip(names, gradients, strict=True):
        assert relative_error(gradient, arrays[f"sigmoid_gradient/{name}"]) < 2e-6, name
    assert ours("vit_average_pool").logit_bias == bias


@slow
@pytest.mark.parametrize("name", ["resnet", "fastvit", "fastvit_large", "mobileclip_b"])
def test_train_mode(name: str) -> None:
    """The golden running means are far from the batch's: the hard case of one-pass moments."""
    assert_train_mode(ours(name, train=True), golden(name), 2e-5)


@pytest.mark.parametrize("name", ["resnet", "mobileclip_b"])
def test_frozen_batch_norm_in_training_is_evaluation(name: str) -> None:
    """With stored statistics, training compiles to the very program of evaluation."""
    reference = golden(name)
    frozen = changed(reference.config, vision__batch_norm="frozen")
    texts = [
        jax.jit(functools.partial(loss_and_outputs, config, train))
        .lower(reference.params, *reference.inputs)
        .as_text()
        for config, train in ((frozen, True), (reference.config, False), (reference.config, True))
    ]
    assert texts[0] == texts[1] != texts[2]


@slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_quickgelu", {"remat": "dots"}),
        *(("vit_quickgelu", {"scan_layers": True, "remat": r}) for r in ("full", "qkv", "offload")),
        *((name, {"remat": "full"}) for name in ("resnet", "convnext", "fastvit", "vitamin")),
        ("vitamin", {"scan_layers": True}),
    ],
)
def test_layouts_and_remat_agree(name: str, changes: dict[str, Any]) -> None:
    plain, variant = ours(name), ours(name, **changes)
    assert variant.gradients.keys() == plain.gradients.keys()
    assert_gradients(variant.gradients, plain.gradients, 1e-4 if name == "resnet" else 1e-5)
    for key in ("image_features", "text_features"):
        assert relative_error(variant.arrays[key], plain.arrays[key]) < 2e-6


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_round_trip_is_bit_equal(name: str, scan_layers: bool) -> None:
    assert_round_trip(golden(name, scan_layers=scan_layers))


def assert_round_trip(case: Golden) -> None:
    back = case.write(case.params)
    assert back.keys() == case.state.keys()
    for name, value in case.state.items():
        assert back[name].dtype == np.float32
        assert back[name].flags.c_contiguous
        assert np.array_equal(back[name], value), name


@slow
@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_near_float32(name: str) -> None:
    """FastViT's four channels average little rounding away: full size has 0.9995 and more."""
    for key, half in features(golden(name, dtype="bfloat16")).items():
        assert half.dtype == jnp.bfloat16
        near = 0.995 if name.startswith("fastvit") else 0.999
        assert cosine(half, golden(name).arrays[key]).min() > near, key


def test_state_dict_drops_known_extras_and_casts() -> None:
    reference = golden("resnet")
    extras = {"input_resolution", "context_length", "vocab_size", "visual.bn1.num_batches_tracked"}
    tensors = reference.under("state/") | {name: np.array(7) for name in extras}
    assert tensors["visual.conv1.weight"].dtype == np.float16
    params = reference.read(tensors)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert np.array_equal(params["vision"]["stem_norm1"]["var"], tensors["visual.bn1.running_var"])


def test_state_dict_errors_list_the_names() -> None:
    reference = golden("vit_quickgelu")
    state = dict(reference.state)
    del state["visual.proj"]
    state["visual.head.weight"] = np.zeros(3, np.float32)
    state["ln_final.bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError) as caught:
        reference.read(state)
    for part in (
        "missing: visual.proj;",
        "unknown: visual.head.weight;",
        "of another shape: ln_final.bias (5,) instead of (16,)",
    ):
        assert part in str(caught.value)

    params = reference.read(reference.state)
    params["vision"]["scale"] = params["vision"].pop("projection")
    with pytest.raises(UserError, match=r"missing: vision/projection; unknown: vision/scale"):
        reference.write(params)


@slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, {}) for name in COCA] + [("coca", {"scan_layers": True}), ("coca", {"remat": "full"})],
)
def test_coca(name: str, changes: dict[str, Any]) -> None:
    """Measured: cosine 1 - 1e-7, largest difference 4e-6."""
    found = features(golden(name, **changes)) | {"logits": caption_logits(name, **changes)}
    for key, value in found.items():
        assert_same_features(value, golden(name).arrays[key])


def caption_logits(name: str, **changes: Any) -> np.ndarray:
    case = golden(name, **changes)
    apply = functools.partial(TwoTower(case.config).apply, method="caption_logits")
    return np.asarray(jax.jit(apply)({"params": case.params}, *case.inputs))


def assert_same_features(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 2e-5
    assert cosine(ours, theirs).min() >= 0.999999


@slow
def test_cocas_mask_of_the_class_token() -> None:
    """Released weights need the shifted mask; in the sequence's own order texts read otherwise."""
    aligned = features(golden("coca", text__class_mask="aligned"))["text_features"]
    assert_same_features(aligned, golden("coca").arrays["aligned/text_features"])
    assert np.abs(aligned - golden("coca").arrays["text_features"]).max() > 0.1


@slow
def test_cocas_logits_are_float32() -> None:
    assert caption_logits("coca", dtype="bfloat16").dtype == np.float32


def test_cocas_contrastive_forward_does_not_pay_for_the_decoder() -> None:
    case = golden("coca_class_token")
    without = changed(case.config, decoder=None)
    flops, parts = [], []
    for config in (case.config, without):
        forward = jax.jit(lambda params, *x, c=config: TwoTower(c).apply({"params": params}, *x))
        cost = forward.lower(case.params, *case.inputs).compile().cost_analysis()
        flops.append(cost["flops"])
        parts.append(jax.eval_shape(functools.partial(init_params, config), jax.random.key(0)))
    assert flops[0] == flops[1]
    assert parts[0].keys() - parts[1].keys() == {"decoder"}


def test_rules_of_a_pooler_as_wide_as_the_tower() -> None:
    """PyTorch then keeps one matrix for queries, keys and values, and so do we."""
    config = changed(get_architecture("coca_ViT-B-32"), embed_dim=768, text__width=768)
    named = {rule.theirs: rule.ours for rule in Golden(config, {"state/text.": np.ones(1)}).rules}
    fused = "vision/query_pool/attention/query_key_value"
    assert named["visual.attn_pool.attn.in_proj_weight"] == fused
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    assert "query_key_value" in shapes["vision"]["query_pool"]["attention"]


def test_positions_are_resized_on_reading(caplog: pytest.LogCaptureFixture) -> None:
    """A table of 3 x 3 patches, without a row for the class token, becomes one of 6 x 6."""
    larger = golden("mobileclip_b", image_size=96)
    assert larger.params["vision"]["positions"].shape == (36, 24)
    assert "9 rows interpolated to 36" in caplog.text


def test_convnext_without_layer_scale() -> None:
    """A tower trained without a gain has no rule and no parameter for it."""
    case = golden("convnext", vision__layer_scale=None)
    params = jax.eval_shape(functools.partial(init_params, case.config), jax.random.key(0))
    assert "mlp_scale" not in params["vision"]["stage1_block0"]
    state = {k: v for k, v in case.under("state/").items() if not k.endswith("gamma")}
    assert_round_trip(Golden(case.config, {f"state/{name}": x for name, x in state.items()}))


@slow
def test_initial_values_of_convnext() -> None:
    """Gains of 1e-6 make every block the identity at first; weights are N(0, 0.02²)."""
    config = golden("convnext", vision__width=16).config
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(0))["vision"]
    block = params["stage4_block0"]
    assert np.array_equal(block["mlp_scale"], np.full(128, np.float32(1e-6)))
    assert np.std(block["depthwise"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(block["mlp"]["in"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.abs(params["projection"]).max() == pytest.approx(128**-0.5, rel=0.01)


@slow
def test_features_of_every_block_of_convnext() -> None:
    case = golden("convnext")
    _, extra = TwoTower(case.config).apply(
        {"params": case.params}, case.inputs[0], method="encode_image", mutable=["features"]
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
    ("name", "overrides", "message"),
    [
        ("convnext_base", {"image_size": 225}, "image_size=225: a ConvNeXt takes a multiple of 32"),
        ("convnext_base", {"vision__layers": (1, 2)}, "a ConvNeXt takes four stage depths"),
        ("MobileCLIP2-S3", {"image_size": 224}, "image_size=224: a FastViT takes a multiple of 64"),
        ("MobileCLIP2-S3", {"vision__layers": (2, 2)}, "a FastViT takes four or five stage depths"),
        (
            "MobileCLIP2-S3",
            {"vision__width": 90, "vision__mlp_dim": 360},
            "a FastViT takes a multiple of 4",
        ),
        ("MobileCLIP2-S3", {"vision__mlp_dim": 99}, "vision.width=96: must divide vision.mlp_dim"),
        ("MobileCLIP2-S3", {"vision__layer_scale": None}, "vision.layer_scale=None: must be a num"),
        ("ViTamin-S", {"image_size": 230}, "image_size=230: a hybrid ViT takes a multiple of 16"),
    ],
)
def test_errors(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_architecture(name, **nested(overrides))
