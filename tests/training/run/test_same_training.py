"""The same samples through several formats: the same losses, bit for bit."""

from pathlib import Path

import pytest
from small_sets import WRITERS
from tiny import tiny_config

from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.loop import train


@pytest.mark.slow
def test_formats_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    losses = {}
    for name in ("webdataset", "folder", "parquet", "array_record", "jsonl"):
        write, packages = WRITERS[name]
        for package in packages:
            pytest.importorskip(package)
        values = {
            "data__format": "auto",
            "data__path": str(write(tmp_path / name)),
            "augmentation__flip_probability": 0.5,
            "batch_size": 8,
            "steps": 8,
            "checkpoint__every_steps": None,
        }
        train(build_config(tiny_config(**values)), tmp_path / f"run_{name}")
        rows = read_rows(tmp_path / f"run_{name}" / "metrics.jsonl")
        losses[name] = [row["loss"] for row in rows]
        assert any(row["data_bytes_per_second"] > 0 for row in rows)
    assert len(set(losses["webdataset"])) == 8
    assert all(values == losses["webdataset"] for values in losses.values()), losses
