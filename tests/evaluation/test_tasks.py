"""Tasks: labels from data, seen and unseen names, and real photos where they are at hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from pictures import encode
from PIL import Image
from shards import write_shard

from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.tasks import TaskData, check_task, run_task
from clip_jax.images.transform import ImageTransform

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def embed_image(images: np.ndarray) -> np.ndarray:
    """The mean colour as an embedding: right for plain squares."""
    mean = images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def embed_text(texts: list[str]) -> np.ndarray:
    rows = []
    for text in texts:
        row = np.ones(3) * 0.1
        for name, colour in COLOURS.items():
            row += np.asarray(colour) * (name in text)
        rows.append(row / np.linalg.norm(row))
    return np.asarray(rows, np.float32)


EMBEDDERS = Embedders(embed_image, embed_text, ImageTransform(image_size=8))


def shard(path: Path, labels: list[dict]) -> Path:
    """A tar of plain squares; each label is the JSON of one sample."""
    content = []
    for index, label in enumerate(labels):
        square = encode(Image.new("RGB", (12, 10), COLOURS[label["class"]]), "PNG")
        text = f"a {label['class']} square".encode()
        members = {"png": square, "txt": text, "json": json.dumps(label).encode()}
        content.append((f"{index:06d}", members))
    write_shard(path, content)
    return path


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    names = ["red", "green", "blue", "red", "blue"]
    numbers = {"red": 2, "green": 0, "blue": 1}
    return shard(tmp_path / "0.tar", [{"class": n, "class_id": numbers[n]} for n in names])


def test_labels_by_name_and_by_number(squares: Path, tmp_path: Path) -> None:
    by_name = TaskData(path=str(squares), templates="photo")
    (row,) = run_task("zero_shot", EMBEDDERS, by_name)
    assert (row["accuracy_top1"], row["num_classes"], row["num_images"]) == (1.0, 3, 5)
    classnames = tmp_path / "names.txt"
    classnames.write_text("green\nblue\nred\n")
    by_number = TaskData(path=str(squares), label_key="class_id", classnames=str(classnames))
    assert run_task("zero_shot", EMBEDDERS, by_number)[0]["accuracy_top1"] == 1.0
    classnames.write_text("blue\ngreen\nred\n")  # the wrong order must show
    assert run_task("zero_shot", EMBEDDERS, by_number)[0]["accuracy_top1"] == pytest.approx(2 / 5)


def test_equal_captions_are_right_for_every_image(squares: Path) -> None:
    (row,) = run_task("retrieval", EMBEDDERS, TaskData(path=str(squares)))
    assert row["image_to_text_recall_at_1"] == 1.0
    assert row["text_to_image_recall_at_1"] == 1.0


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("zero-shot", {}, r"^config\.evaluations\[1\]\.task='zero-shot': choose of zero_shot"),
        ("zero_shot", {"path": ""}, r"^config\.evaluations\[1\]\.data\.path='': .*needs images"),
        ("retrieval", {"path": "nowhere"}, r"^config\.evaluations\[1\]\.data\.path=nowhere: "),
        ("zero_shot", {"label_key": "colour"}, r"^config\.evaluations\[1\]: .* field 'colour'"),
        ("zero_shot", {"label_key": "class_id"}, "give their names"),
        ("zero_shot", {"templates": "nosuch"}, "nosuch"),
        ("zero_shot", {"classnames": "missing.txt"}, "missing.txt"),
        ("zero_shot", {"classnames": "two.txt"}, "blue"),
    ],
)
def test_mistakes_show_before_the_work(
    squares: Path, task: str, changes: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(squares.parent)
    Path("two.txt").write_text("red\ngreen\n")
    data = TaskData(**({"path": str(squares)} | changes))
    with pytest.raises(UserError, match=message):
        check_task(task, data, "config.evaluations[1]")


def test_glyph_retrieval_keeps_seen_and_unseen_names_apart() -> None:
    rows = run_task("glyphs/retrieval", EMBEDDERS, TaskData())
    queries = {row["dataset"]: row["num_image_queries"] for row in rows}
    assert queries["glyphs/test"] == sum(queries.values()) / 2
    assert abs(queries["glyphs/test/unseen_names"] - 670) < 10
    assert {row["num_texts"] for row in rows} == {queries["glyphs/test"]}
    (letters,) = run_task("glyphs/letters", EMBEDDERS, TaskData())
    assert letters["num_classes"] == 52


def test_grocery_photos(shared_data: Path) -> None:
    """Real shards: 486 photos, 81 classes and 43 coarse ones, by number and file of names."""
    grocery = shared_data / "grocery"
    for key, names, count in (("class", "", 81), ("coarse", "coarse_", 43)):
        classnames = str(grocery / f"{names}classnames.txt")
        data = TaskData(
            path=str(grocery / "test"),
            label_key=f"{key}_id",
            classnames=classnames,
            templates="none",
        )
        (row,) = run_task("zero_shot", EMBEDDERS, data)
        assert (row["num_images"], row["num_classes"]) == (486, count)


def test_emoji(shared_data: Path) -> None:
    (row,) = run_task("retrieval", EMBEDDERS, TaskData(path=str(shared_data / "emoji")))
    assert (row["num_images"], row["num_texts"]) == (2180, 2180)
