"""`python -m clip_jax.prompts`: the folder it writes, and a test set that leaks."""

import functools
import json
from pathlib import Path

import pytest
from pages import is_self_contained, sections, tiles
from pictures import encode, photo
from programs import assert_mistake, run_program

from clip_jax.data.task_data import TaskData
from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.tasks import check_task, run_task
from clip_jax.loading import load


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(40):
        place = folder / ("validation", "test")[seed // 20] / ("A", "B")[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encode(photo(32, 32, seed), "PNG"))
    (folder / "candidates.txt").write_text("a {}\nthe letter {}\n{} in italics\n")
    (folder / "own.json").write_text('{"A": ["a bold A", "an A"], "B": ["a B"]}')
    return folder


def test_a_choice(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ended = run_program(
        "clip_jax.prompts", f"--model={tiny_run}", f"--data={photos}/validation",
        f"--test_data={photos}/test", f"--templates={photos}/candidates.txt",
        f"--class_prompts={photos}/own.json", "--learn_weights", f"--output={output}",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = json.loads((output / "results.json").read_text())
    names = ["a {}", "the letter {}", "{} in italics", "class prompts of own.json"]
    validation, test = result["validation"], result["test"]
    assert [row["prompts"] for row in validation["candidates"]] == names
    assert (validation["num_images"], test["num_images"], result["num_classes"]) == (20, 20, 2)
    assert [row["prompts"] for row in validation["selection"]] == result["chosen"]
    weights = json.loads((output / "weights.json").read_text())
    assert list(weights) == names
    assert sum(weights.values()) == pytest.approx(1)

    # What the folder says about each set of prompts is what an evaluation finds.
    clip = load(tiny_run)
    encode_text = functools.partial(clip.encode_text, truncate=True)
    embedders = Embedders(clip.encode_image, encode_text, clip.transform)
    (photos / "one.txt").write_text("the letter {}\n")
    own, openai, one = (
        run_task("zero_shot", embedders, TaskData(path=path, templates=templates))[0]
        for path, templates in (
            (f"{photos}/validation", f"{photos}/own.json"),
            (f"{photos}/test", "openai"),
            (f"{photos}/validation", f"{photos}/one.txt"),
        )
    )
    candidates = validation["candidates"]
    assert candidates[3]["accuracy_top1"] == own["accuracy_top1"]
    assert candidates[1]["accuracy_top1_low"] == one["accuracy_top1_low"]
    assert test["ensembles"][0]["accuracy_top1_high"] == openai["accuracy_top1_high"]
    written = "templates.json" if names[3] in result["chosen"] else "templates.txt"
    data = TaskData(path=f"{photos}/test", templates=str(output / written))
    check_task("zero_shot", data)
    (chosen,) = run_task("zero_shot", embedders, data)
    (row,) = (row for row in test["ensembles"] if row["prompts"] == "chosen")
    assert row["accuracy_top1"] == chosen["accuracy_top1"]
    (gain,) = (row for row in test["differences"] if row["prompts"] == "chosen")
    difference = chosen["accuracy_top1"] - openai["accuracy_top1"]
    assert gain["difference"] == pytest.approx(difference)

    ended = run_program(
        "clip_jax.evaluate", f"--model={tiny_run}", "--tasks=zero_shot",
        f"--data={photos}/validation", f"--templates={photos}/own.json",
        f"--output={tmp_path / 'result.json'}",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (again,) = json.loads((tmp_path / "result.json").read_text())["results"]
    assert again["accuracy_top1"] == own["accuracy_top1"]

    page = (output / "report.html").read_text()
    assert is_self_contained(page)
    assert tiles(page)["candidates"] == "4"
    assert {"The choice", "Candidates", f"Test: {photos}/test"} <= set(sections(page))


def test_mistakes(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    begin = ["clip_jax.prompts", f"--model={tiny_run}", f"--output={tmp_path / 'out'}"]
    data = f"--data={photos}/validation"
    leaky = tmp_path / "leaky" / "A"
    leaky.mkdir(parents=True)
    (leaky / "copy.png").write_bytes((photos / "validation" / "A" / "2.png").read_bytes())
    ended = run_program(*begin, data, f"--test_data={leaky.parent}")
    assert_mistake(ended, "1 of its 1 images are in --data too", "copy", "--exclude=FILE")
    assert_mistake(run_program(*begin, f"--data={photos}/test"), "'test' is for tests")
    assert not (tmp_path / "out").exists()
