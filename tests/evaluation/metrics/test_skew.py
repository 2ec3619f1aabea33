"""Fairness of rankings and rates of groups against tables made by hand, to 1e-12."""

from collections.abc import Callable
from math import log, log2
from typing import Any

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation import max_skew, min_skew, ndkl
from clip_jax.evaluation.metrics.groups import group_rates, worst_group
from clip_jax.evaluation.metrics.intervals import share_interval

EXACT = {"rel": 0, "abs": 1e-12}
RANKED = [0, 0, 1, 0, 2, 1, 1, 0]
EQUAL = [1 / 3, 1 / 3, 1 / 3]
PARITY = [4 / 8, 3 / 8, 1 / 8]  # the shares of all eight

# k, desired shares, counts of the first k: MaxSkew@k, MinSkew@k
SKEWS = [
    (1, EQUAL, (1, 0, 0), log(3), log(3)),  # without any counts as one of one
    (2, EQUAL, (2, 0, 0), log(3), log(1.5)),
    (3, EQUAL, (2, 1, 0), log(2), log(1)),
    (4, EQUAL, (3, 1, 0), log(2.25), log(0.75)),
    (5, EQUAL, (3, 1, 1), log(1.8), log(0.6)),
    (8, EQUAL, (4, 3, 1), log(1.5), log(0.375)),
    (4, PARITY, (3, 1, 0), log(2), log(2 / 3)),  # the missing third: 1/4 of 1/8
    (5, PARITY, (3, 1, 1), log(1.6), log(8 / 15)),
    (8, PARITY, (4, 3, 1), 0.0, 0.0),
]


@pytest.mark.parametrize(("k", "desired", "counts", "largest", "smallest"), SKEWS)
def test_skew(
    k: int, desired: list[float], counts: tuple[int, ...], largest: float, smallest: float
) -> None:
    assert tuple(RANKED[:k].count(g) for g in range(3)) == counts
    assert max_skew(RANKED, desired, k) == pytest.approx(largest, **EXACT)
    assert min_skew(RANKED, desired, k) == pytest.approx(smallest, **EXACT)


def test_ndkl() -> None:
    # Shares of the first 1, 2, 3, 4: (1, 0), (1, 0), (2/3, 1/3), (1/2, 1/2) against (1/2, 1/2).
    divergence = [log(2), log(2), 2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3), 0]
    weight = [1, 1 / log2(3), 1 / 2, 1 / log2(5)]
    wanted = sum(w * d for w, d in zip(weight, divergence, strict=True)) / sum(weight)
    assert ndkl([0, 0, 1, 1], [0.5, 0.5]) == pytest.approx(wanted, **EXACT)
    # Against (1/4, 3/4), which it reaches nowhere.
    divergence = [
        log(4),
        log(4),
        2 / 3 * log(8 / 3) + 1 / 3 * log(4 / 9),
        1 / 2 * log(2) + 1 / 2 * log(2 / 3),
    ]
    wanted = sum(w * d for w, d in zip(weight, divergence, strict=True)) / sum(weight)
    assert ndkl([0, 0, 1, 1], [0.25, 0.75]) == pytest.approx(wanted, **EXACT)
    assert ndkl([0], [1.0]) == 0
    assert ndkl([1], [0.5, 0.5]) == pytest.approx(log(2), **EXACT)


def test_ndkl_of_many_groups_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    ranked, desired = rng.integers(0, 7, 300), rng.dirichlet(np.ones(7))
    total = weights = 0.0
    for i in range(1, 301):
        shares = [np.count_nonzero(ranked[:i] == g) / i for g in range(7)]
        divergence = sum(p * log(p / q) for p, q in zip(shares, desired, strict=True) if p > 0)
        total += divergence / log2(i + 1)
        weights += 1 / log2(i + 1)
    assert ndkl(ranked, desired) == pytest.approx(total / weights, **EXACT)


def test_rates_of_groups() -> None:
    hits = np.array([1, 1, 0, 1, 0, 0, 1, 0.5])
    groups = np.array(["a", "a", "a", "a", "b", "b", "b", "c"])
    rates = group_rates(hits, groups)
    assert {group: rate.value for group, rate in rates.items()} == pytest.approx(
        {"a": 3 / 4, "b": 1 / 3, "c": 1 / 2}, **EXACT
    )
    assert (rates["a"].low, rates["a"].high) == share_interval(hits[:4])
    worst = worst_group(hits, groups)
    assert worst.value == pytest.approx(1 / 3, **EXACT)
    assert worst.low == rates["c"].low == min(rate.low for rate in rates.values())
    assert worst.high == share_interval(hits[4:7], confidence=1 - 0.05 / 3)[1]
    one = worst_group(hits, np.zeros(8, int))
    assert one == group_rates(hits, np.zeros(8, int))[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_skew(RANKED, EQUAL, 9), "k=9: must be a whole number, 1 to 8"),
        (lambda: min_skew(RANKED, EQUAL, 0), "k=0"),
        (lambda: max_skew(RANKED, [0.5, 0.5], 3), "ranked_group 2: accepted is 0 to 1"),
        (lambda: max_skew(RANKED, [0.5, 0.6], 3), r"desired=\[0.5, 0.6\]: accepted are shares"),
        (lambda: ndkl(RANKED, [1.0, 0, 0]), "shares above 0"),
        (lambda: ndkl([], EQUAL), "ranked_groups: is empty"),
        (lambda: ndkl([0.0, 1.0], EQUAL), "accepted are"),
        (lambda: group_rates([1, 0], ["a"]), r"groups \(1,\): accepted are \(2,\)"),
        (lambda: group_rates([2, 2], ["a", "a"]), "accepted is a share"),
    ],
)
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
