"""Evaluators of labelled images beside plain zero-shot: several labels, robustness, neighbours."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_sets import COLOURS, SEEING, square

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation import robustness
from clip_jax.evaluation.recognition import fit_ensemble, multilabel
from clip_jax.evaluation.tasks import check_task, run_task


@pytest.fixture
def squares(tmp_path: Path) -> TaskData:
    """Three squares a colour, in a folder each."""
    for colour in COLOURS:
        (tmp_path / "squares" / colour).mkdir(parents=True)
        for number in range(3):
            path = tmp_path / "squares" / colour / f"{number}.png"
            path.write_bytes(square(colour, (8 + number, 9)))
    return TaskData(path=str(tmp_path / "squares"), templates="none")


def table(folder: Path, rows: list[dict[str, Any]]) -> TaskData:
    folder.mkdir()
    for number, row in enumerate(rows):
        (folder / f"{number}.png").write_bytes(square(row.pop("colour")))
        row["file_name"] = f"{number}.png"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text)
    (folder / "names.txt").write_text("red\ngreen\nblue\n")
    return TaskData(
        path=str(folder), classnames=str(folder / "names.txt"), label_key="seen", templates="none"
    )


def test_several_labels_are_scikit_learns_average_precision(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    colours = ["red", "green", "blue", "red", "green"]
    seen = [[0], [1, 2], [2], [1], [0, 1]]  # the model cannot know some of these
    rows = [{"colour": c, "seen": s} for c, s in zip(colours, seen, strict=True)]
    data = table(tmp_path / "data", rows)
    check_task("multilabel", data)
    (row,) = multilabel(SEEING, data)
    targets = np.array([[c in s for c in range(3)] for s in seen])
    pixels = [np.full((1, 8, 8, 3), COLOURS[c], np.uint8) for c in colours]
    scores = np.concatenate([SEEING.embed_image(p) for p in pixels])
    scores = scores @ SEEING.embed_text(list(COLOURS)).T
    # Equal scores share a threshold with scikit-learn too.
    expected = sklearn.average_precision_score(targets, np.round(scores, 5), average="macro")
    assert row["mean_average_precision"] == pytest.approx(expected)
    assert 0 < row["mean_average_precision_11_points"] <= 1
    assert row["num_images"] == 5


def test_labels_beyond_the_classes_are_named(tmp_path: Path) -> None:
    data = table(tmp_path / "data", [{"colour": "red", "seen": [3]}])
    with pytest.raises(UserError, match=r"record .*seen=\[3\]: accepted are class numbers, 0 to 2"):
        check_task("multilabel", data)


def test_an_image_finds_its_class(squares: TaskData) -> None:
    (row,) = run_task("image_to_image", SEEING, squares)
    assert row["image_to_image_recall_at_1"] == 1
    assert row["num_image_queries"] == 9


def test_small_images_keep_their_colour(squares: TaskData) -> None:
    rows = run_task("resolutions", SEEING, squares)
    assert [row["dataset"].rpartition("/")[2] for row in rows] == [
        "8px", "6px", "4px", "3px", "2px", "1px"
    ]  # fmt: skip
    assert all(row["accuracy_top1"] == 1 for row in rows)


def test_corruptions_change_the_pixels(squares: TaskData, monkeypatch) -> None:
    """By severity: the first two leave the colour, others swap it for the next."""

    def corrupt(images: np.ndarray, kind: str, severity: int) -> np.ndarray:
        return images if severity <= 2 else np.roll(images, 1, axis=-1)

    monkeypatch.setattr(robustness, "KINDS", ("fog", "snow"))
    monkeypatch.setattr(robustness, "corrupt", corrupt)
    summary, *kinds = run_task("corruptions", SEEING, squares)
    assert summary["clean_accuracy_top1"] == 1
    assert summary["accuracy_top1"] == summary["relative_accuracy"] == pytest.approx(0.4)
    assert [row["dataset"].rpartition("/")[2] for row in kinds] == ["fog", "snow"]
    assert all(row["accuracy_top1"] == pytest.approx(0.4) for row in kinds)


def test_an_ensemble_weighs_the_model_that_knows(squares: TaskData) -> None:
    blind = dataclasses.replace(
        SEEING, embed_image=lambda x: np.full((len(x), 3), 3**-0.5, np.float32)
    )
    mixture = fit_ensemble((blind, SEEING), squares, "probabilities")
    assert mixture.weights[1] > 0.95
