"""The training loop: it learns, it stops on a loss that is not finite, it writes what it should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import REPOSITORY
from tiny import tiny_config
from tiny_clip import assert_same_params

from clip_jax.errors import UserError
from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import JsonLines, format_seconds, read_rows
from clip_jax.training.run import loop
from clip_jax.training.run.loop import train
from clip_jax.weights.layouts.checkpoint import read_params


def test_a_run_logs_every_step_and_both_evaluations(tiny_run: Path) -> None:
    rows = read_rows(tiny_run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert 3 < rows[0]["loss"] < 7  # about chance, ln 64 = 4.2
    assert np.mean([row["loss"] for row in rows[-5:]]) < np.mean([row["loss"] for row in rows[:5]])
    assert all(row["data_wait_fraction"] <= 1 for row in rows)
    evaluations = read_rows(tiny_run / "evaluation.jsonl")
    assert [row["step"] for row in evaluations if row["task"] == "glyphs/letters"] == [20, 40]


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """The quickstart's model, on eleven faces and for seconds, reads some of a twelfth."""
    workdir = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "clip_jax.train", "--config=configs/quickstart.py"),
        *(f"--workdir={workdir}", "--config.data.path=train_without_validation"),
        *("--config.steps=120", "--config.optimizer.warmup_steps=30", "--config.report=false"),
        "--config.evaluations=({'task': 'glyphs_validation/retrieval', 'every_steps': 60},)",
    ]
    # Long enough to be worth optimised code.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr
    losses = [row["loss"] for row in read_rows(workdir / "metrics.jsonl")]
    assert losses[-1] < 0.6 * losses[0]
    rows = read_rows(workdir / "evaluation.jsonl")
    recalls = [row["image_to_text_recall_at_10"] for row in rows]
    assert recalls[-1] > recalls[0]
    assert recalls[-1] > 0.1  # of 3,000 names and more; chance is 0.003


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poisoned batch: the state before it is saved, and its records are named."""
    config = build_config(tiny_config(mesh__data=8, steps=20))
    real = loop.global_batch
    calls = []

    def poison(mesh, host_batch):
        calls.append(1)
        batch = real(mesh, host_batch)
        if len(calls) == 7:  # an image of NaN: no uint8 can hold it
            batch["images"] = batch["images"].astype("float32") * np.nan
        return batch

    monkeypatch.setattr(loop, "global_batch", poison)
    with pytest.raises(UserError, match=r"step 7: loss=nan .* is saved \(step 6\)") as error:
        train(config, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "not_finite_step_7.json").read_text())
    assert about["step"] == 7
    assert len(about["keys"]) == 64
    assert about["keys"][0] in str(error.value)
    assert (tmp_path / "run" / "checkpoints" / "6" / "params").is_dir()
    monkeypatch.setattr(loop, "global_batch", real)
    train(config, tmp_path / "run")  # goes on from the good state
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    train(config, tmp_path / "never_poisoned")
    clean = read_rows(tmp_path / "never_poisoned" / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [row["loss"] for row in clean]


@pytest.mark.slow
def test_more_steps_continue_a_finished_run_and_other_data_or_seeds_do_not(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    train(build_config(tiny_config(mesh__data=8, steps=10)), workdir)
    before = (workdir / "model" / "model.safetensors").read_bytes()
    for change in ({"seed": 1}, {"data__path": "test"}, {"batch_size": 128}):
        with pytest.raises(UserError, match=r"cannot resume|another architecture"):
            train(build_config(tiny_config(mesh__data=8, steps=20, **change)), workdir)
    clip = train(build_config(tiny_config(mesh__data=8, steps=20)), workdir)
    assert json.loads((workdir / "model" / "config.json").read_text())["step"] == 20
    assert (workdir / "model" / "model.safetensors").read_bytes() != before
    assert clip is not None
    assert [row["step"] for row in read_rows(workdir / "metrics.jsonl")] == list(range(1, 21))


@pytest.mark.slow
def test_checkpoints_are_thinned_and_the_average_is_exported(tmp_path: Path) -> None:
    config = tiny_config(
        mesh__data=8, steps=24, checkpoint__every_steps=4, checkpoint__keep_every_steps=8,
        optimizer__ema_decay=0.99,
    )  # fmt: skip
    clip = train(build_config(config), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(int(path.name) for path in checkpoints.iterdir()) == [8, 16, 20, 24]
    assert_same_params(clip.params, read_params(checkpoints / "24"))


def test_rows_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')  # cut short by a kill
    lines = JsonLines(path, resume_step=2)
    lines.extend([{"step": 3, "a": 1}])
    lines.close()
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3, "a": 1}]


def test_format_seconds() -> None:
    assert [format_seconds(s) for s in (0, 59.6, 3599, 3661)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:01:01",
    ]
