"""The same small image-text set in every format, for the tests of sources."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pictures import encode, photo
from shards import write_shard


class Sample(NamedTuple):
    key: str
    image: bytes
    captions: tuple[str, ...]
    label: str


SAMPLES = tuple(
    Sample(
        f"{number:03d}",
        encode(photo(20 + number, 16, seed=number), "PNG"),
        (f"a cat, number {number}", f"größer \U0001f600 {number}"),
        ("cat", "dog")[number % 2],
    )
    for number in range(10)
)


Samples = Sequence[Sample]


def halves(samples: Samples) -> list[tuple[int, Samples]]:
    middle = (len(samples) + 1) // 2
    return [(0, samples[:middle]), (1, samples[middle:])]


def write_images(folder: Path, samples: Samples) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        (folder / f"{sample.key}.png").write_bytes(sample.image)


def write_folder(folder: Path, samples: Samples = SAMPLES) -> Path:
    write_images(folder, samples)
    for sample in samples:
        (folder / f"{sample.key}.txt").write_text("\n".join(sample.captions), encoding="utf-8")
    return folder


def write_csv(folder: Path, samples: Samples = SAMPLES) -> Path:
    write_images(folder / "images", samples)
    rows = [
        f'images/{sample.key}.png,"{caption}",{sample.label}'
        for sample in samples
        for caption in sample.captions
    ]
    path = folder / "data.csv"
    path.write_text("\n".join(["image,caption,label", *rows]), encoding="utf-8")
    return path


def write_json_lines(folder: Path, samples: Samples = SAMPLES) -> Path:
    write_images(folder, samples)
    path = folder / "data.jsonl"
    rows = [
        {"image": f"{sample.key}.png", "captions": sample.captions, "label": sample.label}
        for sample in samples
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tars(folder: Path, samples: Samples = SAMPLES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard, part in halves(samples):
        members = []
        for sample in part:
            fields = {"captions": sample.captions, "label": sample.label}
            members.append((sample.key, {"png": sample.image, "json": json.dumps(fields).encode()}))
        write_shard(folder / f"{shard:05d}.tar", members)
    return folder


def write_parquet(folder: Path, samples: Samples = SAMPLES) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for shard, part in halves(samples):
        table = pa.table(
            {
                "key": [sample.key for sample in part],
                "image": pa.array([sample.image for sample in part], pa.binary()),
                "captions": [sample.captions for sample in part],
                "label": [sample.label for sample in part],
            }
        )
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=2)
    return folder


def write_array_record(folder: Path, samples: Samples = SAMPLES) -> Path:
    from clip_jax.data.sources.array_record import write_array_records

    folder.mkdir(parents=True, exist_ok=True)
    for shard, part in halves(samples):
        records = ((x.key, x.image, x.captions, {"label": x.label}) for x in part)
        write_array_records(folder / f"train.array_record-{shard:05d}-of-00002", records)
    return folder


def write_tfds(folder: Path) -> Path:
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
                return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

            def _generate_examples(self, count):
                for number, sample in enumerate(SAMPLES[:count]):
                    yield (
                        number,
                        {
                            "image": BytesIO(sample.image),
                            "captions": [{"text": caption} for caption in sample.captions],
                            "label": sample.label,
                            "key": sample.key,
                        },
                    )

    builder = SmallSet(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def write_huggingface(folder: Path, samples: Samples = SAMPLES) -> Path:
    import datasets

    features = datasets.Features(
        {
            "key": datasets.Value("string"),
            "image": datasets.Image(),
            "captions": datasets.Sequence(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    columns = {
        "key": [sample.key for sample in samples],
        "image": [{"bytes": sample.image, "path": None} for sample in samples],
        "captions": [list(sample.captions) for sample in samples],
        "label": [sample.label for sample in samples],
    }
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
    return folder


# Format -> (writes the set into a folder and returns the path to open, packages it needs).
WRITERS = {
    "folder": (write_folder, ()),
    "csv": (write_csv, ()),
    "jsonl": (write_json_lines, ()),
    "webdataset": (write_tars, ()),
    "parquet": (write_parquet, ("pyarrow",)),
    "array_record": (write_array_record, ("array_record",)),
    "tfds": (write_tfds, ("tensorflow_datasets", "array_record")),
    "huggingface": (write_huggingface, ("datasets",)),
}
