"""Accuracy under shift beside that without: which rows, which classes, and the plot on the page."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import pictures, sections, words

from clip_jax.evaluation.effective_robustness import shifts
from clip_jax.evaluation.prompts.published import published
from clip_jax.evaluation.results import Results
from clip_jax.evaluation.zero_shot import METRIC
from clip_jax.report.evaluation import write_evaluation_page

HITS = {"ant": [1, 1, 1, 0], "bee": [1, 0, 0, 0], "cat": [0, 0, 0, 0]}


def row_of(
    dataset: str,
    hits: dict[str, list[int]],
    model: str = "a",
    task: str = "zero_shot",
    data_hash: str = "d",
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A row of classes with hits, and the arrays behind it."""
    values = np.concatenate([np.asarray(x, float) for x in hits.values()])
    labels = np.repeat(range(len(hits)), [len(x) for x in hits.values()])
    accuracy = float(values.mean())
    row = {"model": model, "model_hash": model, "task": task, "dataset": dataset}
    row |= {"data_hash": data_hash, "num_images": len(values), "accuracy_top1": accuracy}
    row |= {"accuracy_top1_low": accuracy - 0.01, "accuracy_top1_high": accuracy + 0.01}
    samples = {"labels": labels, "classnames": np.asarray(list(hits))}
    return row, samples | {f"{METRIC}accuracy_top1": values}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    found = Results(tmp_path / "results")
    found.add([row_of("imagenet1k", HITS)])
    return found


def test_all_classes(results: Results) -> None:
    results.add([row_of("imagenetv2", {**HITS, "ant": [1, 1, 1, 1]})])
    (shift,) = shifts(results)
    assert (shift.shifted, shift.standard) == ("imagenetv2", "imagenet1k")
    assert shift.on_standard == pytest.approx((4 / 12, 4 / 12 - 0.01, 4 / 12 + 0.01))
    assert shift.on_shifted.value == pytest.approx(5 / 12)


def test_a_part_of_the_classes(results: Results) -> None:
    """ImageNet counts by its images of these classes alone: 4 of 8 are right."""
    results.add([row_of("imagenet-r", {"bee": [1], "ant": [1, 0]})])
    (shift,) = shifts(results)
    assert shift.standard == "imagenet1k, classes of imagenet-r"
    assert shift.on_standard.value == pytest.approx(4 / 8)
    assert shift.on_standard.low < 4 / 8 < shift.on_standard.high
    assert shift.on_shifted.value == pytest.approx(2 / 3)


def test_classes_with_names_of_their_own(results: Results) -> None:
    """ObjectNet's alarm clock is ImageNet's analog and digital clocks; ants are no part of it."""
    known, whole = published("objectnet"), published("imagenet1k")
    assert known is not None
    assert whole is not None
    assert len(known.imagenet) == len(set(known.imagenet)) == 125
    names = [x.names[0] for x in whole.classes if x.label in known.imagenet]
    hits: dict[str, list[int]] = {"ant": [1, 1, 1, 0], **{name: [0, 0] for name in names}}
    hits["analog clock"] = [1, 0]
    results.add([row_of("imagenet1k", hits), row_of("objectnet", {"alarm clock": [1, 0, 0]})])
    (shift,) = shifts(results)
    assert shift.standard == "imagenet1k, classes of objectnet"
    assert shift.on_standard.value == pytest.approx(1 / 250)


def test_other_classes(results: Results) -> None:
    results.add([row_of("imagenet-r", {"bee": [1], "alarm clock": [1, 0]})])
    (shift,) = shifts(results)
    assert (shift.standard, shift.on_standard.value) == ("imagenet1k", pytest.approx(4 / 12))


def test_a_set_under_corruptions(results: Results) -> None:
    spoiled = {"ant": [0, 1], "bee": [0]}
    for data_hash in "de":
        results.add([row_of("photos", spoiled, data_hash=data_hash)])
        results.add([row_of("photos/corruptions", spoiled, task="corruptions")])
        results.add([row_of("photos/fog", spoiled, task="corruptions")])
    found = list(shifts(results))
    assert not found  # the newest row of the photos is of other data
    results.add([row_of("photos/corruptions", spoiled, task="corruptions", data_hash="e")])
    (shift,) = shifts(results)
    assert (shift.shifted, shift.standard) == ("corruptions", "photos")


def test_another_model_has_no_standard_row(results: Results) -> None:
    results.add([row_of("imagenetv2", HITS, model="b")])
    results.add([({"model": "a", "task": "zero_shot", "dataset": "imagenet-a", "error": "x"}, {})])
    assert not list(shifts(results))
    assert "Effective robustness" not in write_evaluation_page(results).read_text("utf-8")


def test_the_page_has_a_plot_for_each_shifted_set(results: Results) -> None:
    """Accuracies of 0 and 1, which logits do not have, are drawn too."""
    results.add([row_of("imagenet1k", HITS, model="b")])
    for model, hits in (("a", [0, 0]), ("b", [1, 1])):
        results.add([row_of("imagenet-r", {"bee": hits, "ant": hits}, model)])
        results.add([row_of("imagenetv2", {**HITS, "cat": hits}, model)])
    page = write_evaluation_page(results).read_text("utf-8")
    shown = sections(page)["Effective robustness"]
    assert "The line is equal accuracy; it is no fit" in words(shown)
    _, light, _, other = (  # each after its dark version
        np.asarray(x.convert("RGBA")) for x in pictures(shown)
    )
    blue = (np.abs(light[..., :3].astype(int) - (37, 99, 235)).max(-1) < 30) & (light[..., 3] > 200)
    assert blue.sum() > 50  # the first model's point
    assert light.tobytes() != other.tobytes()
