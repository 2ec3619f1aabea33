"""Tasks that learn from images: rows, what is part of their identity, and mistakes of a user."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_sets import SEEING, WRONG_NAMES, write_noisy_squares
from scipy.stats import ttest_1samp

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.comparison import differences
from clip_jax.evaluation.jobs import Job, run_jobs
from clip_jax.evaluation.metrics.intervals import share_interval
from clip_jax.evaluation.probe.evaluators import over_seeds
from clip_jax.evaluation.probe.examples import Learning, with_validation
from clip_jax.evaluation.probe.sweep import LAMBDAS, Examples
from clip_jax.evaluation.results import Results
from clip_jax.evaluation.tasks import check_task, run_task

TASKS = ("linear_probe", "knn", "few_shot")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    root = tmp_path_factory.mktemp("photos")
    test, train = (
        write_noisy_squares(root / "test", 0, 10),
        write_noisy_squares(root / "train", 1, 20),
    )
    return TaskData(path=test, train_data=train)


def test_rows_of_a_probe_and_of_neighbours(data: TaskData) -> None:
    for task in ("linear_probe", "knn"):
        (row,) = run_task(task, SEEING, data)
        # A fifth of the images of two classes look like the third.
        hits = round(30 * row["accuracy_top1"])
        assert hits in (25, 26)
        low, high = share_interval(np.arange(30) < hits)
        assert (row["accuracy_top1_low"], row["accuracy_top1_high"]) == pytest.approx((low, high))
        assert row["mean_per_class_accuracy"] == pytest.approx(hits / 30)
        assert (row["num_images"], row["num_classes"], row["dataset"]) == (30, 3, data.path)
    assert run_task("zero_shot", SEEING, data)[0]["accuracy_top1"] < 0.5


def test_probe_holds_a_tenth_out_unless_validation_images_are_given(
    data: TaskData, tmp_path: Path
) -> None:
    (row,) = run_task("linear_probe", SEEING, data)
    assert (row["num_train_images"], row["num_validation_images"]) == (54, 6)
    assert row["lambda"] in LAMBDAS
    validation = write_noisy_squares(tmp_path / "validation", 2, 4)
    (row,) = run_task("linear_probe", SEEING, dataclasses.replace(data, validation_data=validation))
    assert (row["num_train_images"], row["num_validation_images"]) == (60, 12)


def test_few_shots_are_a_row_each_with_an_interval_over_seeds(data: TaskData) -> None:
    rows = run_task("few_shot", SEEING, data)
    assert [row["shots"] for row in rows] == [1, 2, 4, 8, 16]
    assert [row["dataset"] for row in rows] == [f"{data.path}/{s} shots" for s in (1, 2, 4, 8, 16)]
    for row in rows:
        assert 0 <= row["accuracy_top1_low"] <= row["accuracy_top1"] <= row["accuracy_top1_high"]
    assert rows[-1]["accuracy_top1"] == pytest.approx(26 / 30, abs=0.04)


def test_interval_over_seeds_is_that_of_a_t_test() -> None:
    values = np.array([0.5, 0.55, 0.62, 0.4, 0.51])
    expected = ttest_1samp(values, 0).confidence_interval()
    assert over_seeds(values) == pytest.approx((values.mean(), *expected))
    assert over_seeds(np.array([1.0, 0.9])).high == 1
    assert over_seeds(np.array([0.0, 0.1])).low == 0
    assert over_seeds(np.ones(3)) == (1, 1, 1)


def learning(labels: list[int]) -> Learning:
    train = Examples(np.arange(len(labels))[:, None], np.asarray(labels))
    return Learning(train, None, train, np.arange(len(labels)), ("a", "b", "c"), {})


def test_held_out_images_are_of_each_class_and_leave_one() -> None:
    labels = [0] * 40 + [1] * 3 + [2]
    train, validation = with_validation(learning(labels))
    assert np.bincount(train.labels).tolist() == [36, 2, 1]
    assert np.bincount(validation.labels, minlength=3).tolist() == [4, 1, 0]
    rows = np.concatenate([train.features, validation.features])[:, 0]
    assert sorted(rows) == list(range(44))
    with pytest.raises(UserError, match="no class has two training images"):
        with_validation(learning([0, 1, 2]))


def test_results_go_on_compare_and_know_the_training_images(data: TaskData, tmp_path: Path) -> None:
    train = shutil.copytree(str(data.train_data), tmp_path / "train")
    data = dataclasses.replace(data, train_data=str(train))
    results, said = Results(tmp_path / "results"), list[str]()

    def run(model: str) -> None:
        said.clear()
        jobs = [Job(task, data) for task in TASKS]
        run_jobs(model, model * 64, SEEING, jobs, results, say=said.append)

    run("a")
    assert len(results.rows) == 2 + 5
    assert results.samples(results.rows[0])["classnames"].tolist() == sorted(WRONG_NAMES)
    run("a")
    assert [line.endswith("finished before") for line in said] == [True] * 3
    run("b")
    compared = differences(results)
    assert {row["task"] for row in compared} == set(TASKS)
    assert all(row["difference"] == 0 for row in compared)
    # One image less to learn from, or another label, is another result.
    (train / "red" / "1.png").rename(train / "blue" / "1b.png")
    run("a")
    assert not any(line.endswith("finished before") for line in said)


def other_class(root: Path) -> dict[str, Any]:
    return {"train_data": write_noisy_squares(root / "more", 0, 2, WRONG_NAMES | {"grey": "red"})}


def class_missing(root: Path) -> dict[str, Any]:
    (root / "names.txt").write_text("red\ngreen\nblue\n")
    train = write_noisy_squares(root / "less", 0, 2, {"red": "red", "green": "green"})
    return {"train_data": train, "classnames": str(root / "names.txt")}


BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no training images": (lambda _: {"train_data": None}, "train_data=None: the task learns from"),
    "another class": (other_class, "has 'grey'; or give all names by --classnames"),
    "no image of a class": (class_missing, "has no image of 'blue'; each class needs one"),
    "nothing there": (lambda root: {"train_data": str(root / "gone")}, "gone"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(name: str, data: TaskData, tmp_path: Path) -> None:
    changes, message = BAD[name]
    with pytest.raises(UserError) as caught:
        check_task("linear_probe", dataclasses.replace(data, **changes(tmp_path)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_of_damaged_images_has_none(data: TaskData, tmp_path: Path) -> None:
    train = shutil.copytree(str(data.train_data), tmp_path / "train")
    for image in (train / "red").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match="has no image of 'red'; each class needs one"):
        run_task("few_shot", SEEING, dataclasses.replace(data, train_data=str(train)))


def test_the_images_of_the_test_teach_nothing(data: TaskData, tmp_path: Path) -> None:
    others = write_noisy_squares(tmp_path / "others", 7, 10)  # other images under the same names
    check_task("knn", dataclasses.replace(data, train_data=others))
    with pytest.raises(UserError, match="holds the images of the test"):
        check_task("knn", dataclasses.replace(data, train_data=data.path))


def test_features_before_the_projection(data: TaskData) -> None:
    unprojected = dataclasses.replace(data, features="unprojected")
    with pytest.raises(UserError, match="features='unprojected': training has none"):
        run_task("knn", SEEING, unprojected)
    blind = dataclasses.replace(SEEING, embed_pooled=lambda images: np.ones((len(images), 2), "f4"))
    assert run_task("knn", blind, data)[0]["accuracy_top1"] > 0.8
    assert run_task("knn", blind, unprojected)[0]["accuracy_top1"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="features: are the same in every row"):
        run_task("linear_probe", blind, unprojected)
