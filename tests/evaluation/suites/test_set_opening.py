"""Sets in every form of data: found by name, labelled, counted, evaluated, or refused in a line."""

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_sets import (
    COLOURS,
    SEEING,
    captioned,
    classified,
    evaluated_rows,
    npy,
    square,
    write_layout,
)
from loopback import Loopback
from places import REPOSITORY, TESTS
from small_sets import write, write_tfds

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.groups import NO_GROUP
from clip_jax.evaluation.suites.finding import find_data
from clip_jax.evaluation.suites.opening import OpenedSet, open_set
from clip_jax.evaluation.suites.sets import EvaluationSet, all_sets

SEEN = ("red", "green", "blue", "red", "blue")
TEMPLATES = ("a photo of a {c}.", "a {c} thing.")


def row(name: str = "hues", **fields: Any) -> EvaluationSet:
    return EvaluationSet(name, **{"hub": "", "classes": 3, "samples": (5,), **fields})


def evaluated(opened: OpenedSet) -> dict[str, Any]:
    return evaluated_rows(SEEING, opened)[0]


def refused(message: str, chosen: EvaluationSet, root: Path | str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_set(chosen, str(root), **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hues(tmp_path: Path, cache: Path) -> Path:
    write_layout(tmp_path / "hues", classified(*SEEN), list(COLOURS), TEMPLATES)
    return tmp_path


@pytest.mark.parametrize("folder", ["hues", "wds_hues", "wds_hues_test", "vtab-hues"])
def test_folders_in_clip_benchmarks_layout(folder: str, hues: Path) -> None:
    (hues / "hues").rename(hues / folder)
    chosen = row(hub="clip-benchmark/wds_vtab-hues", chance=1 / 3)
    opened = open_set(chosen, str(hues))
    assert opened.labels is not None
    assert opened.labels.names == tuple(COLOURS)
    assert opened.templates == ("a photo of a {}.", "a {} thing.")
    found = evaluated(opened)
    assert (found["accuracy_top1"], found["num_images"]) == (1.0, 5)
    assert (found["dataset"], found["split"], found["metric"]) == ("hues", "test", "accuracy_top1")
    assert found["chance"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_what_clip_benchmark_writes(tmp_path: Path, cache: Path) -> None:
    python, script = REPOSITORY / ".oracle/bin/python", TESTS / "oracle/write_benchmark_sets.py"
    if not [*(REPOSITORY / ".oracle").glob("lib/python*/site-packages/clip_benchmark")]:
        pytest.skip("clip_benchmark is not in .oracle")
    subprocess.run([str(python), str(script), str(tmp_path)], check=True, capture_output=True)
    opened = open_set(row(samples=(7,)), str(tmp_path))
    assert opened.labels is not None
    assert opened.labels.numbers.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert opened.templates == ("a photo of a {}.", "a {} thing.")
    assert evaluated(opened)["accuracy_top1"] == 1.0
    several = open_set(row("many", kind="multilabel", samples=(7,)), str(tmp_path)).targets
    assert several is not None
    assert several.tolist() == [[n % 3 == 0, True, False] for n in range(7)]
    pairs = row("pairs", kind="retrieval", classes=None, samples=(7,), texts=(14,))
    opened = open_set(pairs, str(tmp_path))
    assert opened.source.captions(1) == ("a green square", "one, green")
    assert evaluated(opened)["mean_recall_at_1"] == 1.0


def test_a_wrong_order_of_classes_shows(hues: Path) -> None:
    (hues / "hues" / "classnames.txt").write_text("green\nred\nblue\n")
    assert evaluated(open_set(row(), str(hues)))["accuracy_top1"] == pytest.approx(2 / 5)


def test_a_store_by_its_url(hues: Path) -> None:
    with Loopback(hues) as server:
        opened = open_set(row(), server.url)
        assert opened.data.path == f"{server.url}/hues/test/{{0..1}}.tar"
        assert evaluated(opened)["accuracy_top1"] == 1.0


def test_a_page_of_the_hub_is_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read(place: str, _: Any) -> bytes:
        asked.append(place)
        return b"2" if place.endswith("nshards.txt") else b"classification"

    monkeypatch.setattr("clip_jax.evaluation.suites.layout.read_bytes", read)
    page = "https://huggingface.co/datasets/djghosh/wds_food101_test/tree/main"
    with pytest.raises(
        UserError, match=r"classnames.txt: has 1 names, but food101 has 101 classes"
    ):
        find_data(all_sets()["food101"], page)
    assert asked[0] == "hf://datasets/djghosh/food101/test/nshards.txt"


def test_published_names_are_put_into_the_order_of_the_data(tmp_path: Path, cache: Path) -> None:
    names = ["sad", "angry", "fearful", "happy", "neutral", "disgusted", "surprised"]
    samples = [{"png": square("red"), "cls": b"1"}, {"png": square("red"), "cls": b"5"}]
    write_layout(tmp_path / "fer2013", samples, names)
    opened = open_set(all_sets()["fer2013"], str(tmp_path), subset=True)
    assert opened.labels is not None
    assert opened.labels.names == tuple(names)
    assert opened.labels.numbers.tolist() == [1, 5]
    assert opened.labels.classes[3].names == ("happy", "smiling")
    assert opened.templates[0] == "a photo of a {} looking face."
    refused("2 images in .*expected 7,178", all_sets()["fer2013"], tmp_path)


def test_tfds_folders(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    chosen = row("pets_like", classes=2, samples=(4,), tfds="small_set")
    write_tfds(tmp_path / "tfds")
    opened = open_set(chosen, str(tmp_path))
    assert opened.data.format == "tfds"
    assert opened.labels is not None
    assert opened.labels.names == ("cat", "dog")
    assert opened.labels.numbers.tolist() == [0, 1, 0, 1]
    whole = dataclasses.replace(chosen, tfds_split="train[50%:]", samples=(5,))
    assert len(open_set(whole, str(tmp_path / "tfds")).source) == 5
    refused("4 images in .*expected 5", dataclasses.replace(chosen, samples=(5,)), tmp_path)


def test_folders_of_classes(tmp_path: Path) -> None:
    for number, colour in enumerate(SEEN):
        write(tmp_path / "hues" / "val" / colour / f"{number}.png", square(colour))
        write(tmp_path / "hues" / "train" / colour / f"{number}.png", square("red"))
    opened = open_set(row(), str(tmp_path))
    assert evaluated(opened)["accuracy_top1"] == 1.0
    refused("5 images in .*expected 6", row(samples=(6,)), tmp_path)
    assert len(open_set(row(samples=(6,)), str(tmp_path), subset=True).source) == 5


def test_classes_that_are_not_evaluated_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "objectnet"
    write(folder / "alarm_clock" / "0.png", square("red"))
    write(folder / "full_sized_towel" / "0.png", square("green"))
    write(folder / "squeegee" / "0.png", square("blue"))  # none of ImageNet's classes
    opened = open_set(all_sets()["objectnet"], str(tmp_path), subset=True)
    assert opened.labels is not None
    found = [opened.labels.names[n] if n >= 0 else "" for n in opened.labels.numbers]
    assert found == ["alarm clock", "bath towel", ""]
    assert opened.labels.num_unlabelled == 0
    refused("2 images in .*expected 18,574", all_sets()["objectnet"], tmp_path)


def test_captions_a_line_and_their_number(tmp_path: Path, cache: Path) -> None:
    write_layout(tmp_path / "pairs", captioned("red", "green", "blue"), kind="retrieval")
    chosen = row("pairs", kind="retrieval", classes=None, samples=(3,), texts=(6,))
    opened = open_set(chosen, str(tmp_path))
    assert opened.source.captions(0) == ("a red square", "one of red")
    found = evaluated(opened)
    assert found["num_texts"] == 6
    assert found["mean_recall_at_1"] == 1.0
    few = dataclasses.replace(chosen, texts=(7,))
    refused("pairs: 6 captions in .*expected 7", few, tmp_path)


def test_several_classes_an_image(tmp_path: Path, cache: Path) -> None:
    samples = [
        {"png": square("red"), "npy": npy(1, 0, 1)},
        {"png": square("blue"), "npy": npy(0, 0, 1)},
    ]
    write_layout(tmp_path / "many", samples, list(COLOURS), TEMPLATES, "multilabel")
    chosen = row("many", kind="multilabel", samples=(2,))
    opened = open_set(chosen, str(tmp_path))
    assert opened.targets is not None
    assert opened.targets.tolist() == [[True, False, True], [False, False, True]]
    write_layout(tmp_path / "many", [{**samples[0], "npy": npy(1, 0)}] * 2, kind="multilabel")
    refused(r"its npy has shape \(2,\); expected is \(3,\)", chosen, tmp_path)


def grouped(*groups: float) -> list[dict[str, bytes]]:
    return [{**x, "npy": npy(9, g)} for x, g in zip(classified(*SEEN), groups, strict=True)]


def test_groups_of_the_array_beside(tmp_path: Path, cache: Path) -> None:
    write_layout(tmp_path / "hues", grouped(0, 1, 5, 1, 0), list(COLOURS), TEMPLATES)
    chosen = row(group="region", group_at=1, data=TaskData(left_out_group="5"))
    opened = open_set(chosen, str(tmp_path))
    assert opened.groups is not None
    assert opened.groups.tolist() == ["0", NO_GROUP, "0", "1", "1"]  # samples 0, 2, 4, then 1, 3
    found = evaluated_rows(SEEING, opened)
    assert [x["dataset"] for x in found] == ["hues", "hues/npy[1]=0", "hues/npy[1]=1"]
    assert found[0]["accuracy_top1"] == found[0]["worst_group_accuracy_top1"] == 1.0
    assert (found[0]["num_groups"], found[1]["num_images"]) == (2, 2)


def test_groups_of_a_column(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "class": c, "income": n % 2} for n, c in enumerate(SEEN)]
    for number, colour in enumerate(SEEN):
        write(tmp_path / "hues" / f"{number}.png", square(colour))
    lines = "\n".join(map(json.dumps, rows))
    write(tmp_path / "hues" / "metadata.jsonl", lines)
    opened = open_set(row(group="income"), str(tmp_path))
    assert opened.groups is not None
    assert opened.groups.tolist() == ["0", "1", "0", "1", "0"]
    refused("no metadata field 'region'", row(group="region"), tmp_path)


def test_a_users_own_path(hues: Path) -> None:
    own = row("mine", data=TaskData(path=str(hues / "hues")))
    assert evaluated(open_set(own))["accuracy_top1"] == 1.0
    own = row("food101", data=TaskData(path=str(hues / "hues" / "test" / "{0..1}.tar")))
    own = dataclasses.replace(own, data=dataclasses.replace(own.data, label_key="cls"))
    refused("holds class numbers", own, "")  # not the published names of another set


@pytest.mark.parametrize("split", ["train", "test"])
def test_another_split_is_named(split: str, hues: Path) -> None:
    other = row(data=TaskData(split="train"), samples=(2,))
    if split == "test":
        refused("hues: has no split 'train'; its splits are: test", other, hues)
        return
    write_layout(hues / "hues", classified("red", "blue"), split="train")
    assert len(open_set(other, str(hues)).source) == 2


def _edit(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("test/nshards.txt", "two"), r"nshards\.txt: 'two' is no number of tars"),
        (("test/nshards.txt", "3"), r"has 2 tars, but nshards\.txt says 3"),
        (("dataset_type.txt", "retrieval"), "is 'retrieval', but the set is classification"),
        (("classnames.txt", "red\ngreen\n"), r"has 2 names, but a label is 2"),
        (("classnames.txt", "red\ngreen\nblue\ngrey"), "hues: 4 classes in .*expected 3"),
        (("zeroshot_classification_templates.txt", "a photo"), "template 1: 'a photo'; accepted"),
    ],
)
def test_wrong_files_of_the_layout(edit: Sequence[str], message: str, hues: Path) -> None:
    _edit(hues / "hues", *edit)
    refused(message, row(), hues)


def test_labels_as_text_where_numbers_are_expected(tmp_path: Path, cache: Path) -> None:
    samples = [{**x, "cls": b"red"} for x in classified(*SEEN)]
    write_layout(tmp_path / "hues", samples, list(COLOURS), TEMPLATES)
    refused("labels='numbers': label 'red' of .* is no number", row(), tmp_path)


def test_sets_that_are_not_there(tmp_path: Path) -> None:
    sets = all_sets()
    hub = (
        r"^food101: not found under --data_root=.* \(looked for food101, wds_food101,"
        r" wds_food101_test, tfds/food101\); get it by `hf download"
        r" --repo-type=dataset djghosh/wds_food101_test"
    )
    refused(hub, sets["food101"], tmp_path)
    refused("tfds build sun397/standard-part1-120k", sets["sun397_part1"], tmp_path)
    refused("put SugarCrepe's add_att.json", sets["sugar_crepe/swap_obj"], tmp_path)
    refused("babel_imagenet.json and nllb_dist13b", sets["babel_imagenet/de"], tmp_path)
    refused("its CSV file and its images", sets["winogavil"], tmp_path)
    refused("columns image_0, image_1, caption_0", sets["winoground"], tmp_path)
    refused("birdsnap, a folder of images a class", sets["birdsnap"], tmp_path)
    refused("--data_root: is missing", sets["mnist"], "")
    refused("absent: does not exist; give a folder of sets", sets["mnist"], tmp_path / "absent")
    with Loopback(tmp_path) as server:
        refused("mnist: not found under --data_root=http", sets["mnist"], server.url)


def test_numbers_of_classes_as_labels(tmp_path: Path) -> None:
    """Features of TFDS hold one number or several."""
    from clip_jax.evaluation.suites.opening import read_targets

    class Source:
        def __init__(self, *values: Any) -> None:
            self.values = values

        def __len__(self) -> int:
            return len(self.values)

        def metadata(self, index: int) -> dict[str, Any]:
            return {"labels": self.values[index]}

        def key(self, index: int) -> str:
            return f"image {index}"

    read = read_targets(Source([0, 2], 1), "labels", 3)  # type: ignore[arg-type]
    assert np.array_equal(read, [[True, False, True], [False, True, False]])
    for wrong in ([0, 3], "red"):
        with pytest.raises(UserError, match=r"record image 0: labels=.*accepted are class numbers"):
            read_targets(Source(wrong), "labels", 3)  # type: ignore[arg-type]
