"""Few-shot splits: a few training images a class, nested over the numbers of shots, by seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluation.probe.examples import HELD_OUT, ranks_in_class

MAX_VALIDATION = 4  # shots of validation, as CoOp has them


class Split(NamedTuple):
    """Record numbers of one run, int64, ascending."""

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
    to_validate = min(most, MAX_VALIDATION)
    records = _enough(
        labels, names, most + to_validate, where,
        f"shots={most}", f"{most} to train and {to_validate} to validate",
    )  # fmt: skip
    ranks = ranks_in_class(labels[records], seed)
    validates = (ranks >= most) & (ranks < most + min(shots, MAX_VALIDATION))
    return Split(records[ranks < shots], records[validates])


def whole_split(labels: np.ndarray, names: Sequence[str], seed: int, where: str) -> Split:
    """Uses every labelled image: a tenth of each class, one at least, to validate.

    Raises UserError: a class has fewer than two images.
    """
    records = _enough(labels, names, 2, where, "all shots", "one to train and one to validate")
    sizes = np.bincount(labels[records])
    held = np.maximum(np.round(HELD_OUT * sizes), 1)
    validates = ranks_in_class(labels[records], seed) < held[labels[records]]
    return Split(records[~validates], records[validates])


def given_split(
    labels: np.ndarray,
    validates: np.ndarray,
    names: Sequence[str],
    shots: int,
    seed: int,
    where: str,
) -> Split:
    """Draws `shots` images a class, 0 for all, and min(shots, 4) or fewer that are to validate.

    `validates`, bool (N,), marks the images for that; the others are as in `few_shot_split`, and so
    is the error.
    """
    chosen = []
    for marked, most, needed in (
        (~validates, shots, max(shots, 1)),
        (validates, min(shots, MAX_VALIDATION), 1),
    ):
        part = np.where(marked, labels, -1)
        what = f"shots={shots}" if shots else "all shots"
        records = _enough(part, names, needed, where, what, "of one part of the split")
        chosen.append(records[ranks_in_class(part[records], seed) < (most or len(records))])
    return Split(*chosen)


def _enough(
    labels: np.ndarray, names: Sequence[str], needed: int, where: str, what: str, why: str
) -> np.ndarray:
    """Returns the labelled records. Raises UserError if a class has fewer than are needed."""
    records = np.flatnonzero(labels >= 0)
    sizes = np.bincount(labels[records], minlength=len(names))
    number = int(sizes.argmin())
    if sizes[number] < needed:
        raise UserError(
            f"{what}: class {names[number]!r} of {where} has {sizes[number]} images; needed are"
            f" {needed}, {why}"
        )
    return records
