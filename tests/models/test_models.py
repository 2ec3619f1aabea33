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
from tiny_clip import changed, nested

from clip_jax import count_parameters, list_models
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.flops import image_flops, text_flops
from clip_jax.models.resnet import BatchNorm
from clip_jax.models.text import pool_positions
from clip_jax.models.two_tower import TwoTower, init_params, l2_normalize
from clip_jax.models.vision import VisionTransformer

# Trainable scalars, and 10⁹ operations of one image and one full text (captions included), of every
# released architecture: counted on open_clip's and transformers' own models, Hugging Face text
# towers by formula.
with (Path(__file__).parent / "published_sizes.csv").open() as file:
    PUBLISHED = {
        row["name"]: (int(row["parameters"]), float(row["gflops"])) for row in csv.DictReader(file)
    }

TINY = {
    "embed_dim": 12,
    "image_size": 16,
    "vision__patch_size": 8,
    "vision__width": 16,
    "vision__layers": 1,
    "vision__heads": 2,
    "vision__mlp_dim": 32,
    "context_length": 8,
    "vocab_size": 32,
    "text__width": 16,
    "text__layers": 2,
    "text__heads": 2,
    "text__mlp_dim": 32,
}
TINY_RESNET = TINY | {
    "vision__kind": "resnet",
    "image_size": 32,
    "vision__width": 4,
    "vision__layers": (1, 1, 1, 1),
    "vision__heads": 2,
}
EOT = 31


def tiny(**changes: Any) -> ClipConfig:
    return changed(ClipConfig(), **(TINY | changes))


# Half the compile time, slower machine code.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def tiny_params(config: ClipConfig) -> Any:
    """Random parameters, none of them 0 or 1."""
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    rng = np.random.default_rng(0)

    def values(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        assert leaf.dtype == np.float32
        one = path[-1].key in ("scale", "var")
        return (one + rng.uniform(-0.3, 0.3, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(values, shapes)


@functools.cache
def apply(config: ClipConfig, method: str) -> Any:
    return compiled(lambda params, x: TwoTower(config).apply({"params": params}, x, method=method))


def encode_text(config: ClipConfig, tokens: Any) -> np.ndarray:
    return np.asarray(apply(config, "encode_text")(tiny_params(config), np.asarray(tokens)))


def encode_image(config: ClipConfig, images: Any) -> np.ndarray:
    return np.asarray(apply(config, "encode_image")(tiny_params(config), np.asarray(images)))


def images_of(config: ClipConfig, batch: int = 3) -> np.ndarray:
    shape = (batch, config.image_size, config.image_size, 3)
    return np.random.default_rng(2).standard_normal(shape, np.float32)


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


@pytest.mark.slow
def test_counting_stacked_blocks_is_counting_blocks() -> None:
    config = get_architecture("ViT-B-16-SigLIP", vocab_size=100)
    assert not config.scan_layers
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert counted == count_parameters("ViT-B-16-SigLIP", vocab_size=100)


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
    sizes |= {"text__mlp_dim": 256, "vision__mlp_dim": 192, "context_length": 40, "image_size": 64}
    config = tiny(**(sizes | changes))
    params = compiled(init_params, static_argnums=0)(config, jax.random.key(1))
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
    params = fresh(**TINY_RESNET)
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


def test_embeddings_have_length_one() -> None:
    config = tiny(logit_bias_init=-3.0)
    tokens = np.full((3, 8), EOT, np.int32)
    out = compiled(TwoTower(config).apply)(
        {"params": tiny_params(config)}, images_of(config), tokens
    )
    for embeds in (out.image_embeds, out.text_embeds):
        assert embeds.shape == (3, 12)
        assert np.linalg.norm(embeds, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    params = tiny_params(config)
    np.testing.assert_allclose(out.logit_scale, np.exp(params["logit_scale"]), rtol=1e-6)
    assert out.logit_bias == params["logit_bias"]


def test_a_row_of_zeros_is_no_nan() -> None:
    x = np.array([[3, 4], [0, 0], [3e-12, 4e-12]], np.float32)
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.grad(lambda x: (l2_normalize(x) * np.array([1, 2])).sum())(x[:2])
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()
    huge = l2_normalize(jnp.array([[300.0, 400.0]], jnp.float16))  # its squares are not in float16
    assert huge.dtype == jnp.float32
    np.testing.assert_allclose(huge, [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("base", [TINY, TINY_RESNET], ids=["vit", "resnet"])
def test_bfloat16_computes_nearly_the_same(base: dict[str, Any]) -> None:
    config = changed(ClipConfig(), **base)
    half = changed(config, dtype="bfloat16")
    images, tokens = images_of(config), np.array([[1, 5, EOT, 0], [2, EOT, 0, 0], [3, 4, 5, EOT]])
    exact = encode_image(config, images), encode_text(config, tokens)
    rough = encode_image(half, images), encode_text(half, tokens)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == jnp.bfloat16
        normed, rough_normed = l2_normalize(a), l2_normalize(b)
        assert rough_normed.dtype == jnp.float32
        assert np.sum(normed * rough_normed, axis=1).min() > 0.9995


def test_batch_norm_in_bfloat16_with_a_large_mean() -> None:
    """Mean and variance are taken out before rounding: 100 ± 1 keeps its digits."""
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 8, 8, 3)), jnp.bfloat16)
    x32 = np.asarray(x, np.float64)
    expected = (x32 - x32.mean((0, 1, 2))) / x32.std((0, 1, 2))
    got, _ = BatchNorm().init_with_output(jax.random.key(0), x, True)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.02)


def test_patch_embedding_is_a_strided_convolution() -> None:
    """18 pixels in patches of 8: the last two are dropped."""
    config = tiny(image_size=18)
    images, params = images_of(config), tiny_params(config)["vision"]
    expected = jax.lax.conv_general_dilated(
        images,
        params["patch_embedding"],
        window_strides=(8, 8),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ).reshape(3, 4, 16)
    _, extra = VisionTransformer(config.vision, config).apply(
        {"params": params},
        images,
        capture_intermediates=lambda module, _: module.name == "pre_norm",
        mutable=["intermediates"],
    )
    x = jnp.concatenate([jnp.broadcast_to(params["class_token"], (3, 1, 16)), expected], axis=1)
    x += params["positions"]
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * params["pre_norm"]["scale"] + params["pre_norm"]["bias"]
    (captured,) = extra["intermediates"]["pre_norm"]["__call__"]
    np.testing.assert_allclose(captured, x, rtol=1e-4, atol=1e-5)


def test_tokens_after_the_end_do_not_matter() -> None:
    config = tiny()
    tokens = np.array([[30, 4, EOT, 0, 0, 0, 0, 0], [30, 4, EOT, 7, 9, 11, 2, 1]])
    first, second = encode_text(config, tokens)
    np.testing.assert_array_equal(first, second)
    tokens[1, 1] = 5
    assert not np.allclose(first, encode_text(config, tokens)[1], atol=1e-3)
    both_ways = tiny(text__causal=False)
    tokens[1, 1] = 4
    first, second = encode_text(both_ways, tokens)
    assert not np.allclose(first, second, atol=1e-3)


def test_shorter_contexts() -> None:
    """Captions may be cut behind their end of text: the rest of the context is padding."""
    config = tiny()
    tokens = np.array([[30, 4, EOT, 0, 0, 0, 0, 0], [30, EOT, 0, 0, 0, 0, 0, 0]])
    full, short = encode_text(config, tokens), encode_text(config, tokens[:, :4])
    np.testing.assert_allclose(short, full, rtol=1e-5, atol=1e-6)


def test_text_pooling() -> None:
    tokens = jnp.array([[30, 4, EOT, 0, 0], [9, 9, 4, EOT, EOT]])
    expected = {
        "argmax": [2, 3],
        "eos": [0, 0],  # the first 9 … in row 1; row 0 has none
        "last": [4, 4],
    }
    for pool, positions in expected.items():
        config = tiny(text__pool=pool, text__eos_id=9).text
        assert pool_positions(tokens, config).tolist() == positions
    assert pool_positions(tokens, tiny(text__pool="eos", text__eos_id=4).text).tolist() == [1, 2]


def test_vision_pooling() -> None:
    """Both kinds read the same tokens, and differ."""
    class_token, average = tiny(), tiny(vision__pool="average")
    images = images_of(class_token)
    assert not np.allclose(encode_image(class_token, images), encode_image(average, images))
