"""Losses of methods against float64 restatements of their papers, and their numbers of values."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import textbook_towers
from letters import END, Letters
from tiny_clip import random_params, tiny_architecture

import clip_jax
from clip_jax.adapt.step import Frozen, Problem, make_step, start_state
from clip_jax.adaptation.context import class_prompts
from clip_jax.adaptation.derived import bases, derived
from clip_jax.adaptation.folder import Adaptation
from clip_jax.adaptation.low_rank import merged
from clip_jax.adaptation.methods import METHODS, Recipe
from clip_jax.adaptation.pull import Pull, Seen
from clip_jax.adaptation.tree import Adapter, flat
from clip_jax.adapted import AdaptedClip
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.two_tower import init_params, normalize_images

NAMES, LABELS = ("cat", "big dog", "x"), np.array([2, 0, 1, 2])
KEY = jax.random.key(0)
STEPS = 5
Flat = dict[str, np.ndarray]


@functools.cache
def model() -> tuple[Any, Any]:
    config = tiny_architecture(context_length=24, text__pool="argmax", text__eos_id=END)
    params = random_params(config)
    params["logit_scale"] = np.float32(2.0)
    return config, params


def problem(name: str) -> Problem:
    (config, params), method = model(), METHODS[name]
    classifier = np.random.default_rng(0).normal(size=(config.embed_dim, len(NAMES)))
    classifier = (classifier / np.linalg.norm(classifier, axis=0)).astype(np.float32)
    prompts = class_prompts(config, Letters(), NAMES, method.context.words if method.context else 4)
    if method.context is None:  # "cat" and the others, without learned words
        tokens = Letters()([f"{name}." for name in NAMES])
        prompts = prompts._replace(config=config, tokens_KL=tokens)
    shapes = jax.eval_shape(lambda: method.init(config, params, KEY))
    frozen = Frozen(params, bases(params, shapes))
    learns_images = any(path.startswith("vision") for path in shapes)
    return Problem(config, frozen, method, prompts, jnp.asarray(classifier), learns_images)


def adapter_of(of: Problem, seed: int = 1) -> Adapter:
    """Random values in every leaf, near those that it has."""
    rng, start = np.random.default_rng(seed), of.method.init(of.config, of.frozen.params, KEY)
    return {p: jnp.asarray(x + rng.normal(0, 0.2, x.shape), jnp.float32) for p, x in start.items()}


def inputs_of(of: Problem) -> np.ndarray:
    rng = np.random.default_rng(2)
    if of.learns_images:
        return rng.integers(0, 256, (len(LABELS), 32, 32, 3)).astype(np.uint8)
    features = rng.normal(size=(len(LABELS), of.config.embed_dim))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max(1, keepdims=True)) / np.exp(x - x.max(1, keepdims=True)).sum(1)[:, None]


def features_of(config: Any, images: np.ndarray, exact: Flat, added: Flat) -> np.ndarray:
    given = np.asarray(normalize_images(jnp.asarray(images), config), np.float64)
    return np.stack([unit(textbook_towers.encode_image(x, exact, added, config)) for x in given])


def classifier_of(config: Any, exact: Flat, added: Flat, words: np.ndarray | None) -> np.ndarray:
    """(D, K): [SOS] words NAME . [EOS] through the text tower."""
    columns = []
    table = exact["text/token_embedding"]
    for row in Letters()([f"{name}." for name in NAMES]):
        x, end = table[row], int(np.argmax(row))
        if words is not None:
            x = np.concatenate([x[:1], words, x[1 : len(x) - len(words)]])
            end += len(words)
        x = x + exact["text/positions"]
        x = textbook_towers.blocks(x, exact, added, "text", config.text, 1.0)
        pooled = textbook_towers.norm(x[end], exact, "text/final_norm")
        columns.append(unit(pooled @ exact["text/projection"]))
    return np.stack(columns, 1)


def with_singular(exact: Flat, added: Flat) -> Flat:
    """CLIP-SVD: every matrix U·diag(s)·Vᵀ becomes U·diag(s + change)·Vᵀ."""
    found = dict(exact)
    for path, change in added.items():
        site = path.removesuffix("_singular")
        owner, name = site.rsplit("/", 1)
        if name in ("query", "key", "value"):
            part = ("query", "key", "value").index(name)
            kernel = found[f"{owner}/query_key_value"].copy()
            weight = exact[f"{owner}/query_key_value"][:, part]
            kernel[:, part] = changed(weight.reshape(len(weight), -1), change).reshape(weight.shape)
            found[f"{owner}/query_key_value"] = kernel
        else:
            weight = exact[site]
            matrix = weight.reshape(-1, weight.shape[-1])
            found[site] = changed(matrix, change).reshape(weight.shape)
    return found


def changed(matrix: np.ndarray, change: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ np.diag(values + change) @ right


def paper(name: str, of: Problem, added: Flat, inputs: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss and logits (B, K) of the paper, in float64."""
    config = of.config
    exact = {path: np.asarray(leaf, np.float64) for path, leaf in flat(of.frozen.params).items()}
    base, scale = np.asarray(of.classifier_DK, np.float64), np.exp(2.0)
    tower, words = exact, added.get("text/context")
    if name == "clip_svd":
        tower, added = with_singular(exact, added), {}
    if name == "maple":  # the image tower's tokens are maps of the text tower's
        first = "transformer/blocks_1"
        added = added | {
            "vision/prompts": words @ added["vision/coupling"] + added["vision/coupling_bias"],
            f"vision/{first}/prompts": added[f"text/{first}/prompts"]
            @ added[f"vision/{first}/coupling"]
            + added[f"vision/{first}/coupling_bias"],
        }
    images = features_of(config, inputs, tower, added) if of.learns_images else inputs
    if name == "cocoop":
        net = {end: added[f"text/context_net/{end}"] for end in ("down", "up")}
        bias = {end: added[f"text/context_net/{end}_bias"] for end in ("down", "up")}
        shifts = np.maximum(images @ net["down"] + bias["down"], 0) @ net["up"] + bias["up"]
        each = [classifier_of(config, tower, {}, words + shift) for shift in shifts]
        logits = scale * np.stack([f @ own for f, own in zip(images, each, strict=True)])
    else:
        classifier = classifier_of(config, tower, added, words)
        logits = scale * images @ classifier
    loss = -np.log(softmax(logits)[np.arange(len(LABELS)), LABELS]).mean()
    if name == "kgcoop":
        loss += 8 * np.mean([np.sum((classifier - base)[:, k] ** 2) for k in range(len(NAMES))])
    if name == "promptsrc":
        plain = features_of(config, inputs, exact, {})
        p, q = softmax(scale * plain @ base), softmax(logits)
        loss += 25 * np.abs(classifier - base).mean() + 10 * np.abs(images - plain).mean()
        loss += (p * (np.log(p) - np.log(q))).sum() / p.size
    return float(loss), logits


@pytest.mark.parametrize("name", ["cocoop", "kgcoop", "maple", "promptsrc", "clip_svd"])
def test_a_step_is_that_of_the_paper_and_leaves_the_rest_alone(name: str) -> None:
    """Compares two runs at once; the gradient by differences of the restatement."""
    of = problem(name)
    recipe = Recipe("sgd", weight_decay=0.0, averaged=of.method.recipe.averaged)
    of = dataclasses.replace(of, method=dataclasses.replace(of.method, recipe=recipe))
    start, inputs, rate = adapter_of(of), inputs_of(of), 0.1
    exact, others = (
        {path: np.asarray(leaf, np.float64) for path, leaf in adapter.items()}
        for adapter in (start, adapter_of(of, 2))
    )
    before = {path: np.array(leaf) for path, leaf in flat(of.frozen.params).items()}
    batch = {"inputs": np.stack([inputs] * 2), "labels": np.stack([LABELS] * 2)}
    both = {path: jnp.asarray([leaf, others[path]], jnp.float32) for path, leaf in exact.items()}
    state = start_state(of, both, np.array([0, 1]))
    of_optimizer = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    assert of_optimizer == 2 * sum(leaf.nbytes for leaf in start.values())
    step, adapters = make_step(of, STEPS), []
    for number in range(STEPS):
        state, losses = step(state, of.frozen, batch, jnp.array([rate] * 2))
        adapters.append({path: np.asarray(leaf)[0] for path, leaf in state.params.items()})
        if number == 0:
            expected = [paper(name, of, adapter, inputs)[0] for adapter in (exact, others)]
            # Singular vectors in float32 are exact to a few 1e-6.
            tolerance = 1e-5 if name == "clip_svd" else 1e-6
            assert losses.tolist() == pytest.approx(expected, rel=tolerance)
    assert all((before[path] == leaf).all() for path, leaf in flat(of.frozen.params).items())

    gradients = {path: (exact[path] - adapters[0][path]) / rate for path in exact}
    assert not [path for path, gradient in gradients.items() if not np.abs(gradient).max()]
    rng, size = np.random.default_rng(3), 1e-5
    direction = {path: rng.normal(size=leaf.shape) for path, leaf in exact.items()}
    ahead, behind = (
        paper(name, of, {p: x + sign * size * direction[p] for p, x in exact.items()}, inputs)[0]
        for sign in (1, -1)
    )
    found = sum((gradients[path] * direction[path]).sum() for path in exact)
    assert found == pytest.approx((ahead - behind) / (2 * size), rel=1e-4)

    if name == "promptsrc":  # the Gaussian mean of what each step left
        distances = (np.arange(1, STEPS + 1) - 0.75 * STEPS) / (0.05 * STEPS)
        weights = np.exp(-(distances**2) / 2)
        for path, leaf in state.eval_params.items():
            mean = sum(w * one[path] for w, one in zip(weights, adapters, strict=True))
            assert np.abs(leaf[0] - mean / weights.sum()).max() < 1e-6


@pytest.mark.parametrize("name", ["cocoop", "maple", "clip_svd"])
def test_a_loaded_model_classifies_as_it_learned(name: str, tmp_path: Path) -> None:
    of = problem(name)
    leaves = {path: np.asarray(leaf) for path, leaf in adapter_of(of).items()}
    clip = Clip(of.config, of.frozen.params, Letters())
    adapted = AdaptedClip(clip, Adaptation(leaves, method=name))
    images = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    added = {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()}
    exact = {path: np.asarray(leaf, np.float64) for path, leaf in flat(clip.params).items()}
    inputs = images if of.learns_images else features_of(of.config, images, exact, {})
    expected = softmax(paper(name, of, added, inputs)[1])
    found = adapted.classify(images, NAMES, ["{}."])
    assert np.abs(found - expected).max() < 5e-6
    if name == "clip_svd":  # other values of the parameters
        AdaptedClip(Clip(of.config, clip.params), adapted.adaptation).save(tmp_path / "merged")
        again = flat(clip_jax.load(tmp_path / "merged").params)
        assert all((again[path] == leaf).all() for path, leaf in flat(adapted.params).items())
    else:
        with pytest.raises(UserError, match=f"save: method '{name}' is not merged"):
            adapted.save(tmp_path / "merged")
    with pytest.raises(UserError, match="has no place for"):
        adapted.save_adapter(tmp_path / "peft", "peft")
    if name == "cocoop":
        with pytest.raises(UserError, match="'cocoop' makes a classifier for each image; classify"):
            adapted.zero_shot_classifier(NAMES)


def test_singular_values_change_nothing_at_first() -> None:
    of = problem("clip_svd")
    start = of.method.init(of.config, of.frozen.params, KEY)
    found = merged(of.frozen.params, derived(start, of.frozen.of_base), 1.0)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), found, of.frozen.params))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cocoop", 4 * 512 + 512 * 32 + 32 + 32 * 512 + 512),
        ("kgcoop", 4 * 512),
        ("maple", 9 * 2 * 512 + 9 * (512 * 768 + 768)),  # 3.55 million, as the paper says
        ("promptsrc", 9 * 4 * 512 + 9 * 4 * 768),
        ("clip_svd", 12 * 6 * 768 + 12 * 6 * 512),
    ],
)
def test_numbers_of_values_of_a_vit_b16(name: str, values: int) -> None:
    config = get_architecture("ViT-B-16")

    def make() -> Adapter:
        return METHODS[name].init(config, init_params(config, KEY), KEY)

    assert sum(leaf.size for leaf in jax.eval_shape(make).values()) == values


def test_epochs_are_steps_of_their_batches() -> None:
    recipe = METHODS["maple"].recipe  # 5 epochs of batches of 4
    assert recipe.steps(shots=3, classes=5) == 15  # without the last rest
    assert METHODS["kgcoop"].recipe.steps(shots=1, classes=3) == 100  # a batch of all
    assert METHODS["coop"].recipe.steps(shots=2, classes=3) == 200
    assert recipe.warmup(100) == 20  # the first epoch


def test_distillation_is_the_divergence_from_the_zero_shot_model() -> None:
    rng = np.random.default_rng(0)
    seen, zero_shot = (Seen(*(jnp.zeros(()),) * 2, rng.normal(size=(5, 7))) for _ in range(2))
    p, q = softmax(np.asarray(zero_shot.logits_BK)), softmax(np.asarray(seen.logits_BK))
    expected = 0.3 * scipy.stats.entropy(p, q, axis=1).mean()
    assert float(Pull(distillation=0.3).cost(seen, zero_shot)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="distillation=-1"):
        Pull(distillation=-1.0)
