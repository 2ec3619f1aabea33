"""Sweep of a linear probe's penalties against scikit-learn, run once a penalty.

    python benchmarks/probe.py

97 values of λ from 1e6 to 1e-6, tried whole and by the search. scikit-learn, as people run it
(tolerance 1e-4, at most 1,000 iterations, float32), is timed on every `stride`-th value and scaled.
To see that it would choose the same λ, that one and its neighbours are fitted to a tolerance of
1e-10: at 1e-4 it stops short of the optimum. Prints one JSON object.
"""

import json
import os
import sys
import time
import warnings

import jax
import numpy as np
from absl import app, flags
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from clip_jax.evaluation.probe.sweep import LAMBDAS, Examples, sweep_penalties

LIMIT = 5.0  # times faster than scikit-learn

_ROWS = flags.DEFINE_integer("rows", 20_000, "For training; a quarter as many for validation.")
_WIDTH = flags.DEFINE_integer("width", 512, "Of the features.")
_CLASSES = flags.DEFINE_integer("classes", 100, "Of the labels.")
_STRIDE = flags.DEFINE_integer("stride", 12, "Every how many-th value scikit-learn is timed on.")


def examples() -> tuple[Examples, Examples]:
    """Returns unit rows that share a direction, of a falling spectrum, as a CLIP's do."""
    draw = np.random.default_rng(0)
    scales = np.arange(1, _WIDTH.value + 1) ** -0.5
    shared = 3 * scales * draw.normal(size=_WIDTH.value)
    centres = 0.12 * scales * draw.normal(size=(_CLASSES.value, _WIDTH.value))

    def rows(count: int) -> Examples:
        labels = np.arange(count) % _CLASSES.value
        features = shared + centres[labels] + scales * draw.normal(size=(count, _WIDTH.value))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return Examples(features.astype(np.float32), labels)

    return rows(_ROWS.value), rows(_ROWS.value // 4)


def refined_loss(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Returns the cross-entropy at the temperature that suits it best, in float64."""

    def loss(log_scale: float) -> float:
        log_chances = log_softmax(np.exp(log_scale) * logits_NC, axis=1)
        return -log_chances[np.arange(len(labels_N)), labels_N].mean()

    return minimize_scalar(loss, bounds=(-6, 6)).fun


def main(argv: list[str]) -> None:
    """Measures, and prints the object."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    warnings.simplefilter("ignore", ConvergenceWarning)
    train, validation = examples()
    begun = time.perf_counter()
    whole = sweep_penalties(train, validation, order="all")
    ours = time.perf_counter() - begun
    begun = time.perf_counter()
    found = sweep_penalties(train, validation)
    search = time.perf_counter() - begun

    seconds = {}
    timed = range(0, len(LAMBDAS), _STRIDE.value)
    for number in timed:
        begun = time.perf_counter()
        LogisticRegression(C=1 / LAMBDAS[number], max_iter=1000).fit(*train)
        seconds[number] = time.perf_counter() - begun
        print(f"λ={LAMBDAS[number]:.0e}: {seconds[number]:.1f} s", file=sys.stderr, flush=True)
    theirs = sum(seconds.values()) * len(LAMBDAS) / len(timed)
    losses = {}
    chosen = int(np.argmin(whole.losses_K))
    for number in range(max(chosen - 1, 0), min(chosen + 2, len(LAMBDAS))):
        model = LogisticRegression(C=1 / LAMBDAS[number], tol=1e-10, max_iter=10_000)
        logits = model.fit(*train).decision_function(validation.features).astype(np.float64)
        losses[number] = refined_loss(logits, validation.labels)
    result = {
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "rows": _ROWS.value,
        "width": _WIDTH.value,
        "classes": _CLASSES.value,
        "seconds": {"ours": round(ours, 1), "search": round(search, 1), "sklearn": round(theirs)},
        "sklearn_is_scaled_from": {f"{LAMBDAS[i]:.0e}": round(seconds[i], 1) for i in timed},
        "times_faster": round(theirs / ours, 1),
        "limit": LIMIT,
        "accuracy": round(float(whole.accuracy_K[chosen]), 4),
        "lambda": {
            "ours": float(f"{whole.best:.3g}"),
            "search": float(f"{found.best:.3g}"),
            "sklearn": float(f"{LAMBDAS[min(losses, key=losses.__getitem__)]:.3g}"),
        },
    }
    result["kept"] = theirs / ours >= LIMIT and len(set(result["lambda"].values())) == 1
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
