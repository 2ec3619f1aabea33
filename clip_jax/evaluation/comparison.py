"""Differences between models on the same samples, from the arrays behind their rows."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from clip_jax.evaluation.metrics.paired import mcnemar_test, paired_difference
from clip_jax.evaluation.results import Results, Row
from clip_jax.evaluation.zero_shot import GROUPS, METRIC

_SAME = ("task", "dataset", "split", "data_hash")


class Pair(NamedTuple):
    """Rows of two models on the same data, with the arrays behind them."""

    first: Row
    second: Row
    of_first: dict[str, np.ndarray]
    of_second: dict[str, np.ndarray]


def pairs(results: Results) -> Iterator[Pair]:
    """Yields the first model's row of each set and task with that of every other model."""
    rows = [row for row in results.rows if "error" not in row]
    for number, first in enumerate(rows):
        key = [first.get(name) for name in _SAME]
        earlier = {row["model"] for row in rows[:number] if [row.get(n) for n in _SAME] == key}
        if earlier:
            continue
        for second in rows[number + 1 :]:
            same = [second.get(name) for name in _SAME] == key
            if same and second["model"] != first["model"]:
                yield Pair(first, second, results.samples(first), results.samples(second))


def differences(results: Results) -> list[dict[str, Any]]:
    """Compares the models of a folder metric by metric, in the order of its rows.

    Returns rows of `task`, `dataset`, `metric`, `model`, `against`, and the difference
    model − against: `difference`, its 95 % interval `difference_low` and `difference_high`,
    `p_value` (bootstrap), and for hits `mcnemar_p_value`.
    """
    found = []
    for pair in pairs(results):
        if not are_alike(pair.of_first, pair.of_second):
            continue
        for key in pair.of_first:
            name = key.removeprefix(METRIC)
            if name == key or key not in pair.of_second:
                continue
            first, second = pair.of_first[key], pair.of_second[key]
            if len(first) != len(second):
                continue
            groups = pair.of_first.get(f"{GROUPS}{name}")
            difference = paired_difference(first, second, groups)
            row = {
                "task": pair.first["task"],
                "dataset": pair.first["dataset"],
                "metric": name,
                "model": pair.first["model"],
                "against": pair.second["model"],
                "difference": difference.difference,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "p_value": difference.p_value,
            }
            if groups is None and np.isin(np.concatenate([first, second]), (0, 1)).all():
                row["mcnemar_p_value"] = mcnemar_test(first, second)
            found.append(row)
    return found


def are_alike(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Whether the arrays behind two rows are of the same records, with the same labels."""
    return all(
        np.array_equal(first.get(key, ()), second.get(key, ()))
        for key in ("records", "labels", "image_of_text")
    )
