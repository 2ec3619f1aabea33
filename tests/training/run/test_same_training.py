"""The same samples through four formats: the same losses, bit for bit."""

from pathlib import Path

import pytest
from shards import write_shard
from tiny import tiny_config

from clip_jax.data.sources import open_source
from clip_jax.data.sources.array_record import write_array_records
from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.loop import train

Samples = list[tuple[str, bytes, str]]  # key, JPEG, caption


def write_tars(folder: Path, samples: Samples) -> None:
    for shard in range(2):
        part = samples[30 * shard : 30 * shard + 30 if shard == 0 else None]
        content = [(key, {"jpg": image, "txt": text.encode()}) for key, image, text in part]
        write_shard(folder / f"{shard}.tar", content)


def write_folder(folder: Path, samples: Samples) -> None:
    folder.mkdir()
    for key, image, text in samples:
        (folder / f"{key}.jpg").write_bytes(image)
        (folder / f"{key}.txt").write_text(text, encoding="utf-8")


def write_parquet(folder: Path, samples: Samples) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder.mkdir()
    keys, images, texts = zip(*samples, strict=True)
    table = pa.table({"key": keys, "image": pa.array(images, pa.binary()), "caption": texts})
    pq.write_table(table, folder / "all.parquet", row_group_size=7)


def write_records(folder: Path, samples: Samples) -> None:
    pytest.importorskip("array_record")
    folder.mkdir()
    records = ((key, image, (text,), {}) for key, image, text in samples)
    write_array_records(folder / "all.array_record", records)


WRITERS = {
    "tars": write_tars,
    "folder": write_folder,
    "parquet": write_parquet,
    "array_record": write_records,
}


@pytest.mark.slow
def test_four_formats_train_alike(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    photos = open_source(shared_data / "grocery" / "train")
    records = [photos[number] for number in range(0, len(photos), 30)]
    samples = [(f"{n:04d}", bytes(r.image), r.captions[0]) for n, r in enumerate(records)]
    losses = {}
    for name, write in WRITERS.items():
        write(tmp_path / name, samples)
        values = {
            "data__format": "auto",
            "data__path": str(tmp_path / name),
            "augmentation__shift": 0.0,
            "augmentation__flip_probability": 0.5,
            "batch_size": 16,
            "steps": 8,
            "checkpoint__every_steps": None,
        }
        train(build_config(tiny_config(**values)), tmp_path / f"run_{name}")
        rows = read_rows(tmp_path / f"run_{name}" / "metrics.jsonl")
        losses[name] = [row["loss"] for row in rows]
        assert any(row["data_bytes_per_second"] > 0 for row in rows)
    assert len(losses["tars"]) == 8
    assert len(set(losses["tars"])) == 8
    assert all(values == losses["tars"] for values in losses.values()), losses
