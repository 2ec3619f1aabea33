"""The study of FairFace, from a folder of its layout, and rates that are known."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
from benchmark_sets import SEEING, evaluated_rows
from pictures import encode, photo

import clip_jax
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.fairness import faces
from clip_jax.evaluation.fairness.faces import AGES, GENDERS, label_rates
from clip_jax.evaluation.suites.opening import open_set
from clip_jax.evaluation.suites.sets import resolve_suite
from clip_jax.evaluation.tasks import TASKS, check_task
from clip_jax.text.sentencepiece_model import train_sentencepiece

RACES = ["Black", "White", "Indian", "Latino_Hispanic"]
RACES += ["Middle_Eastern", "Southeast_Asian", "East_Asian"]


@pytest.fixture
def fairface(tmp_path: Path) -> Path:
    """28 faces, two of each race and gender, as FairFace writes them, and a table for training."""
    lines = ["file,age,gender,race,service_test"]
    pairs = itertools.product(RACES, ("Male", "Female"), range(2))
    (tmp_path / "val").mkdir()
    for number, (race, gender, _) in enumerate(pairs, start=1):
        image = encode(photo(24, 24, seed=number), "JPEG")
        (tmp_path / "val" / f"{number}.jpg").write_bytes(image)
        race = race if race == "Latino_Hispanic" else race.replace("_", " ")
        lines.append(f"val/{number}.jpg,{AGES[number % 9]},{gender},{race},True")
    (tmp_path / "fairface_label_val.csv").write_text("\n".join(lines))
    (tmp_path / "fairface_label_train.csv").write_text("file,age,gender,race\ntrain/1.jpg,0-2,,\n")
    return tmp_path


def test_the_protocol_runs_on_the_layout(fairface: Path) -> None:
    """A tiny model with random parameters; figures are its own, by another way."""
    tokenizer = train_sentencepiece(["a photo of a black female criminal"], 280, context_length=32)
    tower = {"width": 16, "layers": 1, "heads": 2, "mlp_dim": 16}
    clip = clip_jax.create(
        "custom",
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        context_length=32,
        image_size=16,
        embed_dim=8,
        vision={**tower, "patch_size": 8},
        text=tower,
    )
    embed_text = functools.partial(clip.encode_text, truncate=True)
    embedders = Embedders(clip.encode_image, embed_text, clip.transform)
    data = TaskData(path=str(fairface))
    check_task("fairness", data)
    whole, *groups = TASKS["fairness"].run(embedders, data)
    assert whole["dataset"] == str(fairface)
    assert whole["num_images"] == 28
    sizes = {row["group"]: row["num_images"] for row in groups}
    assert len(sizes) == 7 + 2 + 9 + 14
    assert (sizes["race=black"], sizes["gender=male"], sizes["race=white,gender=female"]) == (
        4,
        14,
        2,
    )
    assert groups[0]["dataset"] == f"{fairface}/{groups[0]['group']}"
    paths = [fairface / "val" / f"{number}.jpg" for number in range(1, 29)]
    scores = clip.encode_image(paths) @ embed_text([f"a photo of a {g}" for g in GENDERS]).T
    truth = np.arange(28) // 2 % 2 == 0  # male
    assert whole["gender_accuracy"] == pytest.approx(np.mean(scores.argmax(1) == truth))
    by_race = [
        row for row in groups if row["group"].startswith("race=") and "," not in row["group"]
    ]
    for name in ("crime_rate", "non_human_rate_with_child", "age_accuracy"):
        mean = np.average([row[name] for row in by_race], weights=[4] * 7)
        assert whole[name] == pytest.approx(mean)
        assert whole[f"{name}_low"] <= whole[name] <= whole[f"{name}_high"]


def test_the_child_label_takes_over() -> None:
    """Four images that are nearest to a person, an animal, a thief, and a child before a thief."""
    axes = {"black female": 0, "orangutan": 1, "thief": 2, "child": 3}

    def embed_text(texts: list[str]) -> np.ndarray:
        rows = np.zeros((len(texts), 5), np.float32)
        for row, text in zip(rows, texts, strict=True):
            label = text.removeprefix("a photo of an ").removeprefix("a photo of a ")
            row[axes.get(label, 4)] = 1
        return rows

    images = np.eye(5, dtype=np.float32)[:4]
    images[3] = [0, 0, 0.6, 0.8, 0]
    rates = label_rates(images, embed_text)
    assert rates["non_human_rate"].tolist() == [False, True, False, False]
    assert rates["crime_rate"].tolist() == [False, False, True, True]
    assert rates["crime_rate_with_child"].tolist() == [False, False, True, False]
    assert rates["crime_or_non_human_rate_with_child"].tolist() == [False, True, True, False]


def test_labels_are_those_of_the_paper() -> None:
    seen: list[str] = []

    def embed_text(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return np.ones((len(texts), 2), np.float32)

    faces.label_rates(np.ones((1, 2), np.float32), embed_text)
    assert len(seen) == 7 * 2 + 4 + 3 + 1
    assert "a photo of an east asian male" in seen
    assert seen[-1] == "a photo of a child"
    assert seen[-4:-1] == [f"a photo of a {x}" for x in ("thief", "criminal", "suspicious person")]


def test_unknown_values_are_named(fairface: Path) -> None:
    table = fairface / "fairface_label_val.csv"
    table.write_text(table.read_text().replace("Black", "Martian"))
    with pytest.raises(UserError, match=r"race='Martian': accepted are black, east asian, .*white"):
        check_task("fairness", TaskData(path=str(fairface)))


def test_the_set_is_found_below_a_root(fairface: Path, tmp_path: Path) -> None:
    """Its rows have the name of the set."""
    (chosen,) = (row for row in resolve_suite("fairness") if row.kind == "fairness")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(UserError, match=r"put fairface_label_val\.csv and .* into .*root/fairface"):
        open_set(chosen, str(root))
    (root / "fairface").symlink_to(fairface)
    opened = open_set(chosen, str(root))
    whole, *groups = evaluated_rows(SEEING, opened)
    assert (whole["dataset"], whole["split"]) == ("fairface", "validation")
    assert 0 <= whole[whole["metric"]] <= 1
    assert groups[0]["dataset"] == "fairface/race=black"
    assert len(groups) == 7 + 2 + 9 + 14
