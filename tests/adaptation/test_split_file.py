"""CoOp's files of splits, halves of classes, and the line from a model to its adapted self."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_clip import random_params, tiny_architecture

from clip_jax.adapt.classes import chosen_classes
from clip_jax.adapt.few_shot import given_split
from clip_jax.adapt.split_file import read_split_file
from clip_jax.adapt.wise_ft import line_judge, part_of_way
from clip_jax.adaptation.low_rank import merged
from clip_jax.adaptation.methods import METHODS
from clip_jax.adaptation.tree import flat
from clip_jax.errors import UserError

NAMES = ("sea_lion", "owl", "ant", "bee", "cat")


def rows(first: int, count: int) -> list[list[Any]]:
    """`count` images of each class, classes in another order than the alphabet's."""
    numbers = range(first, first + count)
    return [[f"{name}/{n}.png", label, name] for n in numbers for label, name in enumerate(NAMES)]


GOOD = {"train": rows(0, 3), "val": rows(3, 2), "test": rows(5, 1)}


def written(folder: Path, split: Any) -> Path:
    path = folder / "split_zhou_Animals.json"
    path.write_text(split if isinstance(split, str) else json.dumps(split))
    for name, *_ in GOOD["train"] + GOOD["val"] + GOOD["test"]:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return path


def test_a_file_is_read_in_its_order(tmp_path: Path) -> None:
    train, test = read_split_file(written(tmp_path, GOOD), str(tmp_path))
    assert test.labels.names == train.labels.names == ("sea lion", "owl", "ant", "bee", "cat")
    assert test.labels.numbers.tolist() == [0, 1, 2, 3, 4]
    assert train.validates is not None
    assert train.validates.tolist() == [False] * 15 + [True] * 10
    assert train.source.key(16) == "owl/3.png"
    assert train.source[16].captions == ("owl",)
    assert train.source[16].image == (tmp_path / "owl/3.png").read_bytes()


def test_shots_come_from_the_parts_of_the_file() -> None:
    labels = np.tile(np.arange(5), 5)
    validates = np.arange(25) >= 15
    for shots, counts in ((1, (1, 1)), (2, (2, 2)), (3, (3, 2)), (0, (3, 2))):
        found = given_split(labels, validates, NAMES, shots, 0, "x")
        for records, count, marked in zip(found, counts, (False, True), strict=True):
            assert np.bincount(labels[records]).tolist() == [count] * 5
            assert (validates[records] == marked).all()
    nested = [set(given_split(labels, validates, NAMES, n, 3, "x").train) for n in (1, 2, 3)]
    assert nested[0] < nested[1] < nested[2]
    with pytest.raises(UserError, match="shots=4: class 'sea_lion' of x has 3 images; needed are"):
        given_split(labels, validates, NAMES, 4, 0, "x")


def test_halves_of_the_classes(tmp_path: Path) -> None:
    both = read_split_file(written(tmp_path, GOOD), str(tmp_path))
    base, test, new = chosen_classes("base", *both)
    assert test is not None
    assert new is not None
    assert base.labels.names == test.labels.names == ("sea lion", "owl", "ant")
    assert new.labels.names == ("bee", "cat")
    assert test.labels.numbers.tolist() == [0, 1, 2, -1, -1]
    assert new.labels.numbers.tolist() == [-1, -1, -1, 0, 1]
    assert chosen_classes("new", *both)[0].labels.names == ("bee", "cat")
    with pytest.raises(UserError, match="--classes=base: is judged on new classes too; give"):
        chosen_classes("base", both[0], None)
    with pytest.raises(UserError, match="--classes=new: there are 3 classes; needed are 4"):
        chosen_classes("new", base, test)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("{", "cannot be read"),
        ([1], "has no images in 'train'; needed are train, val, test"),
        (GOOD | {"val": []}, "has no images in 'val'"),
        (GOOD | {"val": [["a.png", "owl"]]}, r"val\[0\] is \['a.png', 'owl'\]; accepted is \[path"),
        (GOOD | {"test": [["a.png", 1, "bee"]]}, r"class 1 is 'owl', and 'bee' in test \(a.png\)"),
        (GOOD | {"test": [["owl/0.png", 1, "owl"]]}, "owl/0.png is in train and in test"),
        (GOOD | {"test": [["a.png", 7, "fox"]]}, "has classes 0 to 7 but 6 names"),
        (GOOD | {"test": [["a.png", 1, "owl"]]}, "none of its first images exists"),
    ],
)
def test_a_broken_file(tmp_path: Path, split: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^--split_file=.*: ?.*{message}"):
        read_split_file(written(tmp_path, split), str(tmp_path))


@pytest.mark.parametrize("name", ["full", "bitfit", "lora"])
def test_the_line_is_that_of_the_parameters(name: str) -> None:
    """(1 − a)·θ₀ + a·θ₁, whatever the form of the adapter."""
    params, rng = random_params(tiny_architecture()), np.random.default_rng(0)
    method = METHODS[name]
    adapter = {
        path: np.asarray(leaf + rng.normal(0, 0.1, leaf.shape), np.float32)
        for path, leaf in method.init(tiny_architecture(), params, jax.random.key(0)).items()
    }
    start, end = flat(params), flat(merged(params, adapter, method.scale))
    found = flat(merged(params, part_of_way(adapter, params, 0.3), method.scale))
    assert any(np.abs(np.asarray(end[path]) - start[path]).max() > 0.05 for path in start)
    for path, leaf in start.items():
        wanted = 0.7 * np.asarray(leaf, np.float64) + 0.3 * np.asarray(end[path], np.float64)
        np.testing.assert_allclose(np.asarray(found[path]), wanted, rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["dora", "bottleneck", "prefix", "vpt"])
def test_other_adapters_have_no_line(name: str) -> None:
    config = tiny_architecture()
    params = random_params(config)
    adapter = METHODS[name].init(config, params, jax.random.key(0))
    assert line_judge(adapter, params, lambda _: pytest.fail("was judged")) is None
