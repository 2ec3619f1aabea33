"""Many few-shot runs on cached features as one program, against the same runs in turn.

    python benchmarks/adaptation_features.py --runs=16

Runs are seeds: each draws its own shots and validation shots from random clusters. "In turn" is
twice: the compiled program of one run, called once a run; and a loop over the steps as usual code
has it, with a compiled step, each point of the grid for itself. Compilation is not counted. Prints
one JSON object with medians of seconds, their ratios, and the largest difference of the results.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from clip_jax.adaptation.feature_methods import FEATURE_METHODS
from clip_jax.adaptation.feature_training import Fitted, fit, fit_all
from clip_jax.adaptation.shots import Shots

LIMITS = {"gain": 10.0, "difference": 1e-5}

_RUNS = flags.DEFINE_integer("runs", 16, "Number of runs.", lower_bound=2)
_CLASSES = flags.DEFINE_integer("classes", 10, "Number of classes.", lower_bound=2)
_SHOTS = flags.DEFINE_integer("shots", 4, "Shots of each class.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 64, "Width of a feature.", lower_bound=4)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of the two.", lower_bound=1)


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


def measure(name: str, data: tuple[Shots, Shots, jax.Array, jax.Array]) -> dict[str, float]:
    """Returns the row of one method."""
    method = FEATURE_METHODS[name]
    shots, validation, classifier, keys = data
    runs = [jax.tree.map(lambda x, r=r: x[r], (shots, validation, keys)) for r in range(len(keys))]

    def together() -> Fitted:
        return fit_all(method, shots, validation, classifier, keys)

    def in_turn() -> list[Fitted]:
        return [fit(method, s, v, classifier, key) for s, v, key in runs]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *in_turn())
    difference = largest_difference(together(), stacked)
    turns = [(seconds(together), seconds(in_turn)) for _ in range(_ROUNDS.value)]
    return {
        "together_ms": round(1e3 * statistics.median(a for a, _ in turns), 2),
        "in_turn_ms": round(1e3 * statistics.median(b for _, b in turns), 2),
        "gain": round(statistics.median(b / a for a, b in turns), 2),
        "difference": difference,
    }


def main(argv: list[str]) -> None:
    """Measures, and prints the object."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    data = draw_runs()
    rows = {name: measure(name, data) for name in FEATURE_METHODS if name != "zero_shot"}
    print(json.dumps({"cores": os.cpu_count(), "methods": rows, "limits": LIMITS}, indent=1))


if __name__ == "__main__":
    app.run(main)
