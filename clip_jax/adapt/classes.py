"""Base and new classes: what is learned from the first half is judged on the second, too.

The protocol of CoCoOp (Zhou et al. 2022), section 4.1.
"""

import dataclasses

import numpy as np

from clip_jax.adapt.experiment import Experiment
from clip_jax.adapt.parts import ACCURACY, Outcome, Part
from clip_jax.adaptation.methods import METHODS
from clip_jax.errors import UserError
from clip_jax.evaluation.labels import UNLABELLED


def chosen_classes(
    which: str, train: Part, test: Part | None
) -> tuple[Part, Part | None, Part | None]:
    """Returns images of some classes: to train, to test, and to test as new classes.

    `which` is "all", "base" or "new", the first or the second half. Raises UserError: there are too
    few classes, or no test images of new ones.
    """
    if which == "all":
        return train, test, None
    count = len(train.labels.classes)
    if count < 4:
        raise UserError(f"--classes={which}: there are {count} classes; needed are 4")
    if which == "new":
        return half(train, new=True), test and half(test, new=True), None
    if test is None:
        raise UserError("--classes=base: is judged on new classes too; give --test_data")
    return half(train, new=False), half(test, new=False), half(test, new=True)


def half(part: Part, *, new: bool) -> Part:
    """Returns the images of the first half of the classes, the larger one, or of the second."""
    classes = part.labels.classes
    middle = (len(classes) + 1) // 2
    first, last = (middle, len(classes)) if new else (0, middle)
    numbers = part.labels.numbers
    inside = (numbers >= first) & (numbers < last)
    labels = dataclasses.replace(
        part.labels,
        numbers=np.where(inside, numbers - first, UNLABELLED),
        classes=classes[first:last],
    )
    return part._replace(labels=labels)


def judge_new(outcome: Outcome, on_new: Experiment) -> None:
    """Adds to a row the figures of the new classes, and the harmonic means of both accuracies.

    Methods on features know only the classes that they learned.
    """
    if outcome.row["method"] not in METHODS:
        return
    row, (before, after) = outcome.row, on_new.judged(outcome.adaptation)
    row["new"] = {"before": before, "after": after}
    row["harmonic_mean"] = {
        when: _harmonic_mean(row[when][ACCURACY], figures[ACCURACY])
        for when, figures in row["new"].items()
    }


def _harmonic_mean(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other else 0.0
