"""The adversary: its classifier learns, and the towers get the opposite of its gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config

from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower, init_params, normalize_images
from clip_jax.training.config import build_config
from clip_jax.training.step.adversary import (
    ADVERSARY,
    ADVERSARY_LOSS,
    adversary_loss,
    learned,
    start_adversary,
)
from clip_jax.training.step.gradient import Objective, loss_gradient
from clip_jax.training.step.state import create_state
from clip_jax.training.step.update import make_train_step

WEIGHT = 0.3
RNG = np.random.default_rng(0)
GROUPS = np.array([0, 1, 2, 1, 0, 2, 2, 0], np.int32)


def unit_rows(count: int, width: int) -> np.ndarray:
    rows = RNG.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def textbook(params: dict[str, jax.Array], embeds: np.ndarray) -> float:
    """Mean cross-entropy of the MLP, in float64."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    x = embeds.astype(np.float64) * embeds.shape[1] ** 0.5
    logits = np.maximum(x @ p["hidden"] + p["hidden_bias"], 0) @ p["out"] + p["out_bias"]
    logits -= logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(8), GROUPS]).mean())


def test_the_embeddings_get_the_opposite_gradient_and_the_classifier_its_own() -> None:
    embeds, params = unit_rows(8, 6), start_adversary(6, 3, 0).params
    function = partial(adversary_loss, weight=WEIGHT)
    value, (of_params, of_embeds) = jax.value_and_grad(function, argnums=(0, 1))(
        params, jnp.asarray(embeds), GROUPS
    )
    assert value == pytest.approx(textbook(params, embeds), rel=1e-5)
    step = 1e-4
    for row, column in ((0, 0), (3, 5), (7, 2)):
        change = np.zeros((8, 6))
        change[row, column] = step
        slope = (textbook(params, embeds + change) - textbook(params, embeds - change)) / (2 * step)
        assert of_embeds[row, column] == pytest.approx(-WEIGHT * slope, rel=1e-3, abs=1e-6)
    change = np.zeros((6, 3))
    change[4, 1] = step
    ends = [textbook(params | {"out": params["out"] + sign * change}, embeds) for sign in (1, -1)]
    assert of_params["out"][4, 1] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)


def test_the_classifier_learns_groups_that_can_be_told_apart() -> None:
    embeds = unit_rows(3, 6)[GROUPS]
    adversary = start_adversary(6, 3, 0)
    gradient = jax.jit(jax.grad(partial(adversary_loss, weight=WEIGHT)))
    for _ in range(500):
        adversary = learned(adversary, gradient(adversary.params, embeds, GROUPS))
    assert textbook(adversary.params, embeds) < 0.3


@pytest.fixture(scope="module")
def architecture() -> ClipConfig:
    return build_config(tiny_config()).model.architecture()


def test_the_step_adds_it_to_the_loss_in_micro_batches_too(architecture: ClipConfig) -> None:
    batch = {
        "images": RNG.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "tokens": RNG.integers(0, 100, (8, 12)).astype(np.int32),
        "groups": GROUPS,
    }
    params = jax.jit(partial(init_params, architecture))(jax.random.key(0))
    classifier = start_adversary(architecture.embed_dim, 3, 0).params

    def gradient(objective: Objective, params):
        return jax.jit(partial(loss_gradient, objective))(params, batch, jax.random.key(1))[:2]

    both = params | {ADVERSARY: classifier}
    objectives = [Objective(architecture, microbatches=n, adversary=WEIGHT) for n in (1, 2)]
    (losses, grads), (losses_2, grads_2) = (gradient(each, both) for each in objectives)
    plain, plain_grads = gradient(Objective(architecture), params)
    images = normalize_images(batch["images"], architecture)
    embeds = np.asarray(
        TwoTower(architecture).apply({"params": params}, images, batch["tokens"])[0]
    )
    assert losses[ADVERSARY_LOSS] == pytest.approx(textbook(classifier, embeds), rel=1e-4)
    assert losses["loss"] == pytest.approx(float(plain["loss"]), rel=1e-5)
    assert losses_2[ADVERSARY_LOSS] == pytest.approx(float(losses[ADVERSARY_LOSS]), rel=1e-5)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_2), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * (np.abs(one).max() + 1e-6))
    # It says nothing to the text tower, and something to the image tower.
    for tower, same in (("text", True), ("vision", False)):
        pairs = zip(*(jax.tree.leaves(g[tower]) for g in (grads, plain_grads)), strict=True)
        equal = all(np.allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max()) for a, b in pairs)
        assert equal is same


def test_a_step_moves_the_classifier_and_reports_its_loss(architecture: ClipConfig) -> None:
    batch = {
        "images": RNG.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "tokens": RNG.integers(0, 100, (8, 12)).astype(np.int32),
        "groups": GROUPS,
    }
    optimizer = optax.sgd(0.0)
    step = make_train_step(Objective(architecture, adversary=WEIGHT), optimizer, lambda _: 0.0)
    state = jax.jit(lambda: create_state(architecture, optimizer, 0, ema=False))()
    state = state.replace(adversary=start_adversary(architecture.embed_dim, 3, 0))
    new, metrics = jax.jit(step)(state, batch)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.adversary, new.adversary)
    # Adam's first step is the rate, wherever there is a gradient.
    assert moved.params["out"] == pytest.approx(1e-3, rel=1e-2)
    _, later = jax.jit(step)(new, batch)
    assert later[ADVERSARY_LOSS] < metrics[ADVERSARY_LOSS]
