"""Few-shot splits: a few training images a class, nested over the numbers of shots, by seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clip_jax.errors import UserError

MAX_VALIDATION = 4  # shots of validation, as CoOp has them


class Split(NamedTuple):
    """Record numbers of one run, int64, class by class."""

    train: np.ndarray
    validation: np.ndarray


def few_shot_split(
    labels: np.ndarray, names: Sequence[str], shots: int, seed: int, most: int, where: str
) -> Split:
    """Draws `shots` images a class for training, and min(shots, 4) others for validation.

    The images of fewer shots are among those of more, up to `most` shots. Validation images come
    after the first `most`, so that they train in no run of the seed.

    Args:
      labels: int (N,), classes by record; negative for those without one.
      names: of the classes, for errors; `where` names the data.

    Raises:
      UserError: a class has too few images.
    """
    validation_shots = min(shots, MAX_VALIDATION)
    train, validation = [], []
    for number, name in enumerate(names):
        records = np.flatnonzero(labels == number)
        needed = most + min(most, MAX_VALIDATION)
        if len(records) < needed:
            raise UserError(
                f"shots={most}: class {name!r} of {where} has {len(records)} images; needed are"
                f" {needed}, {most} to train and {needed - most} to validate"
            )
        order = np.random.default_rng((seed, number)).permutation(records)
        train.append(order[:shots])
        validation.append(order[most : most + validation_shots])
    return Split(np.concatenate(train), np.concatenate(validation))


def all_split(labels: np.ndarray, names: Sequence[str], seed: int, where: str) -> Split:
    """Uses every labelled image: a tenth of each class, one at least, to validate.

    Raises UserError: a class has fewer than two images.
    """
    train, validation = [], []
    for number, name in enumerate(names):
        records = np.flatnonzero(labels == number)
        if len(records) < 2:
            raise UserError(
                f"class {name!r} of {where} has {len(records)} images; needed are two, one to train"
                " and one to validate"
            )
        order = np.random.default_rng((seed, number)).permutation(records)
        count = max(1, round(len(order) / 10))
        train.append(order[count:])
        validation.append(order[:count])
    return Split(np.concatenate(train), np.concatenate(validation))
