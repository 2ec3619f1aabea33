"""Labelled images that runs of adaptation take, and adapters with their judges that they give."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from clip_jax.adaptation.folder import Adaptation
from clip_jax.data.records import Source
from clip_jax.evaluation.labels import Labels
from clip_jax.evaluation.zero_shot import evaluate_classifier

Row = dict[str, Any]
ACCURACY = "accuracy_top1"
# Arrays of `Outcome.samples` that are also of the model as it was, under before_NAME.
BEFORE = ("predictions", "confidence")


class Part(NamedTuple):
    """Labelled images of one purpose; `validates`, bool (N,), are those that a split file keeps."""

    source: Source
    labels: Labels
    validates: np.ndarray | None = None


# (images, their record numbers or None for all) -> logits (N, K), labels (N,)
Judge = Callable[[Part, np.ndarray | None], tuple[np.ndarray, np.ndarray]]


class Learned(NamedTuple):
    """Result of one run: the adapter, the number of values that learned, a judge of images.

    `judge_part` gives the judge of a model that is only a part of the way from the base to the
    adapted one; None if there is no such way.
    """

    adaptation: Adaptation
    values: int
    judge: Judge
    judge_part: Callable[[float], Judge] | None = None
    learning_rate: float | None = None


class Outcome(NamedTuple):
    """One run, judged."""

    row: Row
    adaptation: Adaptation
    samples: dict[str, np.ndarray]


def metrics(logits: np.ndarray, labels: np.ndarray) -> tuple[Row, dict[str, np.ndarray]]:
    """Returns `evaluate_classifier` of logits (N, K) and labels (N,)."""
    return evaluate_classifier(logits, labels, logits.shape[1], lambda rows: rows)
