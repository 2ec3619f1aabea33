"""Skew: hand-computed tables, and the task on data with a column of groups."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from pictures import encode
from PIL import Image
from shards import write_shard

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation import max_skew, min_skew, ndkl
from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.fairness.skew import skew_metrics
from clip_jax.evaluation.metrics.groups import group_rates, worst_group
from clip_jax.evaluation.prompts.published import published
from clip_jax.evaluation.tasks import TASKS, check_task, run_task
from clip_jax.images.transform import ImageTransform

log, log2 = math.log, math.log2


def test_tables_by_hand() -> None:
    """Six items of three groups, A A B A C B, against shares of 1/2, 1/4, 1/4."""
    ranked, desired = [0, 0, 1, 0, 2, 1], [0.5, 0.25, 0.25]
    # First 4: A 3, B 1, C 0, which counts as 1.
    assert max_skew(ranked, desired, 4) == pytest.approx(log(0.75 / 0.5), abs=1e-12)
    assert min_skew(ranked, desired, 4) == pytest.approx(log(0.25 / 0.25), abs=1e-12)
    # First 5: A 3, B 1, C 1.
    assert min_skew(ranked, desired, 5) == pytest.approx(log(0.2 / 0.25), abs=1e-12)
    divergences = [
        log(2),  # A
        log(2),  # A A
        2 / 3 * log(4 / 3) + 1 / 3 * log(4 / 3),  # A A B
        3 / 4 * log(3 / 2),  # and 1/4·log(1)
        3 / 5 * log(6 / 5) + 2 / 5 * log(4 / 5),
        1 / 2 * log(1) + 1 / 3 * log(4 / 3) + 1 / 6 * log(2 / 3),
    ]
    weights = [1 / log2(i + 1) for i in range(1, 7)]
    total = sum(w * d for w, d in zip(weights, divergences, strict=True)) / sum(weights)
    assert ndkl(ranked, desired) == pytest.approx(total, abs=1e-12)


def test_rates_by_hand() -> None:
    hits, groups = np.array([1, 1, 0, 1, 0, 0, 1]), np.array(["a", "a", "a", "b", "b", "b", "b"])
    rates = group_rates(hits, groups)
    assert rates["a"].value == pytest.approx(2 / 3, abs=1e-12)
    assert rates["b"].value == worst_group(hits, groups).value == pytest.approx(0.5, abs=1e-12)
    # Wilson's limits of 2 of 4 (z = 1.959964): 0.5 ± z/(1 + z²/4)·√(1/16 + z²/64).
    z = 1.959963984540054
    half = z / (1 + z * z / 4) * math.sqrt(1 / 16 + z * z / 64)
    assert rates["b"].low == pytest.approx(0.5 - half, abs=1e-12)


def test_metrics_of_a_ranking() -> None:
    images = np.array([[1, 0], [0.9, 0.1], [0.1, 0.9], [0, 1]], np.float32)
    found = skew_metrics(images, np.eye(2, dtype=np.float32), np.array(["f", "m", "m", "m"]), 2)
    # Text 0 ranks f m m m, text 1 the reverse; of the first two, f is 1 and 0 (counted as 1).
    assert found["max_skew_uniform"] == pytest.approx([0, log(2)], abs=1e-12)
    assert found["max_skew_data"] == pytest.approx([log(2), log(2)], abs=1e-12)
    assert found["min_skew_data"] == pytest.approx([log(2 / 3), log(4 / 3)], abs=1e-12)


def embed_image(images: np.ndarray) -> np.ndarray:
    mean = images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32) + 1
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def embed_text(texts: list[str]) -> np.ndarray:
    """Red for men, green for women; "smart" has a part of red, as in a biased model."""
    rows = np.full((len(texts), 3), 1.0)
    for row, text in zip(rows, texts, strict=True):
        words = text.split()
        row[0] += 3 * ("male" in words) + 2 * ("smart" in words)
        row[1] += 3 * ("female" in words) + ("kind" in words)
        row[2] += 2 * ("smart" in words) + 2 * ("kind" in words)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


EMBEDDERS = Embedders(embed_image, embed_text, ImageTransform(image_size=8))


@pytest.fixture
def people(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    samples = []
    for index in range(40):
        is_man = index % 2
        colour = (rng.integers(90, 250), rng.integers(90, 250), rng.integers(0, 250))
        colour = colour if is_man == (colour[0] > colour[1]) else (colour[1], colour[0], colour[2])
        gender = {"gender": ("female", "male")[is_man], "class": ("low", "high")[index % 2]}
        png = encode(Image.new("RGB", (9, 9), colour), "PNG")
        samples.append((f"{index:03d}", {"png": png, "json": json.dumps(gender).encode()}))
    write_shard(tmp_path / "0.tar", samples)
    (tmp_path / "concepts.txt").write_text("smart\nkind\n")
    return tmp_path


def people_data(folder: Path, **changes: object) -> TaskData:
    values = {"path": str(folder / "0.tar"), "group_key": "gender", "skew_k": 10}
    values["classnames"] = str(folder / "concepts.txt")
    return TaskData(**(values | changes))  # type: ignore[arg-type]


def test_the_task_before_and_after_a_projection(people: Path) -> None:
    data = people_data(people, project_out="gender")
    check_task("skew", data)
    (row,) = TASKS["skew"].run(EMBEDDERS, data)
    assert (row["num_images"], row["num_groups"], row["num_prompts"], row["k"]) == (40, 2, 22, 10)
    assert row["max_skew_uniform"] == pytest.approx(row["max_skew_data"])  # the groups are equal
    low, high = row["max_skew_uniform_low"], row["max_skew_uniform_high"]
    assert low - 1e-9 <= row["max_skew_uniform"] <= high + 1e-9
    assert row["max_skew_uniform_projected"] < row["max_skew_uniform"] / 2
    change = row["max_skew_uniform_projected"] - row["max_skew_uniform"]
    assert row["max_skew_uniform_change"] == pytest.approx(change)
    assert row["samples"]["metric/max_skew_uniform"].shape == (22,)


def test_published_prompts() -> None:
    prompts = published("debias_vision_language")
    assert prompts is not None
    assert (len(prompts.classes), len(prompts.templates)) == (29, 11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_key": None}, "group_key=None: give the metadata field"),
        ({"group_key": "region"}, "no metadata field 'region'"),
        ({"skew_k": 40}, "skew_k=40: accepted is less than the 40 images"),
        ({"left_out_group": "male"}, "has 1 groups"),
        ({"project_out": "hair"}, "project_out='hair': accepted are gender, race, or a file"),
    ],
)
def test_mistakes(people: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_task("skew", people_data(people, **changes))


def test_accuracy_by_group_and_projection(people: Path) -> None:
    """Zero-shot rows: the whole, then each group; the classes are names, and one leans to men."""
    (people / "names.txt").write_text("low\nhigh\n")
    data = people_data(people, classnames=str(people / "names.txt"), templates="none")
    whole, *groups = run_task("zero_shot", EMBEDDERS, data)
    assert [row["group"] for row in groups] == ["gender=female", "gender=male"]
    assert [row["num_images"] for row in groups] == [20, 20]
    assert whole["worst_group_accuracy_top1"] == min(row["accuracy_top1"] for row in groups)
    mean = sum(row["accuracy_top1"] for row in groups) / 2
    assert whole["accuracy_top1"] == pytest.approx(mean)
