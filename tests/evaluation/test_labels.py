"""Labels: each form has one meaning in every format, and names or numbers is decided once."""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.labels import UNLABELLED, Labels, read_labels

LINES = ("zero", "one", "two", "three", "four", "five")  # a file of names


class Memory:
    """A source that has nothing but labels."""

    def __init__(self, labels: Sequence[Any]):
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        return f"record {index}"

    def metadata(self, index: int) -> dict[str, Any]:
        label = self.labels[index]
        return {"other": 1} if label is ABSENT else {"class": label}


ABSENT = object()


def read(values: Sequence[Any], tmp_path: Path, names: Sequence[str] | None, **options) -> Labels:
    if names is not None:
        options["classnames"] = str(tmp_path / "names.txt")
        (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names))
    return read_labels(Memory(values), TaskData(path="data", **options))


DECOMPOSED, COMPOSED = "cafe\u0301", "caf\u00e9"
# Form -> its meaning: the number of a class, the name of one, or None for no label.
NUMBERS = {
    "int": (3, 3),
    "whole float": (3.0, 3),
    "numpy int": (np.int64(3), 3),
    "numpy float": (np.float32(3), 3),
    "true": (True, 1),
    "digits": ("3", 3),
    "digits as bytes": (b"3", 3),
    "zeros before": ("003", 3),
    "blanks around": (" 3\n", 3),
    "whole float as text": ("3.0", 3),
    "true as text": ("True", 1),
}
NAMES = {
    "name": ("cat", "cat"),
    "bytes": (b"cat", "cat"),
    "bytes with a mark": (b"\xef\xbb\xbfcat", "cat"),
    "blanks around a name": ("  cat\t", "cat"),
    "composed": (COMPOSED, COMPOSED),
    "decomposed": (DECOMPOSED, COMPOSED),
    "full-width digit": ("３", "３"),
    "half": ("½", "½"),
    "number and letter": ("3d", "3d"),
    "decimal": ("3.5", "3.5"),
    "word that may stand for nothing": ("none", "none"),
    "exponent": ("1e0", "1e0"),
    "many digits": ("7" * 5000, "7" * 5000),
}
NOTHING = {
    "None": None,
    "NaN": math.nan,
    "-1": -1,
    "-1 as text": "-1",
    "empty": "",
    "blank": " \n",
    "not UTF-8": b"\xff\xfe\xfd",
    "no field": ABSENT,
    "NaN as text": "nan",
    "None as text": "None",
    "null as text": " null ",
    "pandas' NA as text": "<NA>",
}
NO_CLASS = {
    "half": 0.5,
    "infinite": math.inf,
    "list": [1, 2],
    "group": {"a": 1},
    "array": np.asarray([1, 2]),
}


@pytest.mark.parametrize(("label", "number"), NUMBERS.values(), ids=NUMBERS)
def test_forms_of_numbers(label: Any, number: int, tmp_path: Path) -> None:
    labels = read([label, 2, 0, 1], tmp_path, LINES)
    assert labels.numbers.tolist() == [number, 2, 0, 1]
    assert (labels.read_as, labels.names) == ("numbers", LINES)


@pytest.mark.parametrize(("label", "name"), NAMES.values(), ids=NAMES)
def test_forms_of_names(label: Any, name: str, tmp_path: Path) -> None:
    labels = read([label, "zebra"], tmp_path, None)
    assert [labels.names[number] for number in labels.numbers] == [name, "zebra"]
    labels = read([label], tmp_path, ["dog", unicodedata.normalize("NFD", name), "zebra"])
    assert (labels.numbers.tolist(), labels.read_as) == ([1], "names")


@pytest.mark.parametrize("label", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("others", [("cat", "dog"), (1, 2)])
def test_records_without_a_label_are_left_out_and_named(
    label: Any, others: tuple[Any, ...], tmp_path: Path
) -> None:
    names = LINES if others == (1, 2) else None
    labels = read([others[0], label, others[1]], tmp_path, names)
    assert labels.numbers.tolist()[1] == UNLABELLED
    assert UNLABELLED not in labels.numbers[[0, 2]]
    assert labels.num_unlabelled == 1
    assert "1 of 3 records have no label (class); the first is record 1" in labels.notes[0]
    with pytest.raises(UserError, match=r"record 0|of 1 records have no label"):
        read([label], tmp_path, names)


@pytest.mark.parametrize("label", NO_CLASS.values(), ids=NO_CLASS)
def test_what_is_no_class_is_refused(label: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"record 1: label .* is no class; accepted are a name, or"):
        read([0, label], tmp_path, LINES)


@pytest.mark.parametrize(
    ("labels", "names", "expected", "read_as", "note"),
    [
        (["0", "1"], ["0", "1"], [0, 1], "names", None),  # both readings are the same
        (["0", "1"], ["1", "0"], [1, 0], "names", "--labels=numbers"),
        ([0, 1], ["1", "0"], [1, 0], "names", "--labels=numbers"),
        (["5", "10", "20"], ["5", "10", "20"], [0, 1, 2], "names", None),
        (["5", "10", "20"], None, [2, 0, 1], "names", "read as class names"),
        (["1", "0"], ["cat", "dog"], [1, 0], "numbers", None),
        (["2", "1"], ["0", "1"], None, "numbers", "has 2 names, but a label is 2"),
        (["cat", "2"], ["2", "cat"], [1, 0], "names", None),
        (["cat", "2"], ["cat", "dog"], None, "names", "does not have the class '2'"),
        (["0.0", "1.0", ""], ["1", "0"], [1, 0, -1], "names", "--labels=numbers"),
        (["01", "02"], ["1", "2", "3"], [0, 1], "names", "--labels=numbers"),
        (["1", "2"], ["001", "002", "003"], [0, 1], "names", "--labels=numbers"),
        (["005", "010", "020"], ["5", "10", "20"], [0, 1, 2], "names", None),
        ([True, False], ["true", "false"], [0, 1], "names", "--labels=numbers"),
        (["True", "False"], ["False", "True"], [1, 0], "names", None),
        (["true", "false"], ["cat", "dog"], [1, 0], "numbers", None),
        (["true", "false"], None, [1, 0], "names", "read as class names"),
        ([True, False], None, None, "", "holds class numbers (false, true)"),
        (["0.0", "nan", "1.0"], ["cat", "dog"], [0, -1, 1], "numbers", None),
        (["nan", "cat"], ["cat", "nan"], [1, 0], "names", None),
        (["0", "1e0"], ["cat", "dog"], None, "names", "does not have the class '1e0'"),
        (["1.0", "2.0"], ["2.0", "1.0"], [1, 0], "names", None),
        (["0", "1"], None, None, "", "holds class numbers (0, 1); give their names"),
        (["T shirt", "cap"], ["cap", "T-shirt"], [1, 0], "names", None),
        (["T_shirt"], ["T shirt", "T-shirt"], None, "names", "does not have the class 'T_shirt'"),
        (["T-shirt"], ["T shirt", "T-shirt"], [1], "names", None),
        (["catt"], ["cat", "dog"], None, "names", "the nearest is 'cat'"),
        ([-2], ["a"], None, "numbers", "label -2"),
    ],
)
def test_names_or_numbers(
    labels: list[Any],
    names: list[str] | None,
    expected: list[int] | None,
    read_as: str,
    note: str | None,
    tmp_path: Path,
) -> None:
    if expected is None:
        with pytest.raises(UserError) as caught:
            read(labels, tmp_path, names)
        assert note in str(caught.value)
        return
    found = read(labels, tmp_path, names)
    assert (found.numbers.tolist(), found.read_as) == (expected, read_as)
    said = " ".join(found.notes)
    if note is None:
        assert "labels (" not in said
    else:
        assert note in said


def test_what_the_user_decides(tmp_path: Path) -> None:
    assert read(["0", "1"], tmp_path, ["1", "0"], labels="numbers").numbers.tolist() == [0, 1]
    found = read([0, 1], tmp_path, None, labels="names")
    assert (found.names, found.read_as) == (("0", "1"), "names")
    with pytest.raises(UserError, match="label 'cat' of data is no number"):
        read(["cat"], tmp_path, ["cat"], labels="numbers")
    with pytest.raises(UserError, match="does not have the class '1'"):
        read([1], tmp_path, ["cat", "dog"], labels="names")


@pytest.mark.parametrize(
    "names",
    [
        ["crane", "crane"],
        ["crane", "owl", "crane"],
        [COMPOSED, DECOMPOSED, "crane"],
        ["crane", "owl", "owl", "crane"],
    ],
)
def test_equal_names_are_one_class_to_labels_that_are_names(
    names: list[str], tmp_path: Path
) -> None:
    distinct = {unicodedata.normalize("NFC", name) for name in names}
    labels = read(["crane", "crane"], tmp_path, names)
    assert len(labels.names) == len(distinct)
    assert [labels.names[number] for number in labels.numbers] == ["crane", "crane"]
    assert "several times" in labels.notes[0]
    assert "in lines" in labels.notes[0]
    # Numbers stay those of lines.
    assert read([0, 1], tmp_path, names).names == tuple(names)


def test_classes_of_a_json_file(tmp_path: Path) -> None:
    """Labels are the data's words or a prompt's; a class without names is left out."""
    path = tmp_path / "classes.json"
    path.write_text('["cat", ["n02", "hound", "dog"], ["n03"], ["n04", "cat"], ["n05", "wolf"]]')
    words = ["n02", "hound", "n03", "cat", "n05", None]
    found = read_labels(Memory(words), TaskData(path="data", classnames=str(path)))
    assert found.numbers.tolist() == [1, 1, UNLABELLED, 0, 3, UNLABELLED]
    assert (found.names, found.num_unlabelled) == (("cat", "hound", "cat", "wolf"), 1)
    assert found.prompt_names[1] == ("hound", "dog")
    by_number = TaskData(path="data", classnames=str(path), labels="numbers")
    assert read_labels(Memory([0, 1, 2, 3, 4]), by_number).numbers.tolist() == [0, 1, -1, 2, 3]


def test_classes_that_were_published() -> None:
    data = TaskData(path="data", classnames="eurosat")
    found = read_labels(Memory(["SeaLake", "forest", "Forest", "AnnualCrop"]), data)
    assert [found.names[number] for number in found.numbers] == [
        "lake or sea",
        "forest",
        "forest",
        "annual crop land",
    ]
    # OpenAI's names of CLEVR's counts are numbers, but its labels count from 0.
    data = TaskData(path="data", classnames="clevr_count_all", labels="numbers")
    assert [read_labels(Memory([0, 7]), data).names[n] for n in (0, 7)] == ["3", "10"]
