"""Many few-shot runs on cached features as one program, against the same runs in turn.

    python benchmarks/adaptation_features.py --runs=16

Runs are seeds: each has its own shots and validation shots, from random clusters. Together they are
one call of `fit_all`. In turn they are (a) one call of `fit` a run, which is a whole program too,
and (b) loops in Python around compiled steps and scores, one point of the grid after the other, as
usual code has it. Compilation is not counted. Prints one JSON object with medians of seconds and of
their ratios, the largest difference between together and (a), and that of the chosen loss between
(a) and (b), which is not small where the order of batches is drawn.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from clip_jax.adaptation.feature_methods import FEATURE_METHODS, FeatureMethod, Options, Params
from clip_jax.adaptation.feature_training import Fitted, fit, fit_all
from clip_jax.adaptation.shots import Shots

LIMITS = {"gain_over_loops": 10.0, "difference": 1e-5}

_RUNS = flags.DEFINE_integer("runs", 16, "Number of runs.", lower_bound=2)
_CLASSES = flags.DEFINE_integer("classes", 10, "Number of classes.", lower_bound=2)
_SHOTS = flags.DEFINE_integer("shots", 4, "Shots of each class.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 64, "Width of a feature.", lower_bound=4)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of the three.", lower_bound=1)


def draw_runs() -> tuple[Shots, Shots, jax.Array, jax.Array]:
    """Returns shots and validation shots of R runs, the classifier (D, C), and keys (R,)."""
    rng = np.random.default_rng(0)

    def unit_rows(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    classes = unit_rows(rng.normal(size=(_CLASSES.value, _WIDTH.value)))
    texts = unit_rows(classes + 2 * unit_rows(rng.normal(size=classes.shape)))
    labels = np.tile(np.arange(_CLASSES.value), _SHOTS.value)

    def draw() -> Shots:
        noise = rng.normal(size=(_RUNS.value, len(labels), _WIDTH.value)) / _WIDTH.value**0.5
        features = unit_rows(classes[labels] + 2 * noise)
        shape = features.shape[:2]
        return Shots(
            jnp.asarray(features, jnp.float32),
            jnp.broadcast_to(jnp.asarray(labels, jnp.int32), shape),
            jnp.ones(shape),
        )

    keys = jax.random.split(jax.random.key(0), _RUNS.value)
    return draw(), draw(), jnp.asarray(texts.T, jnp.float32), keys


def seconds(work: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    begun = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begun


def largest_difference(found: Fitted, expected: Fitted) -> float:
    """Returns the largest difference of any array, in units of its largest number."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), 1)) for a, b in pairs)


def step_by_step(
    method: FeatureMethod, shots: Shots, validation: Shots, classifier: jax.Array, key: jax.Array
) -> Callable[[], float]:
    """Returns one run as Python loops around compiled functions, which returns the chosen loss."""
    recipe, count = method.recipe, len(shots.labels_N)
    rng = np.random.default_rng(0)

    @jax.jit
    def score(params: Params, options: Options, rows: Shots) -> tuple[jax.Array, jax.Array]:
        logits = method.logits(params, rows.features_ND, classifier, options)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows.labels_N)
        return (logits.argmax(1) == rows.labels_N).sum(), losses.mean()

    def judge(params: Params, options: Options) -> tuple[int, float]:
        hits, loss = score(params, options, validation)
        return int(hits), -float(loss)

    init_key = jax.random.split(key)[0]  # as `fit` does
    init = jax.jit(lambda options: method.init(shots, classifier, init_key, options))
    if recipe:
        size = min(recipe.batch_size or count, count)
        num_steps = recipe.epochs * -(-count // size)
        optimizer = recipe.optimizer(shots, classifier, jnp.int32(num_steps))

        @jax.jit
        def step(trained: Params, fixed: Params, state: Any, rows: Any, options: Options) -> Any:
            def loss(trained: Params) -> jax.Array:
                batch = Shots(*(x[rows] for x in shots))
                return score({**fixed, **trained}, options, batch)[1]

            updates, state = optimizer.update(jax.grad(loss)(trained), state, trained)
            return optax.apply_updates(trained, updates), state

    def make(options: Options) -> Params:
        params = init(options)
        if not recipe:
            return params
        trained = {name: params[name] for name in recipe.trained}
        fixed = {name: leaf for name, leaf in params.items() if name not in trained}
        state, best = optimizer.init(trained), ((-1, 0.0), params)
        for _ in range(recipe.epochs):
            order = rng.permutation(count)
            for start in range(0, count, size):
                trained, state = step(trained, fixed, state, order[start : start + size], options)
            judged = judge({**fixed, **trained}, options)
            if judged > best[0]:
                best = judged, {**fixed, **trained}
        return best[1]

    def run() -> float:
        made = None if method.fit_options is None else make({**method.fit_options, "scale": 100.0})
        found = []
        for point in product(*method.grid.values()):
            options = {**dict(zip(method.grid, point, strict=True)), "scale": 100.0}
            found.append(judge(make(options) if made is None else made, options))
        return -max(found)[1]

    return run


def measure(name: str, data: tuple[Shots, Shots, jax.Array, jax.Array]) -> dict[str, float]:
    """Returns the row of one method."""
    method = FEATURE_METHODS[name]
    shots, validation, classifier, keys = data
    runs = [jax.tree.map(lambda x, r=r: x[r], (shots, validation, keys)) for r in range(len(keys))]

    def together() -> Fitted:
        return fit_all(method, shots, validation, classifier, keys)

    def in_turn() -> list[Fitted]:
        return [fit(method, s, v, classifier, key) for s, v, key in runs]

    loops = [step_by_step(method, s, v, classifier, key) for s, v, key in runs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *in_turn())
    difference = largest_difference(together(), stacked)
    loss_difference = float(jnp.abs(jnp.array([loop() for loop in loops]) - stacked.loss).max())
    turns = [
        (seconds(together), seconds(in_turn), seconds(lambda: [loop() for loop in loops]))
        for _ in range(_ROUNDS.value)
    ]
    together_s, in_turn_s, loops_s = (
        statistics.median(column) for column in zip(*turns, strict=True)
    )
    return {
        "together_s": round(together_s, 4),
        "in_turn_s": round(in_turn_s, 4),
        "loops_s": round(loops_s, 4),
        "gain_over_in_turn": round(statistics.median(b / a for a, b, _ in turns), 2),
        "gain_over_loops": round(statistics.median(c / a for a, _, c in turns), 1),
        "difference": difference,
        "loss_difference_of_loops": loss_difference,
    }


def main(argv: list[str]) -> None:
    """Measures, and prints the object."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    data = draw_runs()
    rows = {name: measure(name, data) for name in FEATURE_METHODS if name != "zero_shot"}
    result = {
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "methods": rows,
        "limits": LIMITS,
        "kept": {
            name: row["gain_over_loops"] >= LIMITS["gain_over_loops"]
            and row["difference"] <= LIMITS["difference"]
            for name, row in rows.items()
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
