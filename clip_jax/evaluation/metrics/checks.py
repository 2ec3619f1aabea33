"""Checks of what the metrics are given; each raises `UserError`."""

from typing import Any

import numpy as np

from clip_jax.errors import UserError


def as_values(values: Any, name: str = "values") -> np.ndarray:
    """Returns finite numbers (N,), N > 0, as float64."""
    array = np.asarray(values)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "biuf":
        raise UserError(
            f"{name} {array.dtype} {array.shape}: accepted are (N,) numbers, at least one"
        )
    if not np.isfinite(array).all():
        raise UserError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not finite")
    return array.astype(np.float64)


def as_scores(scores: Any, shape: str = "NC") -> np.ndarray:
    """Returns numbers without NaN of as many axes as `shape` has letters, as they are."""
    array = np.asarray(scores)
    if array.ndim != len(shape) or not array.size or array.dtype.kind not in "biuf":
        accepted = ", ".join(shape)
        raise UserError(f"scores {array.dtype} {array.shape}: accepted are ({accepted}) numbers")
    # A NaN compares false with everything and would count as a right answer.
    if np.isnan(array).any():
        row = int(np.argwhere(np.isnan(array))[0][0])
        raise UserError(f"scores[{row}]: NaN; accepted are numbers")
    return array


def as_labels(
    labels: Any, num_samples: int, num_classes: int | None = None, name: str = "label"
) -> np.ndarray:
    """Returns integers (N,) from 0 to C − 1, or without an upper limit, as int64."""
    array = np.asarray(labels)
    if array.shape != (num_samples,) or array.dtype.kind not in "iu":
        raise UserError(
            f"{name}s {array.dtype} {array.shape}: accepted are ({num_samples},) integers"
        )
    most = np.inf if num_classes is None else num_classes - 1
    wrong = (array < 0) | (array > most)
    if wrong.any():
        accepted = "0 or more" if num_classes is None else f"0 to {most}, a class each"
        raise UserError(f"{name} {array[wrong][0]}: accepted is {accepted}")
    return array.astype(np.int64)


def as_targets(targets: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns 0/1 or bool targets of this shape as bool."""
    array = np.asarray(targets)
    if array.shape != shape or not np.isin(array, (0, 1)).all():
        raise UserError(f"targets {array.dtype} {array.shape}: accepted are 0 and 1 of {shape}")
    return array.astype(bool)


def check_confidence(confidence: float) -> None:
    """Raises `UserError` unless 0 < confidence < 1."""
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence}: accepted is between 0 and 1, such as 0.95")
