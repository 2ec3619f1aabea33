"""Labels: each form has one meaning in every format, and names or numbers is decided once."""

import dataclasses
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encode, photo
from shards import write_shard

from clip_jax.data.sources import open_source
from clip_jax.data.sources.refine import open_refined
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.labels import UNLABELLED, Labels, read_labels

PNG = encode(photo(8, 6), "PNG")
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
    "numpy unsigned": (np.uint8(3), 3),
    "numpy float": (np.float32(3), 3),
    "array of one number": (np.asarray(3), 3),
    "true": (True, 1),
    "false": (False, 0),
    "numpy bool": (np.bool_(True), 1),
    "digits": ("3", 3),
    "digits as bytes": (b"3", 3),
    "zeros before": ("003", 3),
    "blanks around": (" 3\n", 3),
    "whole float as text": ("3.0", 3),
    "plus": ("+3", 3),
    "true as text": ("True", 1),
    "false as text": ("false", 0),
}
NAMES = {
    "name": ("cat", "cat"),
    "bytes": (b"cat", "cat"),
    "bytes with a mark": (b"\xef\xbb\xbfcat", "cat"),
    "numpy text": (np.str_("cat"), "cat"),
    "blanks around a name": ("  cat\t", "cat"),
    "composed": (COMPOSED, COMPOSED),
    "decomposed": (DECOMPOSED, COMPOSED),
    "full-width digit": ("３", "３"),
    "Arabic digit": ("٣", "٣"),
    "superscript": ("²", "²"),
    "half": ("½", "½"),
    "number and letter": ("3d", "3d"),
    "decimal": ("3.5", "3.5"),
    "two dots": ("1.0.0", "1.0.0"),
    "word that may stand for nothing": ("none", "none"),
    "exponent": ("1e0", "1e0"),
    "many digits": ("7" * 5000, "7" * 5000),
}
NOTHING = {
    "None": None,
    "NaN": math.nan,
    "numpy NaN": np.float64("nan"),
    "-1": -1,
    "-1 as float": -1.0,
    "-1 as numpy": np.int64(-1),
    "-1 as text": "-1",
    "empty": "",
    "blank": " \n",
    "empty bytes": b"",
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
        (["5", "10", "20"], ["20", "10", "5"], [2, 1, 0], "names", None),
        (["5", "10", "20"], None, [2, 0, 1], "names", "read as class names"),
        (["1", "0"], ["cat", "dog"], [1, 0], "numbers", None),
        (["2", "1"], ["0", "1"], None, "numbers", "has 2 names, but a label is 2"),
        (["cat", "2"], ["2", "cat"], [1, 0], "names", None),
        (["cat", "2"], ["cat", "dog"], None, "names", "does not have the class '2'"),
        (["0.0", "1.0", ""], ["1", "0"], [1, 0, -1], "names", "--labels=numbers"),
        (["01", "02"], ["1", "2", "3"], [0, 1], "names", "--labels=numbers"),
        (["1", "2"], ["001", "002", "003"], [0, 1], "names", "--labels=numbers"),
        (["005", "010", "020"], ["5", "10", "20"], [0, 1, 2], "names", None),
        (["005", "5"], None, [0, 0], "names", "read as class names"),
        (["01", "1"], ["1", "01"], [1, 0], "names", "--labels=numbers"),
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
        ([3, 4], None, None, "", "holds class numbers (3, 4); give their names"),
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


def test_the_order_of_names_does_not_change_what_a_label_means(tmp_path: Path) -> None:
    for names in (["0", "1", "7"], ["7", "1", "0"], ["1", "7", "0"]):
        found = read(["0", "7", "1"], tmp_path, names)
        assert [found.names[number] for number in found.numbers] == ["0", "7", "1"]


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
        ["owl", "crane", "crane", "crane"],
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


# How each format stores labels: (name, labels, how, the file of names -> meanings).
def write_folder(folder: Path, labels: Sequence[str]) -> Path:
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number}.png").write_bytes(PNG)
    return folder


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(PNG)


def write_csv(folder: Path, labels: Sequence[str]) -> Path:
    write_images(folder, len(labels))
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (folder / "data.csv").write_text(f"filepath,class\n{rows}", encoding="utf-8")
    return folder / "data.csv"


def write_json_lines(folder: Path, labels: Sequence[Any]) -> Path:
    write_images(folder, len(labels))
    rows = [{"image": f"{n}.png", "class": label} for n, label in enumerate(labels)]
    for row in rows:
        if row["class"] is ABSENT:
            del row["class"]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


def write_tar(folder: Path, labels: Sequence[Any], member: str) -> Path:
    """A member of that name holds the label; it has none for an absent one."""
    samples = []
    for number, label in enumerate(labels):
        members = {"png": PNG, "txt": b"a caption"}
        if label is not ABSENT:
            members[member] = label if isinstance(label, bytes) else label.encode()
        samples.append((str(number), members))
    write_shard(folder / "data.tar", samples)
    return folder / "data.tar"


def write_tar_json(folder: Path, labels: Sequence[Any]) -> Path:
    fields = ({} if label is ABSENT else {"class": label} for label in labels)
    return write_tar(folder, [json.dumps(each) for each in fields], "json")


def write_tar_cls(folder: Path, labels: Sequence[Any]) -> Path:
    return write_tar(folder, labels, "cls")


def write_tar_member(folder: Path, labels: Sequence[Any]) -> Path:
    path = write_tar(folder, labels, "class")
    open_source(path)  # has made an index that knows of no labels
    return path


def write_parquet(folder: Path, labels: Sequence[Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    table = pa.table({"image": pa.array([PNG] * len(labels)), "class": pa.array(labels)})
    pq.write_table(table, folder / "data.parquet")
    return folder / "data.parquet"


def write_datasets(folder: Path, labels: Sequence[Any], feature: Any = None) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    images = [{"bytes": PNG, "path": None}] * len(labels)
    table = datasets.Dataset.from_dict({"image": images, "class": list(labels)})
    table = table.cast_column("image", datasets.Image())
    if feature is not None:
        table = table.cast_column("class", feature)
    table.save_to_disk(str(folder))
    return folder


def write_class_labels(folder: Path, labels: Sequence[Any]) -> Path:
    datasets = pytest.importorskip("datasets")
    return write_datasets(folder, labels, datasets.ClassLabel(names=["cat", "owl", COMPOSED]))


def write_tfds(folder: Path, labels: Sequence[Any], feature: Any) -> Path:
    """As TFDS lays it out; the records are written by hand, for it refuses -1 itself."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    from array_record.python.array_record_module import ArrayRecordWriter

    from clip_jax.data.sources.tf_example import make_example

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "class": feature(tfds.features)}
    )
    folder = folder / "label_set" / "1.0.0"
    folder.mkdir(parents=True)
    info = {
        "name": "label_set",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "moduleName": "label_set",
        "splits": [
            {
                "name": "test",
                "shardLengths": [str(len(labels))],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features.save_config(str(folder))
    writer = ArrayRecordWriter(
        str(folder / "label_set-test.array_record-00000-of-00001"), "group_size:1"
    )
    for label in labels:
        value = label.encode() if isinstance(label, str) else label
        writer.write(make_example({"image": [PNG], "class": [value]}))
    writer.close()
    return folder


def write_tfds_classes(folder: Path, labels: Sequence[int]) -> Path:
    names = ["cat", "owl", COMPOSED]
    return write_tfds(folder, labels, lambda features: features.ClassLabel(names=names))


def write_tfds_numbers(folder: Path, labels: Sequence[int]) -> Path:
    return write_tfds(folder, labels, lambda features: features.Scalar(np.int64))


def write_tfds_texts(folder: Path, labels: Sequence[str]) -> Path:
    return write_tfds(folder, labels, lambda features: features.Text())


Write = Callable[[Path, Sequence[Any]], Path]
# (how it is written, the labels, what each means).
STORED: dict[str, tuple[Write, list[Any], list[Any]]] = {
    "folder, names": (write_folder, ["cat", DECOMPOSED, "T-shirt"], ["cat", COMPOSED, "T shirt"]),
    "folder, digits": (write_folder, ["2", "5", "03"], [2, 5, 3]),
    "csv, names": (write_csv, ["cat", "", " owl ", DECOMPOSED], ["cat", None, "owl", COMPOSED]),
    "csv, digits": (write_csv, ["2", "-1", "3.0", "", "03"], [2, None, 3, None, 3]),
    "jsonl, names": (write_json_lines, ["cat", None, ABSENT, ""], ["cat", None, None, None]),
    "jsonl, numbers": (
        write_json_lines,
        [2, 3.0, True, "4", None, math.nan, -1, ABSENT],
        [2, 3, 1, 4, None, None, None, None],
    ),
    "tar json, names": (write_tar_json, ["cat", None, DECOMPOSED], ["cat", None, COMPOSED]),
    "tar json, numbers": (
        write_tar_json,
        [2, 3.0, False, "4", None, math.nan, -1, ABSENT],
        [2, 3, 0, 4, None, None, None, None],
    ),
    "tar cls, names": (write_tar_cls, ["cat\n", b"", DECOMPOSED], ["cat", None, COMPOSED]),
    "tar cls, no text": (write_tar_cls, ["2", b"\xff\xfe", "0"], [2, None, 0]),
    "tar member, names": (write_tar_member, ["cat\n", ABSENT, b"\xff"], ["cat", None, None]),
    "tar cls, digits": (write_tar_cls, ["2", "3\n", "-1", ABSENT], [2, 3, None, None]),
    "parquet, names": (write_parquet, ["cat", None, " ", "owl"], ["cat", None, None, "owl"]),
    "parquet, ints": (write_parquet, [2, None, -1, 0], [2, None, None, 0]),
    "parquet, floats": (write_parquet, [2.0, math.nan, None, 0.0], [2, None, None, 0]),
    "parquet, bools": (write_parquet, [True, False, None], [1, 0, None]),
    "parquet, bytes": (write_parquet, [b"cat", b"", b"\xff\xff"], ["cat", None, None]),
    "datasets, classes": (write_class_labels, [0, 2, -1, None], ["cat", COMPOSED, None, None]),
    "datasets, ints": (write_datasets, [2, None, -1], [2, None, None]),
    "datasets, floats": (write_datasets, [2.0, math.nan, None], [2, None, None]),
    "datasets, names": (write_datasets, ["cat", None, ""], ["cat", None, None]),
    "datasets, bools": (write_datasets, [True, False], [1, 0]),
    "tfds, classes": (write_tfds_classes, [0, 2, -1], ["cat", COMPOSED, None]),
    "tfds, ints": (write_tfds_numbers, [2, 0, -1], [2, 0, None]),
    "tfds, texts": (write_tfds_texts, ["cat", "", DECOMPOSED], ["cat", None, COMPOSED]),
}


@pytest.mark.parametrize(("write", "stored", "meanings"), STORED.values(), ids=STORED)
def test_a_form_means_the_same_in_every_format(
    write: Write, stored: list[Any], meanings: list[Any], tmp_path: Path
) -> None:
    key = "cls" if write is write_tar_cls else "class"
    data = TaskData(path=str(write(tmp_path / "data", stored)), label_key=key)
    if any(isinstance(meaning, int) for meaning in meanings):
        (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in LINES))
        data = dataclasses.replace(data, classnames=str(tmp_path / "names.txt"))
    source = open_refined(data, needs_captions=False, label_column=key, preferred_splits=("test",))
    assert len(source) == len(stored)
    labels = read_labels(source, data)
    wanted: list[Any] = sorted(meanings) if write is write_folder else meanings  # by name there
    found = [
        None if number == UNLABELLED else number if data.classnames else labels.names[number]
        for number in labels.numbers.tolist()
    ]
    assert (sorted(found) if write is write_folder else found) == wanted
    assert labels.num_unlabelled == meanings.count(None)
