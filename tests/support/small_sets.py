"""The same small image-text set in every format, for the tests of sources."""

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pictures import encode, photo


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


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        (folder / f"{sample.key}.png").write_bytes(sample.image)


def write_folder(folder: Path) -> Path:
    write_images(folder)
    for sample in SAMPLES:
        (folder / f"{sample.key}.txt").write_text("\n".join(sample.captions), encoding="utf-8")
    return folder


def write_csv(folder: Path) -> Path:
    write_images(folder / "images")
    rows = [
        f'images/{sample.key}.png,"{caption}",{sample.label}'
        for sample in SAMPLES
        for caption in sample.captions
    ]
    path = folder / "data.csv"
    path.write_text("\n".join(["image,caption,label", *rows]), encoding="utf-8")
    return path


def write_json_lines(folder: Path) -> Path:
    write_images(folder)
    path = folder / "data.jsonl"
    rows = [
        {"image": f"{sample.key}.png", "captions": sample.captions, "label": sample.label}
        for sample in SAMPLES
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tars(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for sample in SAMPLES[5 * shard : 5 * shard + 5]:
                fields = {"captions": sample.captions, "label": sample.label}
                members = {"png": sample.image, "json": json.dumps(fields).encode()}
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{sample.key}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, BytesIO(data))
    return folder


def write_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        samples = SAMPLES[5 * shard : 5 * shard + 5]
        table = pa.table(
            {
                "key": [sample.key for sample in samples],
                "image": pa.array([sample.image for sample in samples], pa.binary()),
                "captions": [sample.captions for sample in samples],
                "label": [sample.label for sample in samples],
            }
        )
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=2)
    return folder


def write_array_record(folder: Path) -> Path:
    from clip_jax.data.sources.array_record import write_array_records

    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        samples = SAMPLES[5 * shard : 5 * shard + 5]
        records = (
            (sample.key, sample.image, sample.captions, {"label": sample.label})
            for sample in samples
        )
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


def write_huggingface(folder: Path) -> Path:
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
        "key": [sample.key for sample in SAMPLES],
        "image": [{"bytes": sample.image, "path": None} for sample in SAMPLES],
        "captions": [list(sample.captions) for sample in SAMPLES],
        "label": [sample.label for sample in SAMPLES],
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
