"""The tiny models of tests/support/goldens: what open_clip and timm compute, and what we do.

Every parameter and buffer has a random value; tests/oracle/make_*.py made the files.
"""

import dataclasses
import functools
import json
import math
from typing import Any

import jax
import numpy as np
from places import SUPPORT
from tiny_clip import changed

from clip_jax.losses import softmax_loss
from clip_jax.models.config import ClipConfig
from clip_jax.models.resnet import BATCH_STATISTICS, update_running_statistics
from clip_jax.models.two_tower import TwoTower
from clip_jax.weights.layouts.open_clip import IGNORED, open_clip_rules
from clip_jax.weights.layouts.open_clip_config import config_from_open_clip
from clip_jax.weights.rules.table import ArrayTensors, Rule, read_params, write_tensors

NATIVE = ("vit_quickgelu", "vit_average_pool", "resnet")
COCA = ("coca", "coca_class_token")

_CONVNEXT = {"kind": "convnext", "width": 4}
_FASTVIT = {"kind": "fastvit", "width": 4, "projection": "linear_bias"}
_VITAMIN: dict[str, Any] = {
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
# Towers of timm, whose sizes open_clip's configuration does not say.
TIMM: dict[str, dict[str, Any]] = {
    "convnext": _CONVNEXT | {"layers": (1, 1, 2, 1), "norm_eps": 1e-6},
    "convnext_mlp": _CONVNEXT | {"layers": (1, 1, 1, 1), "projection": "mlp_bias"},
    "fastvit": _FASTVIT | {"layers": (1, 2, 1, 1), "mlp_dim": 12, "variant": "small"},
    "fastvit_large": _FASTVIT | {"layers": (1, 1, 1, 1, 1), "mlp_dim": 4, "variant": "large"},
    "vitamin": _VITAMIN,
    "vitamin_xl": _VITAMIN | {"layers": 1, "positions": False},
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
ALL = (*NATIVE, *TIMM, *COCA)

# Half the compile time; the rewrites of the program are the same, the machine code slower.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """One file and the configuration that it stands for."""

    config: ClipConfig
    arrays: dict[str, np.ndarray]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix`, without it."""
        names = [name for name in self.arrays if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.arrays[name] for name in names}

    @functools.cached_property
    def state(self) -> dict[str, np.ndarray]:
        """The reference's parameters and buffers, float32."""
        return {name: x.astype(np.float32) for name, x in self.under("state/").items()}

    @functools.cached_property
    def rules(self) -> list[Rule]:
        """Our table for the file's names."""
        return open_clip_rules(self.config, any(name.startswith("text.") for name in self.state))

    def read(self, state: dict[str, np.ndarray]) -> dict[str, Any]:
        """Their tensors as our parameters."""
        return read_params(self.config, self.rules, ArrayTensors(state), IGNORED)

    def write(self, params: Any) -> dict[str, np.ndarray]:
        """Our parameters as their tensors."""
        return dict(write_tensors(self.config, self.rules, params))

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """The file's parameters as ours."""
        return self.read(self.state)

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, S, S, 3) float32, tokens (B, L) int32."""
        return self.arrays["images"].astype(np.float32), self.arrays["tokens"]


def _unpack(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a file of many small ones, by name."""
    arrays, taken = {}, dict.fromkeys(packed, 0)
    for name, (dtype, shape) in json.loads(str(packed["index"])).items():
        values, size = f"values_{dtype}", math.prod(shape)
        start = taken[values]
        taken[values] += size
        arrays[name] = packed[values][start : start + size].reshape(shape)
    return arrays


@functools.cache
def golden(name: str, **changes: Any) -> Golden:
    """The file of that name; `changes`: fields of its configuration."""
    with np.load(SUPPORT / "goldens" / f"{name}.npz") as file:
        arrays = dict(file)
    settings = json.loads(str(arrays.pop("config")))
    settings.pop("logit_scale", None)
    if name in TIMM:
        arrays = _unpack(arrays)
        settings["vision_cfg"] = {"image_size": settings["vision_cfg"]["image_size"]}
    config = config_from_open_clip({"model_cfg": settings, "preprocess_cfg": {}})
    if name in TIMM:
        config = changed(config, vision=TIMM[name])
    # Pixels as given: the files hold normalised ones.
    given = {"image_mean": (0.0,) * 3, "image_std": (1 / 255,) * 3}
    return Golden(changed(changed(config, **given), **changes), arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Ours:
    """Our numbers on a golden's inputs, under its names."""

    arrays: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    logit_bias: np.ndarray
    statistics: Any  # what batch normalisation sowed


def loss_and_outputs(config: ClipConfig, train: bool, params: Any, *inputs: Any) -> Any:
    """The softmax loss of images and tokens, and (outputs, the bias, what batch norms sowed)."""
    out, extra = TwoTower(config).apply(
        {"params": params},
        *inputs,
        train,
        capture_intermediates=lambda module, _: module.name in ("vision", "text"),
        mutable=[BATCH_STATISTICS, "intermediates"],
    )
    value = softmax_loss(out.image_embeds, out.text_embeds, out.logit_scale)
    features = {k: v["__call__"][0] for k, v in extra["intermediates"].items()}
    arrays = {
        "image_features": features["vision"],
        "text_features": features["text"],
        "image_embeds": out.image_embeds,
        "text_embeds": out.text_embeds,
        "scale": out.logit_scale,
        "softmax_loss": value,
    }
    return value, (arrays, out.logit_bias, extra.get(BATCH_STATISTICS, {}))


@functools.cache
def ours(name: str, train: bool = False, **changes: Any) -> Ours:
    """Our forward and backward pass over a golden's inputs."""
    case = golden(name, **changes)
    loss = functools.partial(loss_and_outputs, case.config, train)
    step = compiled(jax.value_and_grad(loss, has_aux=True))
    (_, (arrays, *more)), gradients = step(case.params, *case.inputs)
    return Ours(
        {key: np.asarray(x) for key, x in arrays.items()},
        case.write(jax.tree.map(np.asarray, gradients)),
        *more,
    )


def features(case: Golden) -> dict[str, np.ndarray]:
    """Features of a golden's images and texts, without gradients."""

    def towers(params: Any, images: Any, tokens: Any) -> Any:
        apply = functools.partial(TwoTower(case.config).apply, {"params": params})
        return apply(images, method="encode_image"), apply(tokens, method="encode_text")

    found = compiled(towers)(case.params, *case.inputs)
    return dict(zip(("image_features", "text_features"), map(np.asarray, found), strict=True))


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    """Largest difference over the largest value."""
    assert np.shape(ours) == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B, D), (B, D) -> (B,) in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def assert_gradients(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float
) -> None:
    """Every gradient within `tolerance` of its largest value; what is exactly 0 (a constant that a
    normalisation takes away again) small against all others."""
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    assert len(theirs) > 20
    for name, gradient in theirs.items():
        zero = 1e-5 if name.endswith("k_proj.bias") else 1e-6
        allowed = tolerance * np.abs(gradient).max() + zero * largest
        assert np.abs(ours[name] - gradient).max() < allowed, name


def assert_train_mode(ours: Ours, golden: Golden, tolerance: float) -> None:
    """Statistics of the batch in the forward pass and its gradient, and the running ones after."""
    theirs = golden.under("train/")
    for name in ("image_features", "softmax_loss"):
        assert relative_error(ours.arrays[name], theirs[name]) < tolerance
    assert_gradients(ours.gradients, golden.under("train/gradient/"), 5 * tolerance)
    state = golden.write(update_running_statistics(golden.params, ours.statistics))
    expected = golden.under("train/state/")
    assert len(expected) == sum("running_" in name for name in golden.state) > 3
    for name, value in state.items():
        if name in expected:
            assert relative_error(value, expected[name]) < tolerance, name
        else:
            assert np.array_equal(value, golden.state[name]), name
