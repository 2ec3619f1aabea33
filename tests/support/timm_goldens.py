"""What the tests of image towers of timm share: goldens, and our numbers on their inputs."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tiny_clip import changed

from clip_jax.losses import softmax_loss
from clip_jax.models.config import ClipConfig
from clip_jax.models.resnet import BATCH_STATISTICS, update_running_statistics
from clip_jax.models.two_tower import TwoTower, l2_normalize
from clip_jax.weights.layouts.open_clip import IGNORED, open_clip_rules
from clip_jax.weights.rules.table import ArrayTensors, Rule, read_params, write_tensors

GOLDENS = Path(__file__).parent / "goldens"


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """One file of tests/support/goldens and the configuration that it stands for."""

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


def unpack(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    arrays, taken = {}, dict.fromkeys(packed, 0)
    for name, (dtype, shape) in json.loads(str(packed["index"])).items():
        values, size = f"values_{dtype}", math.prod(shape)
        start = taken[values]
        taken[values] += size
        arrays[name] = packed[values][start : start + size].reshape(shape)
    return arrays


def load(name: str, vision: dict[str, Any]) -> Golden:
    """The golden called `name`; `vision` completes what its settings do not say."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        packed = dict(file)
    settings, arrays = json.loads(str(packed["config"])), unpack(packed)
    text = settings["text_cfg"]
    config = changed(
        ClipConfig(),
        embed_dim=settings["embed_dim"],
        image_size=settings["vision_cfg"]["image_size"],
        context_length=text["context_length"],
        vocab_size=text["vocab_size"],
        text__width=text["width"],
        text__layers=text["layers"],
        text__heads=text["heads"],
        text__mlp_dim=4 * text["width"],
        text__causal=not text.get("no_causal_mask", False),
        vision=vision,
    )
    return Golden(config, arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Ours:
    """Our numbers on a golden's inputs, under its names."""

    arrays: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    statistics: Any  # what batch normalisation sowed


def run(golden: Golden, train: bool = False, **overrides: Any) -> Ours:
    """Our forward and backward pass over a golden's inputs."""
    config = changed(golden.config, **overrides)

    def loss(params: Any, images: Any, tokens: Any) -> Any:
        out, extra = TwoTower(config).apply(
            {"params": params},
            images,
            tokens,
            train,
            capture_intermediates=lambda module, _: module.name in ("vision", "text"),
            mutable=[BATCH_STATISTICS, "intermediates"],
        )
        value = softmax_loss(out.image_embeds, out.text_embeds, out.logit_scale)
        features = {k: v["__call__"][0] for k, v in extra["intermediates"].items()}
        return value, {
            "image_features": features["vision"],
            "text_features": features["text"],
            "image_embeds": out.image_embeds,
            "text_embeds": out.text_embeds,
            "statistics": extra.get(BATCH_STATISTICS, {}),
        }

    step = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},  # half the compile time
    )
    images = golden.arrays["images"].astype(np.float32)
    (value, arrays), gradients = step(golden.read(golden.state), images, golden.arrays["tokens"])
    statistics = arrays.pop("statistics")
    arrays = {name: np.asarray(x) for name, x in (arrays | {"softmax_loss": value}).items()}
    return Ours(arrays, golden.write(jax.tree.map(np.asarray, gradients)), statistics)


def image_embeds(golden: Golden, **overrides: Any) -> np.ndarray:
    """Our image embeddings of a golden's inputs, (B, D) float32 of length 1."""
    config = changed(golden.config, **overrides)

    def embed(params: Any, images: Any) -> Any:
        features = TwoTower(config).apply({"params": params}, images, method="encode_image")
        return l2_normalize(features)

    compiled = jax.jit(embed, compiler_options={"xla_backend_optimization_level": 0})
    images = golden.arrays["images"].astype(np.float32)
    return np.asarray(compiled(golden.read(golden.state), images))


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the largest value."""
    assert np.shape(ours) == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_forward(ours: Ours, golden: Golden) -> None:
    """Embeddings within 2e-5, of cosine 0.999999; features relatively as near."""
    for tower in ("image", "text"):
        mine, theirs = (x.arrays[f"{tower}_embeds"] for x in (ours, golden))
        assert np.abs(mine - theirs).max() < 2e-5
        assert (mine * theirs).sum(axis=-1).min() > 0.999999
        names = f"{tower}_features"
        assert relative_error(ours.arrays[names], golden.arrays[names]) < 2e-5


def assert_gradients(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float
) -> None:
    """Every gradient within `tolerance` of its largest value; what is exactly 0 (a constant that a
    normalisation takes away again) small against all others."""
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    assert len(theirs) > 20
    for name, gradient in theirs.items():
        allowed = tolerance * np.abs(gradient).max() + 1e-6 * largest
        assert np.abs(ours[name] - gradient).max() < allowed, name


def assert_round_trip(golden: Golden) -> None:
    """Reading and writing give every tensor back, bit for bit."""
    back = golden.write(golden.read(golden.state))
    assert back.keys() == golden.state.keys()
    for name, value in golden.state.items():
        assert back[name].dtype == np.float32
        assert back[name].flags.c_contiguous
        assert np.array_equal(back[name], value), name


def assert_train_mode(ours: Ours, golden: Golden, tolerance: float) -> None:
    """Statistics of the batch in the forward pass and its gradient, and the running ones after."""
    theirs = golden.under("train/")
    assert relative_error(ours.arrays["image_features"], theirs["image_features"]) < tolerance
    assert relative_error(ours.arrays["softmax_loss"], theirs["softmax_loss"]) < tolerance
    assert_gradients(ours.gradients, golden.under("train/gradient/"), 5 * tolerance)
    params = update_running_statistics(golden.read(golden.state), ours.statistics)
    state, expected = golden.write(params), golden.under("train/state/")
    assert len(expected) == sum("running_" in name for name in golden.state) > 3
    for name, value in expected.items():
        assert relative_error(state[name], value) < tolerance, name
