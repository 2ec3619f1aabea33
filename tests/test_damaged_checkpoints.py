"""A run whose newest checkpoint is damaged goes on from the one before it, and says so."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import tiny_config

import clip_jax
from clip_jax.errors import UserError, one_line
from clip_jax.sharding import make_mesh
from clip_jax.training.config import TrainConfig, build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.checkpoint import Checkpoints
from clip_jax.training.run.data import open_data
from clip_jax.training.run.loop import train
from clip_jax.training.run.opening import _Begin, _Opening
from clip_jax.training.step.optimizer import make_optimizer


def config_of(steps: int) -> TrainConfig:
    saves = {"checkpoint__every_steps": 2, "checkpoint__keep_newest": 3}
    return build_config(tiny_config(steps=steps, mesh__data=8, **saves))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, with checkpoints at 2, 4 and 6, and no export."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    train(config_of(6), workdir)
    shutil.rmtree(workdir / "model")
    return workdir


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def cut_all(step: Path) -> None:
    for path in files(step):
        os.truncate(path, min(100, path.stat().st_size // 2))


def empty_all(step: Path) -> None:
    for path in files(step):
        os.truncate(path, 0)


def cut_data(step: Path) -> None:
    largest = max(files(step / "params"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def cut_optimizer(step: Path) -> None:
    largest = max(files(step / "rest"), key=lambda path: path.stat().st_size)
    os.truncate(largest, 100)


def remove_data(step: Path) -> None:
    max(files(step / "rest"), key=lambda path: path.stat().st_size).unlink()


def remove_manifest(step: Path) -> None:
    (step / "params" / "manifest.ocdbt").unlink()


def remove_part(step: Path) -> None:
    shutil.rmtree(step / "rest")


def remove_metadata(step: Path) -> None:
    for path in step.glob("*/_METADATA"):
        path.unlink()


def empty_folder(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def cut_identity(step: Path) -> None:
    for path in files(step / "identity"):
        os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], None]] = {
    damage.__name__: damage
    for damage in (
        *(cut_all, empty_all, cut_data, cut_optimizer, remove_data, remove_manifest, remove_part),
        *(remove_metadata, empty_folder, cut_identity),
    )
}


def begin(workdir: Path) -> tuple[_Begin, Checkpoints]:
    config = config_of(8)
    source, mesh = open_data(config), make_mesh(8)
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
        optimizer = make_optimizer(config.optimizer, 8)
        return _Opening(
            config, workdir, source, mesh, 8, optimizer, checkpoints
        ).begin(), checkpoints


def names(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_taken(
    damage: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    workdir = shutil.copytree(run, tmp_path / "run")
    DAMAGES[damage](workdir / "checkpoints" / "6")
    with caplog.at_level(logging.WARNING):
        found, checkpoints = begin(workdir)
    checkpoints.close()
    assert found.step == 4
    said = [line for line in caplog.messages if "checkpoints/6" in line]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "going on from step 4, what is damaged is renamed to 6.damaged" in said[0]
    assert names(workdir) == {"2", "4", "6.damaged"}
    assert "Traceback" not in capfd.readouterr().err


def test_several_are_damaged(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workdir = shutil.copytree(run, tmp_path / "run")
    cut_all(workdir / "checkpoints" / "6")
    remove_part(workdir / "checkpoints" / "4")
    found, checkpoints = begin(workdir)
    checkpoints.close()
    assert found.step == 2
    assert names(workdir) == {"2", "4.damaged", "6.damaged"}
    assert "renamed to 6.damaged, 4.damaged" in caplog.text


def test_where_all_are_damaged_nothing_is_touched(run: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(run, tmp_path / "run")
    for step, damage in ((2, cut_data), (4, remove_part), (6, cut_all)):
        damage(workdir / "checkpoints" / str(step))
    (workdir / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in files(workdir)}
    with pytest.raises(UserError, match=r"^no checkpoint of .*/run can be read: ") as error:
        train(config_of(8), workdir)
    message = str(error.value)
    assert "\n" not in message
    assert all(f"checkpoints/{step}: " in message for step in (2, 4, 6))
    assert message.endswith("restore one, or use another workdir")
    assert {path: path.stat().st_mtime_ns for path in files(workdir) if path in before} == before
    assert names(workdir) == {"2", "4", "6"}


def test_loading_names_the_one_to_give(run: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(run, tmp_path / "run")
    cut_data(workdir / "checkpoints" / "6")
    before = workdir / "checkpoints" / "4"
    with pytest.raises(UserError, match=rf"checkpoints/6: .*; give {before}, the newest"):
        clip_jax.load(workdir)
    assert clip_jax.load(before).params
    for step in (2, 4):
        cut_all(workdir / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"checkpoints/6: cannot be read \(") as error:
        clip_jax.load(workdir)
    assert "give" not in str(error.value)


@pytest.mark.slow
def test_a_run_ends_as_if_nothing_had_happened(run: Path, tmp_path: Path) -> None:
    """Same losses, the same steps saved and kept."""
    whole = shutil.copytree(run, tmp_path / "whole")
    train(config_of(8), whole)
    damaged = shutil.copytree(run, tmp_path / "damaged")
    cut_all(damaged / "checkpoints" / "6")
    train(config_of(8), damaged)
    losses = [
        [(row["step"], row["loss"]) for row in read_rows(folder / "metrics.jsonl")]
        for folder in (whole, damaged)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, 9))
    assert names(whole) == {"4", "6", "8"}
    assert names(damaged) == {"4", "6", "6.damaged", "8"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short"),
        ("two\n  lines", "two lines"),
        ("one two three", "one two…"),
        ("one two, three", "one two…"),
        ("onetwothreefour", "onetwothr…"),
        ("ten letter", "ten letter"),
        ("nine more than that", "nine more…"),
        ("", ""),
    ],
)
def test_messages_are_cut_between_words(text: str, expected: str) -> None:
    assert one_line(ValueError(text), 10) == (expected or "ValueError")
    assert len(one_line(text, 10)) <= 10
