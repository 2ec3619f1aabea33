"""Intervals against scipy, against resampling one by one, and what they must be at the edges."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

import clip_jax.evaluation
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.intervals import (
    bootstrap_interval,
    mean_per_class_interval,
    median_interval,
    share_interval,
)
from clip_jax.evaluation.metrics.paired import mcnemar_test, paired_difference
from clip_jax.evaluation.metrics.rows import (
    Estimate,
    mean_estimate,
    median_estimate,
    metrics_row,
    per_class_estimate,
)


def hits_of(number: int, right: int) -> np.ndarray:
    return (np.arange(number) < right).astype(float)


# --- The bootstrap ------------------------------------------------------------------------------


def plain_resamples(sums: np.ndarray, sizes: np.ndarray, number: int) -> np.ndarray:
    """Means of groups drawn one by one."""
    drawn = np.random.default_rng(1).integers(0, len(sums), (number, len(sums)))
    return sums[drawn].sum(1) / sizes[drawn].sum(1)


def cases() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(400), rng.integers(1, 9, 400))
    ease = rng.beta(1, 1, 400)[image]
    return {
        "hits": (hits_of(400, 330), None),
        "hits, groups": ((rng.random(len(image)) < ease).astype(float), image),
        "skewed numbers": (rng.exponential(size=500), None),
        "numbers, groups": (rng.normal(size=len(image)) + 4 * ease, image),
        "few numbers": (rng.normal(size=12), None),
        "numbers of which a few decide": (rng.lognormal(0, 1.8, 2000), None),
    }


@pytest.mark.parametrize("case", cases())
def test_resamples_are_those_of_drawing_one_by_one(case: str) -> None:
    """The limits against BCa with scipy's formulas, of resamples drawn one by one."""
    values, groups = cases()[case]
    number = np.arange(len(values)) if groups is None else groups
    sums, sizes = np.bincount(number, values), np.bincount(number).astype(float)
    count, mean = len(sums), values.mean()
    means = plain_resamples(sums, sizes, 20_000)
    below = (means < mean).mean() + (means == mean).mean() / 2
    bias = stats.norm.ppf(below)
    acceleration = stats.skew(sums - mean * sizes) / (6 * count**0.5)
    levels = []
    for tail in (0.025, 0.975):
        z = bias + stats.t(count - 1).ppf(tail) * (count / (count - 1)) ** 0.5
        levels.append(stats.norm.cdf(bias + z / (1 - acceleration * z)))
    expected = np.quantile(means, levels)
    got = bootstrap_interval(values, groups, resamples=20_000)
    step = 1 / len(values) if case == "hits" else 0  # the means of hits lie on a lattice
    assert got == pytest.approx(tuple(expected), abs=0.08 * means.std() + step)


def test_agrees_with_scipys_bca_on_many_samples() -> None:
    values = np.random.default_rng(3).gamma(0.7, size=2000)
    rng = np.random.default_rng(4)
    wanted = stats.bootstrap((values,), np.mean, n_resamples=10_000, rng=rng, batch=500)
    spread = values.std() / 2000**0.5
    assert bootstrap_interval(values) == pytest.approx(wanted.confidence_interval, abs=0.1 * spread)


def test_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(300)
    assert bootstrap_interval(values, np.arange(300)) == bootstrap_interval(values)
    # Five equal samples of a group are worth one, whatever the groups are called.
    names = np.repeat([f"image {i}" for i in rng.permutation(300)], 5)
    repeated = bootstrap_interval(np.repeat(values, 5), names)
    assert repeated == pytest.approx(bootstrap_interval(values), abs=2e-3)
    low, high = bootstrap_interval(np.repeat(values, 5))
    assert high - low == pytest.approx((repeated[1] - repeated[0]) / 5**0.5, rel=0.05)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    wide, narrow = bootstrap_interval(values, confidence=0.99), bootstrap_interval(values)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


def test_a_bootstrap_without_spread_has_no_width() -> None:
    assert bootstrap_interval(np.ones(30)) == (1.0, 1.0)
    assert bootstrap_interval([3.5]) == (3.5, 3.5)
    assert bootstrap_interval([1.0, 2.0, 3.0], [7, 7, 7]) == (2.0, 2.0)


@pytest.mark.parametrize("kind", ["hits", "numbers", "groups of numbers"])
def test_ten_thousand_resamples_of_fifty_thousand_take_less_than_a_second(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.random(50_000) < 0.7 if kind == "hits" else rng.exponential(size=50_000)
    groups = np.arange(50_000) // 5 if kind.startswith("groups") else None
    start = time.process_time()
    bootstrap_interval(values, groups, resamples=10_000)
    assert time.process_time() - start < 1


def test_is_exported() -> None:
    assert clip_jax.evaluation.bootstrap_interval is bootstrap_interval
    assert set(clip_jax.evaluation.__all__) <= set(dir(clip_jax.evaluation))
    with pytest.raises(AttributeError, match="absent"):
        clip_jax.evaluation.absent  # noqa: B018


# --- Shares -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "right"), [(1, 0), (7, 7), (20, 3), (50_000, 31_660)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_an_accuracy_has_wilsons_interval(number: int, right: int, confidence: float) -> None:
    wanted = stats.binomtest(right, number).proportion_ci(confidence, method="wilson")
    got = share_interval(hits_of(number, right), confidence=confidence)
    assert got == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    alone = share_interval(hits_of(number, right), np.arange(number), confidence)
    assert alone == got


def test_a_group_of_equal_hits_counts_once() -> None:
    hits = hits_of(2000, 1400)
    low, high = share_interval(np.repeat(hits, 5), np.repeat(np.arange(2000), 5))
    assert (low, high) == pytest.approx(share_interval(hits), abs=1e-4)
    low, high = share_interval(np.ones(100), np.repeat(np.arange(20), 5))
    assert (low, high) == pytest.approx(share_interval(np.ones(20)), abs=0.02)


def test_a_share_of_many_groups_has_the_bootstraps_interval() -> None:
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(2000), rng.integers(1, 9, 2000))
    hits = (rng.random(len(image)) < rng.beta(2, 1, 2000)[image]).astype(float)
    low, high = share_interval(hits, image)
    assert (low, high) == pytest.approx(bootstrap_interval(hits, image), abs=0.03 * (high - low))


def solves_wilsons_equation(limits: tuple[float, float], mean: float, variance: float, z: float):
    """Whether each limit is a share from which the mean is z standard errors away."""
    size = mean * (1 - mean) / variance
    for limit in limits:
        assert (limit - mean) ** 2 == pytest.approx(z**2 * limit * (1 - limit) / size)
    assert limits[0] < mean < limits[1]


def test_a_share_of_three_groups_by_hand() -> None:
    hits, groups = [1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2]
    # Sums 1, 2, 0 deviate from the mean 1/2 of two by 0, 1, -1; of three groups.
    variance = 3 / 2 * (0 + 1 + 1) / 6**2
    limits = share_interval(hits, groups)
    solves_wilsons_equation(limits, 1 / 2, variance, stats.t(2).ppf(0.975))


def test_a_mean_per_class_by_hand() -> None:
    hits, labels = [1, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]
    # Two samples of a class differ 8/15 as often as two of any class would: 8/7 samples of prior,
    # with 5/8 right, which leaves accuracies of 1/3 and 11/12 and of each variance 36/43.
    variance = 36 / 43 * (1 / 3 * 2 / 3 + 11 / 12 * 1 / 12) / 4 / 2**2
    limits = mean_per_class_interval(hits, labels)
    solves_wilsons_equation(limits, 5 / 8, variance, 1.959963985)


def test_the_interval_of_a_mean_per_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([3, 5, 8, 9], 2000)
    hits = (rng.random(8000) < np.repeat([0.9, 0.5, 0.7, 0.2], 2000)).astype(float)
    # With large classes it is the textbook's for a stratified sample.
    accuracy = hits.reshape(4, -1).mean(1)
    half = 1.959964 * (accuracy * (1 - accuracy) / 2000).sum() ** 0.5 / 4
    wanted = accuracy.mean() - half, accuracy.mean() + half
    assert mean_per_class_interval(hits, labels) == pytest.approx(wanted, abs=0.01 * half)
    # Without spread there is a width; a class of one sample is no certainty.
    assert mean_per_class_interval(np.ones(40), np.arange(40) // 4) == pytest.approx(
        share_interval(np.ones(40))
    )
    low, high = mean_per_class_interval(hits_of(10, 7), np.arange(10))
    assert (low, high) == pytest.approx(share_interval(hits_of(10, 7)), abs=0.02)


def test_the_interval_of_a_median() -> None:
    ranks = np.random.default_rng(0).permutation(np.arange(1, 1002))
    # The order statistics n/2 ± 1.96 √n/2.
    assert median_interval(ranks) == pytest.approx((501 - 31, 501 + 31), abs=1.5)
    assert median_interval(np.repeat([1, 9], [900, 100])) == (1, 1)
    low, high = median_interval(np.repeat(ranks, 4), np.repeat(ranks, 4))
    assert (low, high) == pytest.approx(median_interval(ranks), abs=2)


# --- Two models ---------------------------------------------------------------------------------


def test_mcnemar_by_hand() -> None:
    # The first model wins 2 of the 12 that differ.
    first = np.array([1.0] * 20 + [1] * 2 + [0] * 10 + [0] * 5)
    second = np.array([1.0] * 20 + [0] * 2 + [1] * 10 + [0] * 5)
    exact = 2 * (1 + 12 + 66) / 2**12
    assert mcnemar_test(first, second, exact=True) == pytest.approx(exact)
    assert exact == pytest.approx(stats.binomtest(2, 12).pvalue)
    assert mcnemar_test(second, first) == pytest.approx(exact - 66 / 2**12)
    assert mcnemar_test(first, first) == mcnemar_test(first, first, exact=True) == 1
    assert mcnemar_test([1, 0], [0, 1]) == mcnemar_test([1, 0], [0, 1], exact=True) == 1


def test_a_paired_difference_and_its_p_value_say_the_same() -> None:
    rng = np.random.default_rng(0)
    seen = []
    for shift in np.linspace(-0.3, 0.3, 25):
        first = rng.normal(size=120)
        second = first + rng.normal(size=120) + shift
        found = paired_difference(first, second)
        assert found.difference == pytest.approx((first - second).mean())
        assert (found.p_value < 0.05) == (not found.low < 0 < found.high)
        wanted = stats.ttest_rel(first, second).pvalue
        assert found.p_value == pytest.approx(wanted, abs=0.02)
        seen.append(found.p_value < 0.05)
    assert 3 < sum(seen) < 22
    swapped = paired_difference(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.02)


def test_a_limit_of_the_interval_has_the_p_value_of_its_confidence() -> None:
    values = np.random.default_rng(0).exponential(size=25)  # skewed
    for confidence in (0.95, 0.7):
        for limit in bootstrap_interval(values, confidence=confidence):
            found = paired_difference(values, np.full(25, limit))
            assert found.p_value == pytest.approx(1 - confidence, abs=2e-3)


def test_a_paired_difference_at_the_edges() -> None:
    hits = hits_of(50, 30)
    assert paired_difference(hits, hits) == (0, 0, 0, 1)
    assert paired_difference([1.0], [0.0]) == (1, 1, 1, 1)  # one sample proves nothing
    certain = paired_difference(np.ones(200), hits_of(200, 100))
    assert 0 < certain.p_value < 5e-4
    wide = paired_difference(hits_of(500, 300), hits_of(500, 280), np.arange(500) // 10)
    assert wide.high - wide.low > 1.5 * (lambda d: d.high - d.low)(
        paired_difference(hits_of(500, 300), hits_of(500, 280))
    )


# --- Rows ---------------------------------------------------------------------------------------


def test_a_row_is_flat() -> None:
    hits, labels = hits_of(50, 30), np.arange(50) % 7
    row = metrics_row(
        {
            "accuracy_top1": hits,
            "mean_per_class_accuracy": per_class_estimate(hits, labels),
            "nll": mean_estimate(hits * 7),
            "median_rank": median_estimate(labels),
        }
    )
    low, high = share_interval(hits)
    assert row["accuracy_top1"] == pytest.approx(0.6)
    assert (row["accuracy_top1_low"], row["accuracy_top1_high"]) == (low, high)
    wanted = np.mean([hits[labels == c].mean() for c in range(7)])
    assert row["mean_per_class_accuracy"] == pytest.approx(wanted)
    assert row["nll"] == pytest.approx(4.2)
    assert (row["nll_low"], row["nll_high"]) == bootstrap_interval(hits * 7)
    assert row["median_rank"] == 3
    names = ["accuracy_top1", "mean_per_class_accuracy", "nll", "median_rank"]
    assert list(row) == [name + end for name in names for end in ("", "_low", "_high")]
    for name in names:
        assert type(row[name]) is float
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_the_groups_of_a_row() -> None:
    hits, image = np.repeat(hits_of(50, 30), 5), np.repeat(np.arange(50), 5)
    row = metrics_row({"recall": hits, "other": Estimate(0.5, 0.4, 0.6)}, image)
    assert (row["recall_low"], row["recall_high"]) == share_interval(hits, image)
    assert row["other_high"] == 0.6


# --- A user's mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), r"\(0,\).*at least one"),
        (lambda: bootstrap_interval([0.5, np.nan]), r"values\[1\] is not finite"),
        (lambda: bootstrap_interval([[1.0]]), r"\(1, 1\): accepted are \(N,\) numbers"),
        (lambda: bootstrap_interval(["a"]), "accepted are"),
        (lambda: bootstrap_interval([1.0, 2.0], [0]), r"groups int64 \(1,\): accepted are \(2,\)"),
        (lambda: bootstrap_interval([1.0, 2.0], [0.5, 1]), "groups float64"),
        (lambda: bootstrap_interval([1.0], confidence=95), "confidence=95: accepted is between"),
        (lambda: bootstrap_interval([1.0], resamples=0), "resamples=0"),
        (lambda: share_interval([2.0, 3.0]), "mean is 2.5; accepted is a share"),
        (lambda: share_interval([1.0], confidence=1), "confidence=1"),
        (lambda: mean_per_class_interval([1.0, 2.0], [0, 1]), "accepted are hits"),
        (lambda: mean_per_class_interval([1.0, 0.0], [0, -1]), "label -1: accepted is 0 or more"),
        (lambda: mean_per_class_interval([1.0, 0.0], [0]), r"labels int64 \(1,\)"),
        (lambda: paired_difference([1.0], [1.0, 0.0]), "1 and 2 values: accepted are those of"),
        (lambda: mcnemar_test([1.0], [np.inf]), r"second\[0\] is not finite"),
    ],
)
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
