"""The models against open_clip: features, losses, gradients and running statistics.

The files in tests/support/goldens are tiny CLIPs with a random value in every parameter and
buffer, made by tests/oracle/make_goldens.py; nothing here needs torch. Full-size RN50 and ViT-B/32
with random weights were compared once by hand with the same result.
"""

import functools
import json
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from places import SUPPORT
from tiny_clip import changed, from_state_dict, to_state_dict

from clip_jax.errors import UserError
from clip_jax.losses import sigmoid_loss, softmax_loss
from clip_jax.models.config import ClipConfig
from clip_jax.models.resnet import BATCH_STATISTICS, update_running_statistics
from clip_jax.models.two_tower import CLIPOutput, TwoTower

GOLDENS = SUPPORT / "goldens"
MODELS = ("vit_quickgelu", "vit_average_pool", "resnet")
VARIANTS = [
    ("vit_quickgelu", {"scan_layers": True}),
    pytest.param("vit_quickgelu", {"scan_layers": True, "remat": "full"}, marks=pytest.mark.slow),
    pytest.param("vit_quickgelu", {"remat": "dots"}, marks=pytest.mark.slow),
    pytest.param("vit_quickgelu", {"scan_layers": True, "remat": "qkv"}, marks=pytest.mark.slow),
    pytest.param(
        "vit_quickgelu", {"scan_layers": True, "remat": "offload"}, marks=pytest.mark.slow
    ),
    pytest.param("resnet", {"remat": "full"}, marks=pytest.mark.slow),
]

# Largest error over the largest value of a tensor, in float32. Measured: features 9e-7 (ResNet;
# 7e-6 in train mode, 4e-7 for ViTs and texts), gradients 7e-6 (ViTs), 5e-5 (ResNet in train mode).
FORWARD_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4


def to_config(settings: dict[str, Any]) -> ClipConfig:
    """An open_clip configuration -> ours."""
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    resnet = isinstance(vision["layers"], list)
    activation = "quick_gelu" if settings["quick_gelu"] else "gelu"
    tower = {
        "kind": "resnet" if resnet else "vit",
        "width": vision["width"],
        "layers": vision["layers"],
        "heads": vision["width"] * (32 if resnet else 1) // vision["head_width"],
    }
    if not resnet:
        tower |= {
            "patch_size": vision["patch_size"],
            "mlp_dim": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "pool": "average" if vision.get("pool_type") == "avg" else "class_token",
            "pre_norm": not vision.get("no_ln_pre", False),
            "activation": activation,
        }
    return changed(
        ClipConfig(),
        embed_dim=settings["embed_dim"],
        image_size=vision["image_size"],
        vision=tower,
        context_length=text["context_length"],
        vocab_size=text["vocab_size"],
        text__width=text["width"],
        text__layers=text["layers"],
        text__heads=text["heads"],
        text__mlp_dim=int(text["width"] * text.get("mlp_ratio", 4.0)),
        text__activation=activation,
        logit_bias_init=settings.get("init_logit_bias"),
    )


class Golden(NamedTuple):
    config: ClipConfig
    arrays: dict[str, np.ndarray]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix`, without it."""
        names = [name for name in self.arrays if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.arrays[name] for name in names}

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {name: x.astype(np.float32) for name, x in self.under("state/").items()}

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """(B, S, S, 3) float32 images and (B, L) int32 tokens."""
        return self.arrays["images"].astype(np.float32), self.arrays["tokens"]


@functools.cache
def golden(name: str) -> Golden:
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = dict(file)
    return Golden(to_config(json.loads(str(arrays.pop("config")))), arrays)


class Ours(NamedTuple):
    features: tuple[jax.Array, jax.Array]  # (B, D) of images and texts, not normalised
    output: CLIPOutput
    loss: jax.Array
    gradients: dict[str, np.ndarray]  # by open_clip's names
    statistics: Any  # what batch normalisation sowed


def run(config: ClipConfig, train: bool, params: Any, images: Any, tokens: Any) -> Any:
    """The softmax loss, and ((image, text) features, output, what batch normalisation sowed)."""
    out, extra = TwoTower(config).apply(
        {"params": params},
        images,
        tokens,
        train,
        capture_intermediates=lambda module, _: module.name in ("vision", "text"),
        mutable=[BATCH_STATISTICS, "intermediates"],
    )
    features = tuple(extra["intermediates"][tower]["__call__"][0] for tower in ("vision", "text"))
    loss = softmax_loss(out.image_embeds, out.text_embeds, out.logit_scale)
    return loss, (features, out, extra.get(BATCH_STATISTICS, {}))


@functools.cache
def ours(name: str, train: bool = False, **overrides: Any) -> Ours:
    """Our forward and backward pass over a golden's inputs."""
    reference = golden(name)
    config = changed(reference.config, **overrides)
    step = jax.jit(
        jax.value_and_grad(functools.partial(run, config, train), has_aux=True),
        # Half the compile time; the rewrites of the program are the same, the machine code slower.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    (loss, (features, output, statistics)), gradients = step(
        from_state_dict(config, reference.state), *reference.inputs
    )
    return Ours(features, output, loss, to_state_dict(config, gradients), statistics)


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    """Largest difference over the largest value."""
    assert np.shape(ours) == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def assert_gradients_close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    assert len(theirs) > 20
    for name, gradient in theirs.items():
        if name.endswith(("running_mean", "running_var")):
            assert not ours[name].any()
            continue
        if name.endswith("k_proj.bias"):  # exactly 0: it shifts all scores of a query alike
            assert np.abs(ours[name]).max() < 1e-5 * largest
            continue
        assert relative_error(ours[name], gradient) < GRADIENT_TOLERANCE, name


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_features_and_embeddings(name: str) -> None:
    got, arrays = ours(name), golden(name).arrays
    pairs = {
        "image_features": got.features[0],
        "text_features": got.features[1],
        "image_embeds": got.output.image_embeds,
        "text_embeds": got.output.text_embeds,
        "scale": got.output.logit_scale,
    }
    for key, value in pairs.items():
        assert relative_error(value, arrays[key]) < FORWARD_TOLERANCE, key


@pytest.mark.parametrize("name", MODELS)
def test_softmax_loss_and_gradients(name: str) -> None:
    got, reference = ours(name), golden(name)
    assert relative_error(got.loss, reference.arrays["softmax_loss"]) < 2e-6
    assert_gradients_close(got.gradients, reference.under("gradient/"))


def test_sigmoid_loss_and_gradients() -> None:
    arrays, bias = golden("vit_average_pool").arrays, golden("vit_average_pool").state["logit_bias"]
    inputs = [arrays[name] for name in ("image_embeds", "text_embeds", "scale")]
    loss, gradients = jax.value_and_grad(sigmoid_loss, argnums=(0, 1, 2, 3))(*inputs, bias)
    assert relative_error(loss, arrays["sigmoid_loss"]) < 2e-6
    names = ("image_embeds", "text_embeds", "scale", "bias")
    for name, gradient in zip(names, gradients, strict=True):
        assert relative_error(gradient, arrays[f"sigmoid_gradient/{name}"]) < 2e-6, name
    assert ours("vit_average_pool").output.logit_bias == bias


@pytest.mark.slow
def test_resnet_in_train_mode() -> None:
    """Statistics of the batch in the forward pass and its gradient, and the running ones after."""
    got, reference = ours("resnet", train=True), golden("resnet")
    theirs = reference.under("train/")
    assert relative_error(got.features[0], theirs["image_features"]) < FORWARD_TOLERANCE
    # The golden running means are random, far from the batch's: the hard case of one-pass moments.
    assert relative_error(got.loss, theirs["softmax_loss"]) < 1e-5
    assert_gradients_close(got.gradients, reference.under("train/gradient/"))

    params = from_state_dict(reference.config, reference.state)
    updated = update_running_statistics(params, got.statistics)
    state = to_state_dict(reference.config, updated)
    expected = reference.under("train/state/")
    assert len(expected) == sum("running_" in name for name in reference.state) > 30
    for name, value in expected.items():
        assert relative_error(state[name], value) < FORWARD_TOLERANCE, name
    for name in state.keys() - expected.keys():
        assert np.array_equal(state[name], reference.state[name]), name


def test_frozen_batch_norm_in_training_is_evaluation() -> None:
    """With stored statistics, training compiles to the very program of evaluation."""
    reference = golden("resnet")
    frozen = changed(reference.config, vision__batch_norm="frozen")
    params = from_state_dict(reference.config, reference.state)
    texts = [
        jax.jit(functools.partial(run, config, train)).lower(params, *reference.inputs).as_text()
        for config, train in ((frozen, True), (reference.config, False), (reference.config, True))
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "overrides"), VARIANTS)
def test_layouts_and_remat_agree(name: str, overrides: dict[str, Any]) -> None:
    plain, variant = ours(name), ours(name, **overrides)
    for a, b in zip(plain.features, variant.features, strict=True):
        assert relative_error(b, np.asarray(a)) < 2e-6
    assert variant.gradients.keys() == plain.gradients.keys()
    assert_gradients_close(variant.gradients, plain.gradients)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_state_dict_round_trip_is_bit_equal(name: str, scan_layers: bool) -> None:
    reference = golden(name)
    config = changed(reference.config, scan_layers=scan_layers)
    back = to_state_dict(config, from_state_dict(config, reference.state))
    assert back.keys() == reference.state.keys()
    for key, value in reference.state.items():
        assert back[key].dtype == np.float32
        assert back[key].flags.c_contiguous
        assert np.array_equal(back[key], value), key


def test_state_dict_drops_known_extras_and_casts() -> None:
    reference = golden("resnet")
    extras = {"input_resolution", "context_length", "vocab_size", "visual.bn1.num_batches_tracked"}
    tensors = reference.under("state/") | {name: np.array(7) for name in extras}
    assert tensors["visual.conv1.weight"].dtype == np.float16
    params = from_state_dict(reference.config, tensors)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert np.array_equal(params["vision"]["stem_norm1"]["var"], tensors["visual.bn1.running_var"])


def test_state_dict_errors_list_the_names() -> None:
    reference = golden("vit_quickgelu")
    state = reference.state
    del state["visual.proj"]
    state["visual.head.weight"] = np.zeros(3, np.float32)
    state["ln_final.bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError) as caught:
        from_state_dict(reference.config, state)
    for part in (
        "missing: visual.proj;",
        "unknown: visual.head.weight;",
        "of another shape: ln_final.bias (5,) instead of (16,)",
    ):
        assert part in str(caught.value)

    params = from_state_dict(reference.config, reference.state)
    params["vision"]["scale"] = params["vision"].pop("projection")
    with pytest.raises(UserError, match=r"missing: vision/projection; unknown: vision/scale"):
        to_state_dict(reference.config, params)
