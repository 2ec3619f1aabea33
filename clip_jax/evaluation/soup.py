"""Soups: averages of the parameters of models of one architecture (Wortsman et al. 2022).

The interpolation from a model to its fine-tuned self is the soup of two (WiSE-FT).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax.errors import UserError
from clip_jax.sharding import leaves_by_path


def soup(params: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """Averages parameter trees, in float64, and returns a tree of the first one's dtypes.

    Args:
      params: trees of the same paths and shapes, at least one.
      weights: one a tree, of any sum but 0, also beyond 0 to 1; None for a plain mean.

    Raises:
      UserError: no tree, trees that do not match (the path is named), or weights that do not fit.
    """
    if not params:
        raise UserError("soup: there are no parameters; give at least one tree")
    shares = np.ones(len(params)) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (len(params),) or not np.isfinite(shares).all() or not shares.sum():
        raise UserError(
            f"soup: weights={weights}: accepted are {len(params)} numbers whose sum is not 0"
        )
    first = leaves_by_path(params[0])
    for number, tree in enumerate(params[1:], 2):
        other = leaves_by_path(tree)
        for path in sorted(first.keys() | other.keys()):
            shapes = [np.shape(t[path]) if path in t else "missing" for t in (first, other)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"soup: {path} is {shapes[0]} in model 1 and {shapes[1]} in model {number}; "
                    "accepted are models of one architecture"
                )
    shares = shares / shares.sum()

    def mean(*leaves: Any) -> np.ndarray:
        total = sum(
            s * np.asarray(leaf, np.float64) for s, leaf in zip(shares, leaves, strict=True)
        )
        return np.asarray(total).astype(np.asarray(leaves[0]).dtype)

    return jax.tree.map(mean, *params)


def greedy_soup(
    params: Sequence[Any], score: Callable[[Any], float]
) -> tuple[Any, list[int], list[float]]:
    """Adds models to a soup, best first, as long as its score does not fall.

    Args:
      params: trees, as for `soup`.
      score: of a tree, higher is better, such as accuracy on held-out data; not on the test set.

    Returns:
      The soup, the numbers of its models in the order of their addition, and the score of each
      model alone.
    """
    scores = [score(tree) for tree in params]
    order = sorted(range(len(params)), key=lambda number: -scores[number])
    chosen, best = order[:1], scores[order[0]]
    for number in order[1:]:
        tried = score(soup([params[i] for i in (*chosen, number)]))
        if tried >= best:
            chosen, best = [*chosen, number], tried
    return soup([params[i] for i in chosen]), chosen, scores
