"""Architectures by name, their counts, their initialisation, and what the towers compute."""

import csv
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_clip import RESNET, nested, random_params
from tiny_clip import tiny_architecture as tiny

from clip_jax import count_parameters, list_models
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.flops import image_flops, text_flops
from clip_jax.models.resnet import BatchNorm
from clip_jax.models.text import pool_positions
from clip_jax.models.two_tower import TwoTower, init_params, l2_normalize

# Trainable scalars, and 10⁹ operations of one image and one full text (captions included), of every
# released architecture: counted on open_clip's and transformers' own models, Hugging Face text
# towers by formula.
with (Path(__file__).parent / "published_sizes.csv").open() as file:
    PUBLISHED = {
        row["name"]: (int(row["parameters"]), float(row["gflops"])) for row in csv.DictReader(file)
    }


def test_names() -> None:
    assert sorted(list_models()) == sorted(PUBLISHED)


# The daily tier counts OpenAI's own; `make test` counts all.
NAMES = [
    name if i < 18 else pytest.param(name, marks=pytest.mark.slow)
    for i, name in enumerate(list_models())
]


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name: str) -> None:
    assert count_parameters(name) == PUBLISHED[name][0]


# A third of the names has rows of every family; a forward pass is traced for each.
@pytest.mark.parametrize("name", [n for n in NAMES[::3] if "coca" not in str(n)])
def test_operation_count(name: str) -> None:
    config = get_architecture(name)
    surplus = 0.0
    if config.vision.kind == "resnet":
        # The published figure has all tokens as queries of the attention pool; one is used.
        width, tokens = 32 * config.vision.width, config.vision_grid**2 + 1
        surplus = 2 * (tokens - 1) * width * (width + 2 * tokens + config.embed_dim)
    total = image_flops(config) + text_flops(config) + surplus
    assert total == pytest.approx(1e9 * PUBLISHED[name][1], rel=1e-3)


def test_quickgelu_twins_differ_in_the_activation_only() -> None:
    for name in ("RN50", "ViT-B-32"):
        plain, twin = get_architecture(name), get_architecture(f"{name}-quickgelu")
        towers = ("vision", "text") if name.startswith("ViT") else ("text",)  # ResNets have ReLU
        assert {getattr(twin, tower).activation for tower in towers} == {"quick_gelu"}
        plainly = {tower: {"activation": "gelu"} for tower in towers}
        assert override(twin, name=name, **plainly) == plain


def test_overrides_change_the_count() -> None:
    plain = PUBLISHED["ViT-B-32"][0]
    grown = count_parameters("ViT-B-32", image_size=256, vocab_size=49_409, context_length=80)
    assert grown - plain == (64 - 49) * 768 + 512 + 3 * 512
    assert count_parameters("ViT-B-32", logit_bias_init=-10.0) == plain + 1
    assert count_parameters("ViT-B-32", scan_layers=True) == plain
    assert count_parameters("ViT-B-32", vision={"pre_norm": False}) == plain - 2 * 768


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("ViT-B32", {}, "did you mean 'ViT-B-32'"),
        ("rn50", {}, "unknown model 'rn50'"),
        ("ViT-B-32", {"image_sizes": 224}, "did you mean 'image_size'?"),
        ("ViT-B-32", {"vision__heads": 7}, "must divide vision.width=768"),
        ("ViT-B-32", {"vision__pool": "max"}, "choose one of class_token, average"),
        ("ViT-B-32", {"vision__patch_size": 300}, "must be 1 to image_size=224"),
        ("RN50", {"image_size": 225}, "a ResNet takes a multiple of 32"),
        ("RN50", {"vision__layers": 12}, "vision.layers=12: must be whole numbers, one a stage"),
        ("RN50", {"vision__layers": (1, 2)}, "a ResNet takes four stage depths"),
        ("RN50", {"vision__rope": "yx"}, "a resnet has none; vit and hybrid do"),
        (
            "ViT-B-32",
            {"vision__widht": 8},
            "vision.widht: no field of ClipConfig; did you mean 'vision.w",
        ),
        ("ViT-B-32", {"vision_width": 8}, "did you mean 'vision.width'?"),
        ("ViT-B-32", {"vision__kind": "resnt"}, "choose one of vit, hybrid, resnet, convnext"),
        ("ViT-B-32", {"vision": 5}, "vision=5: must be a dict of fields"),
        ("ViT-B-32", {"vision": None}, "vision=None: must be a dict of fields"),
        ("ViT-B-32", {"vision__patch_dropout": 1.0}, "must be 0 to less than 1"),
        ("ViT-B-32", {"image_fill": 256}, "must be at most 255"),
        ("coca_ViT-B-32", {"decoder__heads": 7}, "must divide text.width=512"),
    ],
)
def test_errors_name_what_would_be_accepted(
    name: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        count_parameters(name, **nested(overrides))
    assert message in str(caught.value)


def test_config_survives_json() -> None:
    config = get_architecture("RN50", image_size=256, logit_bias_init=-10.0)
    assert ClipConfig.from_dict(config.to_dict()) == config


@functools.cache
def fresh(**changes: Any) -> dict[str, np.ndarray]:
    """Initial parameters by path, wide enough for statistics."""
    sizes = {"vision__width": 64, "text__width": 64, "embed_dim": 48, "vocab_size": 500}
    sizes |= {"text__mlp_dim": 256, "context_length": 40, "image_size": 64}
    if changes.get("vision__kind") != "resnet":
        sizes["vision__mlp_dim"] = 192
    config = tiny(**(sizes | changes))
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(1))
    return {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}


NORMAL = {  # standard deviations: OpenAI's initialisation of a width of 64 and 2 text layers
    "text/token_embedding": 0.02,
    "text/positions": 0.01,
    "text/projection": 64**-0.5,
    "text/transformer/blocks_1/attention/query_key_value": 64**-0.5,
    "text/transformer/blocks_1/attention/out": 64**-0.5 * 4**-0.5,
    "text/transformer/blocks_1/mlp/in/kernel": 128**-0.5,
    "text/transformer/blocks_1/mlp/out/kernel": 64**-0.5 * 4**-0.5,
    "vision/class_token": 64**-0.5,
    "vision/positions": 64**-0.5,
    "vision/projection": 64**-0.5,
}
UNIFORM = {  # bounds: PyTorch's defaults
    "vision/patch_embedding": 192**-0.5,
    "vision/transformer/blocks_0/attention/query_key_value": (6 / (64 + 192)) ** 0.5,
    "vision/transformer/blocks_0/attention/out": 64**-0.5,
    "vision/transformer/blocks_0/mlp/in/kernel": 64**-0.5,
    "vision/transformer/blocks_0/mlp/in/bias": 64**-0.5,
    "vision/transformer/blocks_0/mlp/out/kernel": 192**-0.5,
    "text/transformer/blocks_0/mlp/in/bias": 64**-0.5,
    "text/transformer/blocks_0/mlp/out/bias": 256**-0.5,
}


def test_initialisation_of_transformers() -> None:
    params = fresh()
    for path, std in NORMAL.items():
        x = params[path]
        # Four standard errors of an estimated standard deviation.
        assert x.std() == pytest.approx(std, rel=4 / (2 * x.size) ** 0.5), path
        assert np.abs(x).max() > 2 * std or x.size < 100, path
    for path, bound in UNIFORM.items():
        x = params[path]
        assert np.abs(x).max() <= bound, path
        assert x.std() == pytest.approx(bound / 3**0.5, rel=4 / (2 * x.size) ** 0.5), path
    for path, x in params.items():
        if path.endswith("norm/scale"):
            assert (x == 1).all(), path
        if path.endswith(("norm/bias", "query_key_value_bias", "out_bias")):
            assert not x.any(), path
    assert params["logit_scale"] == np.float32(np.log(1 / 0.07))


def test_initialisation_of_a_scanned_stack_is_that_of_its_blocks() -> None:
    scanned = fresh(scan_layers=True)
    kernel = scanned["text/transformer/blocks/attention/query_key_value"]
    assert kernel.shape == (2, 64, 3, 2, 32)
    assert not np.allclose(kernel[0], kernel[1])
    assert kernel.std(axis=(1, 2, 3, 4)) == pytest.approx([64**-0.5] * 2, rel=0.03)


@pytest.mark.slow
def test_initialisation_of_resnets() -> None:
    params = fresh(**RESNET)
    for name in ("positions", "query/kernel", "key/kernel", "value/kernel", "out/kernel"):
        x = params[f"vision/attention_pool/{name}"]
        assert x.std() == pytest.approx(128**-0.5, rel=4 / (2 * x.size) ** 0.5), name
    for path, x in params.items():
        if "block" in path and path.endswith("norm3/scale"):
            assert not x.any(), path
        elif "norm" in path and path.endswith(("scale", "var")):
            assert (x == 1).all(), path
        elif "norm" in path:
            assert not x.any(), path
        elif path.endswith(("conv1/kernel", "conv2/kernel", "shortcut/kernel")):
            bound = np.prod(x.shape[:3]) ** -0.5
            assert 0.8 * bound < np.abs(x).max() <= bound, path


def test_a_row_of_zeros_is_no_nan() -> None:
    x = np.array([[3, 4], [0, 0], [3e-12, 4e-12]], np.float32)
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.grad(lambda x: (l2_normalize(x) * np.array([1, 2])).sum())(x[:2])
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()
    huge = l2_normalize(jnp.array([[300.0, 400.0]], jnp.float16))  # its squares are not in float16
    assert huge.dtype == jnp.float32
    np.testing.assert_allclose(huge, [[0.6, 0.8]], rtol=1e-6)


def test_batch_norm_in_bfloat16_with_a_large_mean() -> None:
    """Mean and variance are taken out before rounding: 100 ± 1 keeps its digits."""
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 8, 8, 3)), jnp.bfloat16)
    x32 = np.asarray(x, np.float64)
    expected = (x32 - x32.mean((0, 1, 2))) / x32.std((0, 1, 2))
    got, _ = BatchNorm().init_with_output(jax.random.key(0), x, True)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.02)


def test_shorter_contexts() -> None:
    """Captions may be cut behind their end of text: the rest of the context is padding."""
    config = tiny()
    params, end = random_params(config), config.vocab_size - 1
    tokens = np.array([[30, 4, end, 0, 0, 0, 0, 0], [30, end, 0, 0, 0, 0, 0, 0]])
    encode = functools.partial(TwoTower(config).apply, {"params": params}, method="encode_text")
    np.testing.assert_allclose(encode(tokens[:, :4]), encode(tokens), rtol=1e-5, atol=1e-6)


def test_text_pooling() -> None:
    tokens = jnp.array([[30, 4, 59, 0, 0], [9, 9, 4, 59, 59]])
    expected = {
        "argmax": [2, 3],
        "eos": [0, 0],  # the first 9 … in row 1; row 0 has none
        "last": [4, 4],
    }
    for pool, positions in expected.items():
        config = tiny(text__pool=pool, text__eos_id=9).text
        assert pool_positions(tokens, config).tolist() == positions
    assert pool_positions(tokens, tiny(text__pool="eos", text__eos_id=4).text).tolist() == [1, 2]
