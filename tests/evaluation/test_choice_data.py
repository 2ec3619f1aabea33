"""Data of a choice: no test split, no image that the test has too; prompts of each class."""

import json
import re
from pathlib import Path

import pytest
from pictures import encode, photo
from shards import write_shard

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.choice_data import open_both
from clip_jax.evaluation.prompt_candidates import find_candidates
from clip_jax.evaluation.prompts.class_prompts import read_class_prompts
from clip_jax.evaluation.prompts.published import ClassNames


def photos(folder: Path, seeds: range, names: tuple[str, ...] = ("cat", "dog")) -> str:
    for seed in seeds:
        place = folder / names[seed % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encode(photo(20, 16, seed), "PNG"))
    return str(folder)


def tar(path: Path, seeds: range) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    sample = [
        (f"{n}", {"png": encode(photo(20, 16, n), "PNG"), "json": b'{"class": "cat"}'})
        for n in seeds
    ]
    write_shard(path, sample)
    return str(path)


def test_a_test_split_is_refused_where_another_is(tmp_path: Path, caplog) -> None:
    test = photos(tmp_path / "photos" / "test", range(4))
    (only,) = open_both(TaskData(path=test), None)
    assert len(only.source) == 4
    assert "no other" in caplog.text
    validation = photos(tmp_path / "photos" / "val", range(4, 8))
    with pytest.raises(UserError, match=f"'test' is for tests.*give another.*{validation}"):
        open_both(TaskData(path=test), None)
    caplog.clear()
    assert len(open_both(TaskData(path=validation), test)) == 2
    assert not caplog.text
    open_both(TaskData(path=photos(tmp_path / "photos" / "train", range(8, 10))), None)
    assert "trained on it" in caplog.text


def test_splits_within_the_data(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        tar(tmp_path / "all" / f"{split}-0.tar", range(10 * number, 10 * number + 3))
    whole = str(tmp_path / "all")
    chosen, tested = open_both(TaskData(path=whole), whole)
    assert (chosen.source.key(0), tested.source.key(0)) == ("10", "20")
    with pytest.raises(UserError, match=r"'test' is for tests.*--split=val"):
        open_both(TaskData(path=whole, split="test"), None)
    with pytest.raises(UserError, match=r"'test' is for tests.*val-0\.tar"):
        open_both(TaskData(path=str(tmp_path / "all" / "test-0.tar")), None)


def test_a_planted_leak_is_refused(tmp_path: Path) -> None:
    data = TaskData(path=photos(tmp_path / "mine", range(6)))
    clean, leaky = photos(tmp_path / "other", range(6, 12)), photos(tmp_path / "leak", range(6, 12))
    assert len(open_both(data, clean)) == 2
    (Path(leaky) / "dog" / "renamed.png").write_bytes(encode(photo(20, 16, 3), "PNG"))
    (Path(leaky) / "dog" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"--test_data=.*: 1 of its 8 images .*renamed"):
        open_both(data, leaky)
    # Shards have other keys and another format.
    with pytest.raises(UserError, match="2 of its 4 images"):
        open_both(TaskData(path=photos(tmp_path / "two", range(2), ("cat",))),
                  tar(tmp_path / "shards" / "0.tar", range(4)))  # fmt: skip


def test_classes_of_the_test_must_be_the_same(tmp_path: Path) -> None:
    data = TaskData(path=photos(tmp_path / "mine", range(4)))
    other = photos(tmp_path / "other", range(5, 9), ("cat", "fox"))
    with pytest.raises(UserError, match=r"--test_data=.*2 classes are not the 2 of --data"):
        open_both(data, other)


CLASSES = [ClassNames("n01", ("great white shark", "shark")), ClassNames("hen", ("hen",))]


def test_class_prompts(tmp_path: Path) -> None:
    path = tmp_path / "cupl.json"
    prompts = {"Great_White Shark": ["a shark", "teeth"], "hen": ["a hen"], "axolotl": ["pink"]}
    path.write_text(json.dumps(prompts))
    assert read_class_prompts(path, CLASSES) == [("a shark", "teeth"), ("a hen",)]
    for wrong, message in (
        ("[1]", "accepted is {class"),
        ("{", "is no JSON"),
        ('{"shark": ["a"]}', "has no class 'hen'"),
        ('{"shark": [], "hen": ["a"]}', "class 'shark'"),
        ('{"shark": "a", "hen": ["a"]}', "class 'shark'"),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{message}"):
            read_class_prompts(path, CLASSES)


def test_candidates(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text('[["cat", "cat", "kitten"], "dog"]')
    own = tmp_path / "own.json"
    own.write_text('{"cat": ["whiskers"], "dog": ["a wet nose", "a tail"]}')
    data = TaskData(path=photos(tmp_path / "mine", range(4)), classnames=str(names))
    (opened,) = open_both(data, None)
    found = find_candidates(opened.labels, ["a {}", "{}!"], str(own))
    assert found.names == ("a {}", "{}!", "class prompts of own.json")
    assert found.prompts[1] == [("cat!", "kitten!"), ("dog!",)]
    assert found.prompts[2] == [("whiskers",), ("a wet nose", "a tail")]
    assert found.references["first name of each class"] == [("a cat", "cat!"), ("a dog", "dog!")]
    assert len(found.references["openai"][0]) == 160
