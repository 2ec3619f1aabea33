"""Fitting feature methods: against PyTorch's optimizers, choice, padding, and many runs at once."""

from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.adaptation import feature_training
from clip_jax.adaptation.feature_methods import FEATURE_METHODS, FeatureMethod, Recipe
from clip_jax.adaptation.feature_training import class_logits, fit, fit_all
from clip_jax.adaptation.shots import Shots

C, D = 10, 64
NAMES = list(FEATURE_METHODS)
TRAINED = [name for name, method in FEATURE_METHODS.items() if method.recipe]
KEY = jax.random.key(0)
INIT_KEY = jax.random.split(KEY)[0]


def unit_rows(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class World:
    """Clusters as CLIP's features lie: narrow, images and texts apart, texts only roughly right."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.classes = unit_rows(self.rng.normal(size=(C, D)))
        self.image, text = unit_rows(self.rng.normal(size=(2, D)))
        aims = unit_rows(self.classes + 2 * unit_rows(self.rng.normal(size=(C, D))))
        self.classifier = jnp.asarray(unit_rows(text + 0.45 * aims).T, jnp.float32)

    def draw(self, per_class, size=None):
        """Shots of all classes, with rows of weight 0 up to `size`."""
        labels = np.tile(np.arange(C), per_class)
        noise = self.rng.normal(size=(len(labels), D)) / D**0.5
        features = unit_rows(self.image + 0.45 * self.classes[labels] + noise)
        return padded(features, labels, size or len(labels))


def padded(features, labels, size):
    filling = size - len(labels)
    return Shots(
        jnp.asarray(np.pad(features, ((0, filling), (0, 0))), jnp.float32),
        jnp.asarray(np.pad(labels, (0, filling)), jnp.int32),
        jnp.asarray(np.pad(np.ones(len(labels)), (0, filling)), jnp.float32),
    )


def stacked(shots):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *shots)


def accuracy(logits, shots):
    return float((np.asarray(logits).argmax(1) == shots.labels_N).mean())


def assert_close(found, expected, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(float(jnp.abs(other).max()), 1.0)
        np.testing.assert_allclose(one / scale, other / scale, atol=tolerance, rtol=0)


# --- Training against PyTorch --------------------------------------------------------------------


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Many threads wait for each other longer than these sums take.
    yield torch
    torch.set_num_threads(threads)


def best_of(torch, steps, validation, logits):
    """Runs the steps; the parameters after the one with most hits, then least cross-entropy."""
    features, labels = (torch.tensor(np.asarray(x)) for x in validation[:2])
    best = None
    for parameters in steps:
        with torch.no_grad():
            out = logits(features)
            loss = torch.nn.functional.cross_entropy(out, labels.long())
        judged = (-int((out.argmax(1) == labels).sum()), float(loss))
        if best is None or judged < best[0]:
            best = judged, [p.detach().numpy().copy() for p in parameters]
    return best[1]


def test_each_epoch_draws_one_view_of_each_shot():
    """Views that are the shots change nothing; of two kinds, both are drawn, by row."""
    world, method = World(1), replace(FEATURE_METHODS["clip_adapter"], grid={})
    recipe = Recipe(("down_DH",), lambda *_: optax.sgd(1.0), epochs=1, batch_size=None)
    kernel = jnp.zeros((D, 1))
    method = replace(
        method,
        init=lambda *_: {"down_DH": kernel},
        logits=lambda params, x_BD, *_: (x_BD @ params["down_DH"]) * jnp.eye(C)[0],
        recipe=recipe,
    )
    shots, validation = world.draw(2), world.draw(2)
    arguments = method, shots, validation, world.classifier, KEY, 1.0
    same = jnp.stack([shots.features_ND] * 3)
    assert_close(fit(*arguments, same).params, fit(*arguments).params, 1e-7)
    # The gradient is Σ (p - y)·x / N: which view a row had can be read from it.
    signs = jnp.array([1.0, -1.0])
    found = fit(*arguments, jnp.stack([sign * shots.features_ND for sign in signs]))
    pull_N = np.where(np.asarray(shots.labels_N) == 0, 1.0, 0.0) - 1 / C
    drawn, *_ = np.linalg.lstsq(
        (np.asarray(shots.features_ND) * pull_N[:, None]).T / len(pull_N),
        np.asarray(found.params["down_DH"])[:, 0],
    )
    assert np.abs(np.abs(drawn) - 1).max() < 1e-2
    assert 0 < (drawn > 0).sum() < len(drawn)


def test_tip_adapter_f_learns_as_in_pytorch(torch):
    world = World(0)
    shots, validation = world.draw(4), world.draw(4)
    classifier = torch.tensor(np.asarray(world.classifier))
    features = torch.tensor(np.asarray(shots.features_ND))
    labels = torch.tensor(np.asarray(shots.labels_N)).long()
    keys = torch.nn.Parameter(features.clone())
    optimizer = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)

    def logits(x):
        cache = torch.exp(-(1 - x @ keys.T)) @ torch.nn.functional.one_hot(labels, C).float()
        return 100 * x @ classifier + 1.17 * cache

    def steps():
        for _ in range(20):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits(features), labels).backward()
            optimizer.step()
            schedule.step()
            yield [keys]

    (expected,) = best_of(torch, steps(), validation, logits)
    found = fit(FEATURE_METHODS["tip_adapter_f"], shots, validation, world.classifier, KEY)
    assert np.abs(expected - np.asarray(shots.features_ND)).max() > 1e-3
    np.testing.assert_allclose(found.params["keys_ND"], expected, atol=2e-5)


def test_lp_plus_plus_learns_as_in_pytorch(torch):
    world = World(1)
    shots, validation = world.draw(4), world.draw(4)
    method = FEATURE_METHODS["lp_plus_plus"]
    start = method.init(shots, world.classifier, INIT_KEY, {})
    classifier = torch.tensor(np.asarray(world.classifier))
    features = torch.tensor(np.asarray(shots.features_ND))
    labels = torch.tensor(np.asarray(shots.labels_N)).long()
    names = ("weights_DC", "bias_C", "alpha_C")
    weights, bias, alpha = (torch.nn.Parameter(torch.tensor(np.asarray(start[n]))) for n in names)
    largest = np.linalg.eigvalsh(features.T @ features)[-1]
    optimizer = torch.optim.SGD([weights, bias], 4 * len(features) / largest, momentum=0.9)
    alpha_rate = len(features) / (4 * float(((features @ classifier) ** 2).sum(0).max()))

    def logits(x):
        return x @ weights + bias + alpha * (x @ classifier)

    def steps():
        for number in range(1, 301):
            optimizer.zero_grad()
            alpha.grad = None
            torch.nn.functional.cross_entropy(logits(features), labels).backward()
            optimizer.step()
            if number % 10 == 0:
                alpha.data -= alpha_rate * alpha.grad
            yield weights, bias, alpha

    expected = best_of(torch, steps(), validation, logits)
    found = fit(method, shots, validation, world.classifier, KEY)
    assert np.abs(expected[2] - np.asarray(start["alpha_C"])).max() > 1e-3
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(found.params[name], value, rtol=2e-4, atol=2e-4)


def test_each_row_is_in_one_batch_of_an_epoch():
    """A method of one's own: row i moves weight i alone, by its slope / (rows of its batch)."""
    rows = 10

    def logits(params, features, classifier, options):
        score = features @ params["w_N"]
        return jnp.stack([score, jnp.zeros_like(score)], 1)

    shots = padded(np.eye(rows), np.zeros(rows, int), rows)

    def weights(epochs, seed):
        recipe = Recipe(("w_N",), lambda *_: optax.sgd(1.0), epochs, batch_size=4)
        method = FeatureMethod("", lambda *_: {"w_N": jnp.zeros(rows)}, logits, recipe)
        fitted = fit(method, shots, shots, jnp.eye(rows, 2), jax.random.key(seed))
        return np.asarray(fitted.params["w_N"])

    last_batches = set()
    for seed in (0, 1):
        first, second = weights(1, seed), weights(2, seed)
        np.testing.assert_allclose(np.sort(first), [0.125] * 8 + [0.25] * 2)
        batch_sizes = (1 / (1 + np.exp(first))) / (second - first)
        np.testing.assert_allclose(np.sort(batch_sizes), [2] * 2 + [4] * 8, rtol=1e-5)
        last_batches |= {tuple(np.argsort(first)[-2:]), tuple(np.argsort(batch_sizes)[:2])}
    # Neither seeds nor epochs share an order.
    assert len({tuple(sorted(batch)) for batch in last_batches}) == 4


# --- The choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tip_adapter", "proker", "gda"])
def test_the_point_of_most_hits_is_chosen(name):
    world = World(2)
    shots, validation = world.draw(4), world.draw(4)
    method = FEATURE_METHODS[name]
    judged = {}
    for values in product(*method.grid.values()):
        options = {**dict(zip(method.grid, values, strict=True)), "scale": 100.0}
        params = method.init(shots, world.classifier, KEY, options)
        out = method.logits(params, validation.features_ND, world.classifier, options)
        losses = optax.softmax_cross_entropy_with_integer_labels(out, validation.labels_N)
        hits = int((np.asarray(out).argmax(1) == validation.labels_N).sum())
        judged[values] = (hits, -round(float(losses.mean()), 4))
    found = fit(method, shots, validation, world.classifier, KEY)
    chosen = tuple(round(float(found.options[key]), 6) for key in method.grid)
    assert judged[chosen] == max(judged.values())
    assert len(set(judged.values())) > 2
    assert found.hits == judged[chosen][0]


@pytest.mark.parametrize("name", NAMES)
def test_hits_and_loss_are_those_of_what_is_returned(name):
    world = World(10)
    shots, validation = world.draw(4), world.draw(4)
    method = FEATURE_METHODS[name]
    fitted = fit(method, shots, validation, world.classifier, KEY)
    logits = class_logits(method, fitted, validation.features_ND, world.classifier)
    assert fitted.hits == (np.asarray(logits).argmax(1) == validation.labels_N).sum()
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, validation.labels_N)
    np.testing.assert_allclose(fitted.loss, losses.mean(), rtol=1e-4, atol=1e-5)


def test_validation_shots_decide():
    """If they are labelled as zero-shot says, what stays closest to it wins."""
    world = World(3)
    shots, validation = world.draw(4), world.draw(4)
    guesses = (validation.features_ND @ world.classifier).argmax(1).astype(jnp.int32)
    method = FEATURE_METHODS["gda"]
    by_truth = fit(method, shots, validation, world.classifier, KEY)
    by_guess = fit(method, shots, validation._replace(labels_N=guesses), world.classifier, KEY)
    assert by_guess.options["alpha"] <= 0.01 < by_truth.options["alpha"]


def test_untrained_tip_adapter_f_is_tip_adapter():
    world = World(4)
    shots, validation = world.draw(2), world.draw(2)
    learning = FEATURE_METHODS["tip_adapter_f"]
    still = replace(learning, recipe=replace(learning.recipe, optimizer=lambda *_: optax.sgd(0.0)))
    found = fit(still, shots, validation, world.classifier, KEY)
    expected = fit(FEATURE_METHODS["tip_adapter"], shots, validation, world.classifier, KEY)
    assert_close(found, expected, 1e-6)
    learned = fit(learning, shots, validation, world.classifier, KEY)
    assert jnp.abs(learned.params["keys_ND"] - found.params["keys_ND"]).max() > 1e-4


def test_the_models_own_scale_is_used():
    world = World(8)
    shots, validation = world.draw(2), world.draw(2)
    method = FEATURE_METHODS["tip_adapter_f"]
    at_20, at_100 = (
        fit(method, shots, validation, world.classifier, KEY, scale) for scale in (20.0, 100.0)
    )
    assert jnp.abs(at_20.params["keys_ND"] - at_100.params["keys_ND"]).max() > 1e-5
    method = FEATURE_METHODS["zero_shot"]
    fitted = fit(method, shots, validation, world.classifier, KEY, 20.0)
    found = class_logits(method, fitted, validation.features_ND, world.classifier)
    expected = 20 * np.asarray(validation.features_ND) @ np.asarray(world.classifier)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["tip_adapter", "proker", "clip_adapter"])
def test_a_grid_in_blocks_is_the_same(name, monkeypatch):
    world = World(9)
    shots, validation = world.draw(1), world.draw(1)
    expected = fit(FEATURE_METHODS[name], shots, validation, world.classifier, KEY)
    monkeypatch.setattr(feature_training, "_NUMBERS_AT_ONCE", 3 * 10 * 10)
    again = replace(FEATURE_METHODS[name])  # not equal: it is compiled anew
    assert_close(fit(again, shots, validation, world.classifier, KEY), expected)


@pytest.mark.parametrize("name", TRAINED)
def test_only_what_the_recipe_names_is_trained(name):
    world = World(5)
    shots, validation = world.draw(2), world.draw(2)
    method = FEATURE_METHODS[name]
    start = method.init(shots, world.classifier, INIT_KEY, {})
    found = fit(method, shots, validation, world.classifier, KEY).params
    same = {key for key in start if (start[key] == found[key]).all()}
    assert same == set(start) - set(method.recipe.trained)


# --- Padding, and many runs ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_weight_0_change_nothing(name):
    world = World(6)
    shots, validation, test = world.draw(4), world.draw(4), world.draw(20)
    rng = np.random.default_rng(0)

    def more(shots, size):
        """With arbitrary rows of weight 0, whose labels are wrong too."""
        filled = padded(shots.features_ND, shots.labels_N, size)
        features = jnp.asarray(unit_rows(rng.normal(size=(size, D))), jnp.float32)
        labels = jnp.asarray(rng.integers(0, C, size), jnp.int32)
        real = filled.weights_N > 0
        return Shots(
            jnp.where(real[:, None], filled.features_ND, features),
            jnp.where(real, filled.labels_N, labels),
            filled.weights_N,
        )

    method = FEATURE_METHODS[name]
    plain = fit(method, shots, validation, world.classifier, KEY)
    filled = fit(method, more(shots, 100), more(validation, 70), world.classifier, KEY)
    assert_close(filled[1:], plain[1:])
    found, expected = (
        class_logits(method, fitted, test.features_ND, world.classifier)
        for fitted in (filled, plain)
    )
    assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_runs_together_are_runs_in_turn(name):
    world = World(7)
    shots = [world.draw(per_class, size=40) for per_class in (1, 2, 4)]
    validation = [world.draw(per_class, size=40) for per_class in (1, 2, 4)]
    keys = jax.random.split(KEY, 3)
    method = FEATURE_METHODS[name]
    together = fit_all(method, stacked(shots), stacked(validation), world.classifier, keys)
    queries = world.draw(5).features_ND
    of_all = jax.vmap(partial(class_logits, method), (0, None, None))
    logits = of_all(together, queries, world.classifier)
    for run, arguments in enumerate(zip(shots, validation, strict=True)):
        alone = fit(method, *arguments, world.classifier, keys[run])
        assert_close(jax.tree.map(lambda leaf, run=run: leaf[run], together), alone)
        assert_close(logits[run], class_logits(method, alone, queries, world.classifier))


@pytest.mark.parametrize("name", NAMES[1:])
def test_four_shots_beat_zero_shot(name):
    worlds = [World(seed) for seed in range(3)]
    gains = []
    for world in worlds:
        shots, validation, test = world.draw(4), world.draw(4), world.draw(50)
        fitted = [
            (method, fit(method, shots, validation, world.classifier, KEY))
            for method in (FEATURE_METHODS[name], FEATURE_METHODS["zero_shot"])
        ]
        adapted, zero_shot = (
            accuracy(class_logits(method, f, test.features_ND, world.classifier), test)
            for method, f in fitted
        )
        assert 0.2 < zero_shot < 0.8
        gains.append(adapted - zero_shot)
    assert min(gains) > 0.03, gains
