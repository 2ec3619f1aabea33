"""Learning of adapters: several runs at once, interruptions, what is trained and what is not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_clip import random_params, tiny_architecture

from clip_jax.adapt import learning
from clip_jax.adapt.learning import Run, batch_rows, learn
from clip_jax.adapt.step import Frozen, Problem, learning_rate, make_step, start_state
from clip_jax.adaptation.additions import Selected
from clip_jax.adaptation.context import ClassPrompts
from clip_jax.adaptation.derived import bases
from clip_jax.adaptation.methods import METHODS, Method, Recipe
from clip_jax.adaptation.tree import Adapter, flat
from clip_jax.errors import UserError
from clip_jax.models.two_tower import count_trainable

COUNT, CLASSES, STEPS = 12, 3, 7
ON_BOTH = ("lora", "dora", "bottleneck", "bitfit", "layer_norm", "full", "prefix")


def problem(name: str) -> Problem:
    config = tiny_architecture()
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, config.vocab_size - 1, (CLASSES, config.context_length))
    tokens[:, -1] = config.vocab_size - 1
    prompts = ClassPrompts(config, tokens.astype(np.int32), np.arange(config.vocab_size))
    classifier = rng.normal(size=(config.embed_dim, CLASSES)).astype(np.float32)
    classifier /= np.linalg.norm(classifier, axis=0)
    both = name in ON_BOTH
    method = METHODS[name]
    if name == "vpt_deep":
        method = METHODS["vpt"]
    params = random_params(config)
    params["logit_scale"] = np.float32(2.0)
    frozen = Frozen(params, bases(params, method.init(config, params, jax.random.key(0))))
    columns = jax.numpy.asarray(classifier)
    return Problem(config, frozen, method, prompts if both else None, columns, learns_images=True)


def images(records: np.ndarray, seed: int, step: int) -> np.ndarray:
    rng = np.random.default_rng((seed, step))
    noise = rng.integers(0, 100, (len(records), 32, 32, 3))
    return (noise + 50 * (records % CLASSES)[:, None, None, None]).astype(np.uint8)


def runs(seeds: tuple[int, ...], rate: float = 1e-3) -> list[Run]:
    found = []
    for seed in seeds:
        records = np.random.default_rng(seed).permutation(30)[:COUNT]
        found.append(Run(records, records % CLASSES, seed, rate * (1 + seed)))
    return found


def trained(
    of: Problem,
    which: list[Run],
    workdir: Path | None = None,
    inputs: Callable[..., np.ndarray] = images,
) -> list[Adapter]:
    def start(seed: int) -> Adapter:
        return of.method.init(of.config, of.frozen.params, jax.random.key(seed))

    return learn(of, which, inputs, STEPS, start, workdir, "these", lambda _: None)


def worst(one: Adapter, other: Adapter) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[path] - other[path]).max()) for path in one)


@pytest.mark.parametrize("name", ["lora", "bottleneck", "vpt"])
def test_runs_together_are_runs_in_turn(name: str) -> None:
    of = problem(name)
    together = trained(of, runs((0, 1, 2)))
    for number in range(3):
        (alone,) = trained(of, [runs((0, 1, 2))[number]])
        assert worst(together[number], alone) < 1e-5
    assert worst(together[0], together[1]) > 1e-4  # they do differ


@pytest.mark.parametrize("name", ["lora", "bottleneck", "bitfit", "full", "prefix", "vpt"])
def test_only_the_adapter_learns(name: str) -> None:
    of = problem(name)
    before = {path: np.array(leaf) for path, leaf in flat(of.frozen.params).items()}
    (found,) = trained(of, runs((0,)))
    start = of.method.init(of.config, of.frozen.params, jax.random.key(0))
    changed = [path for path in found if np.abs(found[path] - start[path]).max() > 0]
    # A bias of keys alone changes no attention; of these, query and value share an array with it.
    assert set(changed) == set(found)
    assert all((before[path] == leaf).all() for path, leaf in flat(of.frozen.params).items())
    state = start_state(of, jax.tree.map(lambda x: x[None], start), np.array([0]))
    of_adapter = sum(np.asarray(leaf).nbytes for leaf in start.values())
    copies = {"adamw": 2, "sgd": 1}[of.method.recipe.optimizer]
    of_optimizer = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    assert copies * of_adapter <= of_optimizer <= copies * of_adapter + 16


@pytest.mark.parametrize("name", ["lora", "layer_norm", "vpt", "bottleneck"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "SAVED_EVERY", 2)
    of = problem(name)
    if name == "vpt":  # and PromptSRC's mean over the steps
        recipe = dataclasses.replace(of.method.recipe, averaged=(0.75, 0.2))
        of = dataclasses.replace(of, method=dataclasses.replace(of.method, recipe=recipe))
    whole = trained(of, runs((0, 1)))

    def broken(records: np.ndarray, seed: int, step: int) -> np.ndarray:
        if step == 5:
            raise KeyboardInterrupt
        return images(records, seed, step)

    with pytest.raises(KeyboardInterrupt):
        trained(of, runs((0, 1)), tmp_path, broken)
    steps: list[int] = []

    def counted(records: np.ndarray, seed: int, step: int) -> np.ndarray:
        steps.append(step)
        return images(records, seed, step)

    again = trained(of, runs((0, 1)), tmp_path, counted)
    assert min(steps) == 4
    for one, other in zip(whole, again, strict=True):
        assert worst(one, other) == 0
    with pytest.raises(UserError, match="checkpoints of another model, method"):
        trained(of, runs((0, 1), rate=2e-3), tmp_path)
    relabelled = [run._replace(labels=run.labels[::-1]) for run in runs((0, 1))]
    with pytest.raises(UserError, match="checkpoints of another model, method"):
        trained(of, relabelled, tmp_path)


def test_dropout_acts_in_training_alone() -> None:
    of = problem("lora")
    still = dataclasses.replace(of.method.parts[0], dropout=0.0)
    without = dataclasses.replace(of, method=dataclasses.replace(of.method, parts=(still,)))
    assert worst(trained(of, runs((0,)))[0], trained(without, runs((0,)))[0]) > 1e-5
    given = jax.numpy.asarray(images(np.arange(4), 0, 0))
    adapter = of.method.init(of.config, of.frozen.params, jax.random.key(0))
    one, other = (p.logits(adapter, of.frozen, given) for p in (of, without))
    assert (one == other).all()


def test_a_warm_up_is_a_tenth_of_the_steps_at_most() -> None:
    recipe = dataclasses.replace(METHODS["vpt"].recipe, warmup_steps=10)
    few, many = (
        [float(learning_rate(recipe, jax.numpy.asarray(step), steps, 1.0)) for step in range(steps)]
        for steps in (5, 200)
    )
    assert few[0] == 1
    assert many[:10] == pytest.approx([1e-5] * 10)
    assert many[10] == 1
    assert many == sorted(many[:10]) + sorted(many[10:], reverse=True)
    assert 0 < many[-1] < 1e-3


def test_layer_wise_decay_is_of_the_rate_from_the_last_block() -> None:
    """Against the same step without it, by the paths' distances from the top."""
    changes = []
    for decay in (1.0, 0.5):
        recipe = Recipe("sgd", weight_decay=0.0, layer_decay=decay)
        of = dataclasses.replace(problem("full"), learns_images=False)
        method = Method("none", (Selected(("text/.*",)),), recipe)
        of = dataclasses.replace(of, method=method)
        start = of.method.init(of.config, of.frozen.params, jax.random.key(0))
        before = {path: np.array(leaf) for path, leaf in start.items()}
        features = np.random.default_rng(0).normal(size=(1, 4, of.config.embed_dim))
        batch = {"inputs": features.astype(np.float32), "labels": np.array([[0, 1, 2, 0]])}
        state = start_state(of, jax.tree.map(lambda x: x[None], start), np.array([0]))
        state, _ = make_step(of, 3)(state, of.frozen, batch, jax.numpy.ones(1))
        changes.append({p: np.asarray(leaf)[0] - before[p] for p, leaf in state.params.items()})
    plain, decayed = changes
    places = {"token_embedding": 3, "positions": 3, "blocks_0": 2, "blocks_1": 1}
    for path, change in plain.items():
        factor = 0.5 ** next((n for place, n in places.items() if place in path), 0)
        assert np.abs(decayed[path] - factor * change).max() < 1e-6
    assert max(np.abs(change).max() for change in plain.values()) > 0.01


def test_each_epoch_is_a_permutation() -> None:
    rows = np.concatenate([batch_rows(12, 4, 5, step) for step in range(6)])
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert (rows[:12] != rows[12:]).any()


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    of = problem("lora")
    which = [run._replace(learning_rate=float(10.0**30)) for run in runs((0,))]
    with pytest.raises(UserError, match="not finite; accepted is a smaller --learning_rate"):
        trained(of, which)


def test_running_statistics_are_not_trained() -> None:
    """They are no parameters: a variance that a gradient moves may end below 0."""
    config = tiny_architecture(vision__kind="resnet")
    params = random_params(config)
    adapter = METHODS["full"].init(config, params, jax.random.key(0))
    left = {path for path in flat(params) if path.startswith(("vision/", "text/"))} - set(adapter)
    assert left
    assert all(path.endswith(("/mean", "/var")) for path in left)
    assert sum(np.size(leaf) for leaf in adapter.values()) == count_trainable(params) - 1
