"""Accuracy on shifted images beside that on unshifted ones (Taori et al. 2020).

Shifts are those of ImageNet, and any set under the common corruptions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clip_jax.evaluation.metrics.rows import Estimate, share_estimate
from clip_jax.evaluation.prompts.published import published
from clip_jax.evaluation.results import Results, Row
from clip_jax.evaluation.zero_shot import METRIC

STANDARD = "imagenet1k"
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet")
_METRIC = "accuracy_top1"


class Shift(NamedTuple):
    """One model on a shifted set, and on the standard one."""

    model: str
    shifted: str
    standard: str  # says which of its images count
    on_shifted: Estimate
    on_standard: Estimate


def shifts(results: Results) -> Iterator[Shift]:
    """Yields each row of a shifted set with the same model's row of the standard set.

    If the shifted set has a part of the standard one's classes, only images of these count there;
    the answers are among all classes.
    """
    rows = {
        (row["model"], row["dataset"]): row
        for row in results.rows
        if row["task"] == "zero_shot" and "error" not in row
    }
    for row in results.rows:
        if "error" in row:
            continue
        dataset, _, change = row["dataset"].rpartition("/")
        if row["task"] == "corruptions" and change == "corruptions":
            standard = rows.get((row["model"], dataset))
            if standard is not None and standard["data_hash"] == row["data_hash"]:
                yield Shift(row["model"], change, dataset, _estimate(row), _estimate(standard))
        elif row["task"] == "zero_shot" and row["dataset"] in SHIFTED:
            standard = rows.get((row["model"], STANDARD))
            if standard is not None:
                yield _of_classes(results, row, standard)


def _of_classes(results: Results, row: Row, standard: Row) -> Shift:
    shifted = row["dataset"]
    samples, part = results.samples(standard), _classes(results, row)
    if samples and np.isin(part, samples["classnames"]).all():
        counts = np.isin(samples["classnames"][samples["labels"]], part)
        if counts.any() and not counts.all():
            found = share_estimate(samples[f"{METRIC}{_METRIC}"][counts])
            name = f"{STANDARD}, classes of {shifted}"
            return Shift(row["model"], shifted, name, _estimate(row), found)
    return Shift(row["model"], shifted, STANDARD, _estimate(row), _estimate(standard))


def _classes(results: Results, row: Row) -> np.ndarray:
    """Returns the names of the standard set's classes that a shifted set has, str (C,)."""
    known, whole = published(row["dataset"]), published(STANDARD)
    if known is not None and known.imagenet and whole is not None:
        return np.asarray([x.names[0] for x in whole.classes if x.label in known.imagenet])
    return results.samples(row).get("classnames", np.zeros(0, str))


def _estimate(row: Row) -> Estimate:
    return Estimate(*(row[f"{_METRIC}{end}"] for end in ("", "_low", "_high")))
