"""Multinomial logistic regression with an L2 penalty, at scikit-learn's optimum.

`fit_logistic_regression` minimises what `sklearn.linear_model.LogisticRegression` does. Its `C`
is 1 / (l2·N); with two classes, for which it has one vector of weights instead of two, 2 / (l2·N).

Features are whitened in float64 (an exact change of variables: the penalty changes with it), so
that the search, in float32, has a Hessian near the identity whatever the features' scales, mean and
correlations are.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.arguments import shown
from clip_jax.errors import UserError
from clip_jax.evaluation.probe.penalty_path import MAX_EVALUATIONS, Rows, solve_path

logger = logging.getLogger(__name__)

LOGITS_PER_BLOCK = 1 << 20
TOLERANCE = 1e-10  # of a fit, whose predictions then agree with those of scikit-learn's optimum
# Between penalties that are far apart, others are solved roughly, which takes fewer evaluations
# than one long step: 300 instead of 700 for a single weak penalty of the benchmark.
_HELPERS_PER_DECADE = 2
HELPER_TOLERANCE = 1e-4
_PATH_MULTIPLE = 16  # penalties; each length is compiled
_ROWS_AT_ONCE = 1 << 14  # that are float64 on the host


def fit_logistic_regression(features: Any, labels: Any, l2: Any) -> tuple[np.ndarray, np.ndarray]:
    """Fits one classifier for each penalty.

    Minimises mean cross-entropy + l2/2·‖W‖² over W (D, C) and the bias (C,), which has no penalty.
    Rows are split over the local devices.

    Args:
      features: float (N, D), used as they are: neither normalised nor standardised.
      labels: int (N,), of classes 0 to C − 1; each class occurs.
      l2: float (K,), each greater than 0.

    Returns:
      (weights float64 (K, D, C), bias float64 (K, C)): logits are `features @ weights + bias`. The
      bias's mean over the classes, which changes no probability, is 0.

    Raises:
      UserError: features that are not (N, D), not finite or all the same, labels that are not
        integers, a single class or a class without a row, a penalty that is not greater than 0.
    """
    problem = make_problem(features, labels)
    l2 = np.asarray(l2)
    if l2.ndim != 1 or l2.dtype.kind not in "iuf" or not ((l2 > 0) & np.isfinite(l2)).all():
        raise UserError(f"l2={shown(l2)}: must be a list of numbers that are greater than 0")
    falling = np.argsort(-l2, kind="stable")
    solutions = problem.solve(l2[falling], TOLERANCE)
    return problem.whitening.undo(solutions[np.argsort(falling)])


@dataclass(frozen=True)
class Whitening:
    """Map of features to mean 0 and covariance I: (x − mean) @ basis."""

    mean_D: np.ndarray  # float64
    basis_DR: np.ndarray  # float64; orthogonal columns
    spectrum_R: np.ndarray  # float64: variance of the features along each column

    def __call__(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns the white features, float32 (N, R)."""
        white_NR = np.empty((len(features_ND), len(self.spectrum_R)), np.float32)
        for part in _parts(len(features_ND)):
            white_NR[part] = (features_ND[part].astype(np.float64) - self.mean_D) @ self.basis_DR
        return white_NR

    def undo(self, solutions_KPC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns weights (K, D, C) and bias (K, C) of features as they were, float64."""
        solutions_KPC = solutions_KPC.astype(np.float64)
        weights_KDC = np.matmul(self.basis_DR, solutions_KPC[:, :-1])
        bias_KC = solutions_KPC[:, -1] - np.einsum("d,kdc->kc", self.mean_D, weights_KDC)
        return weights_KDC, bias_KC - bias_KC.mean(1, keepdims=True)


def fit_whitening(features_ND: np.ndarray) -> Whitening:
    """Finds the whitening of features; directions in which they do not vary are left out.

    Raises `UserError` if they vary in none.
    """
    count, width = features_ND.shape
    mean_D = features_ND.mean(0, dtype=np.float64)
    covariance_DD = np.zeros((width, width))
    for part in _parts(count):
        centred = features_ND[part].astype(np.float64) - mean_D
        covariance_DD += centred.T @ centred / count
    spectrum, vectors = np.linalg.eigh(covariance_DD)
    # Below this bound an eigenvalue is rounding error: numpy's `matrix_rank`, and the mean's.
    eps = np.finfo(np.float64).eps
    varies = spectrum > width * eps * (spectrum[-1] + eps * mean_D @ mean_D)
    if not varies.any():
        raise UserError("features: are the same in every row, so nothing can be learnt from them")
    spectrum, vectors = spectrum[varies], vectors[:, varies]
    return Whitening(mean_D, vectors / np.sqrt(spectrum), spectrum)


def _parts(count: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, count, _ROWS_AT_ONCE)]


@dataclass(frozen=True)
class Problem:
    """Rows to fit, white and on the devices."""

    whitening: Whitening
    rows: Rows
    count: int  # number of rows
    start_PC: np.ndarray  # weights 0, and the bias that fits the classes' shares

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.start_PC.shape[1]

    def solve(
        self,
        l2_K: np.ndarray,
        tolerance: float,
        start: tuple[float, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Returns the solutions for falling penalties, float32 (K, R + 1, C), of white features.

        `start` is a larger penalty and its solution, if one is known.
        """
        largest, start_PC = start or (self.whitening.spectrum_R.max(), self.start_PC)
        path, is_asked = _with_helpers(l2_K, largest)
        unused = (0, -len(path) % _PATH_MULTIPLE)
        solutions, counts = solve_path(
            self.rows,
            (1 / self.whitening.spectrum_R).astype(np.float32),
            np.pad(path, unused, mode="edge").astype(np.float32),
            np.pad(np.where(is_asked, tolerance, HELPER_TOLERANCE), unused).astype(np.float32),
            len(path),
            start_PC,
        )
        unsolved = np.asarray(counts)[: len(path)] >= MAX_EVALUATIONS
        if unsolved.any():
            logger.warning(
                "logistic regression: l2=%g is not solved after %d evaluations",
                *(path[unsolved][0], MAX_EVALUATIONS),
            )
        return np.asarray(solutions)[: len(path)][is_asked]


def _with_helpers(l2_K: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Fills gaps of a falling sequence that begins at `largest`, two values a decade.

    Returns the values, and which of them are of the sequence.
    """
    values, is_asked = list[float](), list[bool]()
    for before, l2 in zip([largest, *l2_K[:-1]], l2_K, strict=True):
        steps = math.ceil(_HELPERS_PER_DECADE * math.log10(before / l2) - 1e-6)
        values += [*np.geomspace(before, l2, max(steps, 1) + 1)[1:-1], l2]
        is_asked += [False] * (max(steps, 1) - 1) + [True]
    return np.array(values), np.array(is_asked)


def make_problem(features, labels) -> Problem:
    """Checks features (N, D) and labels (N,), and puts them on the local devices.

    Raises `UserError` as `fit_logistic_regression` does.
    """
    features_ND = check_features(features)
    labels_N = check_labels(labels, len(features_ND))
    whitening = fit_whitening(features_ND)
    shares_C = np.bincount(labels_N) / len(labels_N)
    start_PC = np.zeros((len(whitening.spectrum_R) + 1, len(shares_C)), np.float32)
    start_PC[-1] = np.log(shares_C)
    equal_N = np.full(len(labels_N), 1 / len(labels_N))
    rows = place_rows(whitening(features_ND), labels_N, len(shares_C), equal_N)
    return Problem(whitening, rows, len(labels_N), start_PC)


def place_rows(
    white_NR: np.ndarray, labels_N: np.ndarray, num_classes: int, weights_N: np.ndarray
) -> Rows:
    """Puts rows on the local devices, in blocks of bounded size, which rows of weight 0 fill."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("rows",), devices=devices, axis_types=(AxisType.Auto,))
    count = len(labels_N)
    blocks = -(-count * num_classes // (len(devices) * LOGITS_PER_BLOCK))
    block = -(-count // (len(devices) * blocks)) * len(devices)

    def placed(values: np.ndarray) -> jax.Array:
        padded = np.zeros((blocks * block, *values.shape[1:]), values.dtype)
        padded[:count] = values
        by_row = NamedSharding(mesh, P(None, "rows"))
        return jax.device_put(padded.reshape(blocks, block, *values.shape[1:]), by_row)

    labels_N, weights_N = labels_N.astype(np.int32), weights_N.astype(np.float32)
    return Rows(placed(white_NR), placed(labels_N), placed(weights_N))


def check_features(features, name: str = "features", width: int | None = None) -> np.ndarray:
    """Returns features as a float array (N, D). Raises `UserError` for any but finite numbers.

    `width` is the D that they must have, if it is given.
    """
    array = np.asarray(features)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iuf":
        raise UserError(
            f"{name}: {array.dtype} of shape {array.shape}; accepted are numbers (N, D), N > 0"
        )
    if width not in (None, array.shape[1]):
        raise UserError(f"{name}: are {array.shape[1]} wide; accepted is {width}, as in training")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
        raise UserError(f"{name}: row {row} is not finite")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def check_labels(
    labels, count: int, name: str = "labels", num_classes: int | None = None
) -> np.ndarray:
    """Returns labels as int64 (N,). Raises `UserError` for any but numbers of classes.

    Without `num_classes` there are as many as the largest label says, at least two, and each
    occurs.
    """
    array = np.asarray(labels)
    if array.dtype.kind in "OSU":
        example = shown(array.ravel().tolist()[0]) if array.size else "none"
        raise UserError(f"{name}: are text, such as {example}; accepted are class numbers, from 0")
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise UserError(
            f"{name}: {array.dtype} of shape {array.shape}; accepted are integers ({count},), one"
            " a row of the features"
        )
    if array.min() < 0:
        raise UserError(f"{name}: {array.min()} is among them; accepted are 0 and more")
    if num_classes is not None:
        if array.max() >= num_classes:
            raise UserError(f"{name}: {array.max()} is among them, but no training row has it")
        return array.astype(np.int64)
    rows_of_class = np.bincount(array)
    if len(rows_of_class) == 1:
        raise UserError(f"{name}: are all 0; accepted are at least two classes")
    if not rows_of_class.all():
        empty = np.flatnonzero(rows_of_class == 0)
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(
            f"{name}: class {empty[0]} of {len(rows_of_class)}{more} has no row; accepted are the"
            " numbers 0 to C - 1, each at least once"
        )
    return array.astype(np.int64)
