"""Soups: plain and weighted means, the greedy choice, and trees that do not match."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.soup import greedy_soup, soup


def tree(*values: float) -> dict:
    first, second = values
    return {"a": {"b": np.full((2, 3), first, np.float32)}, "c": np.full(4, second, np.float32)}


def test_means() -> None:
    parts = [tree(1, 2), tree(2, 4), tree(6, 0)]
    np.testing.assert_array_equal(soup(parts)["a"]["b"], np.full((2, 3), 3, np.float32))
    # Beyond the second model: an extrapolation.
    far = soup(parts[:2], (-1, 2))
    np.testing.assert_array_equal(far["c"], np.full(4, 6, np.float32))
    assert far["c"].dtype == np.float32


def test_greedy_soup_takes_what_does_not_hurt() -> None:
    # The best mean of "c" is 3: the second alone is best, the third helps, the first does not.
    parts = [tree(0, 9), tree(0, 2), tree(0, 4)]
    found, chosen, scores = greedy_soup(parts, lambda p: -abs(float(p["c"][0]) - 3))
    assert chosen == [1, 2]
    assert scores == [-6, -1, -1]
    assert float(found["c"][0]) == 3
    # A model that changes nothing joins, as in the paper.
    assert greedy_soup([tree(0, 3), tree(0, 3)], lambda p: float(p["c"][0]))[1] == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "no parameters"),
        ([tree(1, 2), {"a": {"b": np.zeros((2, 4))}, "c": np.zeros(4)}], r"a/b is \(2, 3\)"),
        ([tree(1, 2), {"a": {"b": np.zeros((2, 3))}}], "c is .* in model 1 and missing"),
    ],
)
def test_mistakes(wrong: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        soup(wrong)
    with pytest.raises(UserError, match="weights"):
        soup([tree(1, 2), tree(1, 2)], (1, -1))
