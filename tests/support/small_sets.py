"""Small image-text sets in every format, for the tests of sources.

A row is a dictionary: "key", "image" (bytes) and other columns, whose values are texts, lists of
texts, or None for a missing one.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pictures import encode, photo
from shards import write_shard

from clip_jax.data.sources import open_source
from clip_jax.errors import DecodeError, UserError

Row = dict[str, Any]

ROWS: tuple[Row, ...] = tuple(
    {
        "key": f"{number:03d}",
        "image": encode(photo(20 + number, 16, seed=number), "PNG"),
        "captions": [f"a cat, number {number}", f"größer \U0001f600 {number}"],
        "label": ("cat", "dog")[number % 2],
    }
    for number in range(10)
)


def write(path: Path, data: bytes | str) -> Path:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def _with_paths(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Writes the images beside `path`; returns the rows with their paths, without keys."""
    found = []
    for row in rows:
        image = f"{path.name}/{row['key']}.png"
        if row["image"] is not None:
            write(path.parent / image, row["image"])
        found.append({"image": row["image"] and image, **_but_key(row, "image")})
    return found


def _but_key(row: Row, *more: str) -> Row:
    return {name: value for name, value in row.items() if name not in ("key", *more)}


def write_folder(path: Path, rows: Sequence[Row]) -> Path:
    """Images with their captions beside them; other columns are lost."""
    for row in rows:
        write(path / f"{row['key']}.png", row["image"])
        texts = row["captions"] if "captions" in row else row["caption"]
        if texts is not None:
            text = "\n".join(texts) if isinstance(texts, list) else texts
            write(path / f"{row['key']}.txt", text)
    return path


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """A list of texts becomes several rows."""
    names = _with_paths(path, rows[:1])[0]
    lines = [",".join(names).replace("captions", "caption")]
    for row in _with_paths(path, rows):
        lists = [value if isinstance(value, list) else [value] for value in row.values()]
        for cells in itertools.product(*lists):
            lines.append(",".join("" if cell is None else f'"{cell}"' for cell in cells))
    return write(path.with_name(f"{path.name}.csv"), "\n".join(lines))


def write_json_lines(path: Path, rows: Sequence[Row]) -> Path:
    lines = []
    for row in _with_paths(path, rows):
        # A byte that is not UTF-8 comes through as it is.
        text = {k: v.decode("latin-1") if isinstance(v, bytes) else v for k, v in row.items()}
        is_broken = any(isinstance(value, bytes) for value in row.values())
        line = json.dumps(text, ensure_ascii=not is_broken)
        lines.append(line.encode("latin-1" if is_broken else "utf-8"))
    return write(path.with_name(f"{path.name}.jsonl"), b"\n".join(lines))


def write_tar(path: Path, rows: Sequence[Row]) -> Path:
    """A `caption` is a member of its own, and other columns are in the .json."""
    samples = []
    for row in rows:
        members = {"png": row["image"]} if row["image"] is not None else {}
        if row.get("caption") is not None:
            text = row["caption"]
            members["txt"] = text if isinstance(text, bytes) else text.encode()
        members["json"] = json.dumps(_but_key(row, "image", "caption")).encode()
        samples.append((row["key"], members))
    write_shard(path.with_name(f"{path.name}.tar"), samples)
    return path.with_name(f"{path.name}.tar")


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(name: str) -> Any:
        values = [row.get(name) for row in rows]
        if name != "image" and any(isinstance(value, bytes) for value in values):
            texts = [value.encode() if isinstance(value, str) else value for value in values]
            return pa.array(texts, pa.binary()).view(pa.string())  # perhaps not UTF-8
        return pa.array(values, pa.binary() if name == "image" else None)

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: column(name) for name in rows[0]})
    pq.write_table(table, path.with_name(f"{path.name}.parquet"), row_group_size=2)
    return path.with_name(f"{path.name}.parquet")


def write_array_record(path: Path, rows: Sequence[Row]) -> Path:
    from array_record.python.array_record_module import ArrayRecordWriter

    from clip_jax.data.sources.tf_example import make_example

    def feature(value: Any) -> list[bytes]:
        values = value if isinstance(value, list) else [value]
        return [item.encode() if isinstance(item, str) else item for item in values]

    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f"{path.name}.array_record-00000-of-00001")
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        filled = {name: value for name, value in row.items() if value is not None}
        writer.write(make_example({name: feature(value) for name, value in filled.items()}))
    writer.close()
    return path


def write_huggingface(path: Path, rows: Sequence[Row]) -> Path:
    import datasets

    datasets.disable_progress_bars()
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in rows[0]}
    columns["image"] = [image and {"bytes": image, "path": None} for image in columns["image"]]
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    if "label" in columns:
        made = made.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    made.cast_column("image", datasets.Image()).save_to_disk(str(path))
    return path


def write_tfds(path: Path, rows: Sequence[Row] = ROWS) -> Path:
    """All rows as "train", the first four as "test"; captions are several."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "key": tfds.features.Text(),
    }

    # Not registered: it may be written several times in one process.
    with tfds.core.registered.skip_registration():

        class SmallSet(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, _):
                return {"train": self._generate_examples(rows), "test": self._examples(rows[:4])}

            def _generate_examples(self, rows):
                for number, row in enumerate(rows):
                    captions = [{"text": caption} for caption in row["captions"]]
                    yield number, {**row, "image": BytesIO(row["image"]), "captions": captions}

            _examples = _generate_examples

    builder = SmallSet(data_dir=str(path), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def keys(source: Any) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def outcomes(source: Any) -> list[str]:
    """The captions of each record with "|" between them, or the kind of its error."""
    found = []
    for index in range(len(source)):
        try:
            found.append("|".join(source[index].captions))
        except DecodeError as error:
            found.append(error.kind)
    return found


def refused(message: str, path: Path | str, *arguments: Any, **options: Any) -> None:
    """Opening the data ends in a mistake of one line with this message."""
    with pytest.raises(UserError, match=message) as caught:
        open_source(path, *arguments, **options)
    assert "\n" not in str(caught.value)


# Format -> (writes rows at a path without ending and returns the path to open, packages it needs).
WRITERS: dict[str, tuple[Callable[[Path, Sequence[Row]], Path], tuple[str, ...]]] = {
    "folder": (write_folder, ()),
    "csv": (write_csv, ()),
    "jsonl": (write_json_lines, ()),
    "webdataset": (write_tar, ()),
    "parquet": (write_parquet, ("pyarrow",)),
    "array_record": (write_array_record, ("array_record",)),
    "tfds": (write_tfds, ("tensorflow_datasets", "array_record")),
    "huggingface": (write_huggingface, ("datasets",)),
}
# Formats that are several files in one folder, and read one split of it.
IN_FILES = ("csv", "jsonl", "webdataset", "parquet", "array_record")
