"""Labels in files: a form means the same in every format."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_sets
from pictures import encode, photo
from shards import write_shard
from test_labels import ABSENT, COMPOSED, DECOMPOSED, LINES

from clip_jax.data.sources import open_source
from clip_jax.data.sources.refine import open_refined
from clip_jax.data.task_data import TaskData
from clip_jax.evaluation.labels import UNLABELLED, read_labels

PNG = encode(photo(8, 6), "PNG")


def write_folder(folder: Path, labels: Sequence[str]) -> Path:
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number}.png").write_bytes(PNG)
    return folder


def write_rows(
    folder: Path, labels: Sequence[Any], writer: Callable[[Path, Sequence[dict[str, Any]]], Path]
) -> Path:
    rows: list[dict[str, Any]] = []
    for number, label in enumerate(labels):
        fields = {} if label is ABSENT else {"class": label}
        rows.append({"key": str(number), "image": PNG, **fields})
    return writer(folder, rows)


def write_member(folder: Path, labels: Sequence[Any], member: str) -> Path:
    """A tar with a member of that name for each label."""
    samples = []
    for number, label in enumerate(labels):
        members = {"png": PNG, "txt": b"a caption"}
        if label is not ABSENT:
            members[member] = label if isinstance(label, bytes) else label.encode()
        samples.append((str(number), members))
    path = write_shard(folder / "data.tar", samples)
    open_source(path)  # makes an index that knows of no labels
    return path


def write_parquet(folder: Path, labels: Sequence[Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    table = pa.table({"image": pa.array([PNG] * len(labels)), "class": pa.array(labels)})
    pq.write_table(table, folder / "data.parquet")
    return folder / "data.parquet"


def write_datasets(folder: Path, labels: Sequence[Any], names: Sequence[str] = ()) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    images = [{"bytes": PNG, "path": None}] * len(labels)
    table = datasets.Dataset.from_dict({"image": images, "class": list(labels)})
    table = table.cast_column("image", datasets.Image())
    if names:
        table = table.cast_column("class", datasets.ClassLabel(names=list(names)))
    table.save_to_disk(str(folder))
    return folder


def write_tfds(folder: Path, labels: Sequence[Any], feature: str, **options: Any) -> Path:
    """As TFDS lays it out; the records are written by hand, for it refuses -1 itself."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    from array_record.python.array_record_module import ArrayRecordWriter

    from clip_jax.data.sources.tf_example import make_example

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "class": getattr(tfds.features, feature)(**options),
        }
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


Write = Callable[[Path, Sequence[Any]], Path]
THREE = ["cat", "owl", COMPOSED]
write_csv = partial(write_rows, writer=small_sets.write_csv)
write_json_lines = partial(write_rows, writer=small_sets.write_json_lines)
write_tar = partial(write_rows, writer=small_sets.write_tar)
write_tar_cls = partial(write_member, member="cls")
write_tar_member = partial(write_member, member="class")
write_class_labels = partial(write_datasets, names=THREE)
write_tfds_classes = partial(write_tfds, feature="ClassLabel", names=THREE)
write_tfds_numbers = partial(write_tfds, feature="Scalar", dtype=np.int64)
write_tfds_texts = partial(write_tfds, feature="Text")
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
    "tar json, names": (write_tar, ["cat", None, DECOMPOSED], ["cat", None, COMPOSED]),
    "tar json, numbers": (
        write_tar,
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
