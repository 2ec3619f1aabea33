"""A run whose newest checkpoint is damaged goes on from the one before it, and says so."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import tiny_config
from tiny_clip import TINY, nested

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
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, with checkpoints at 2, 4 and 6, and the export."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(config_of(6), workdir)
    return workdir


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, with checkpoints at 2, 4 and 6, and no export."""
    workdir = shutil.copytree(finished, tmp_path_factory.mktemp("run") / "run")
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


def file_instead(step: Path) -> None:
    shutil.rmtree(step)
    step.write_text("no folder")


def remove_one_metadata(step: Path) -> None:
    (step / "params" / "_METADATA").unlink()


def remove_parameters(step: Path) -> None:
    data = files(step / "params" / "ocdbt.process_0" / "d")
    max(data, key=lambda path: path.stat().st_size).unlink()


def empty_metadata(step: Path) -> None:
    os.truncate(step / "params" / "_METADATA", 0)


def not_an_identity(stored: str) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        text = json.dumps({"json": stored})
        (step / "identity" / "_strings.json").write_text(text)

    damage.__name__ = f"identity_{stored}"
    return damage


def cut_identity(step: Path) -> None:
    for path in files(step / "identity"):
        os.truncate(path, path.stat().st_size // 2)


NOT_IDENTITIES = (
    *("{}", "[]", "null", "3", '"text"', '{"config": [], "architecture": {}, "tokenizer": {}}'),
    '{"config": {"optimizer": {}}, "architecture": {}, "tokenizer": {"spec": {}, "files": {}}}',
)
DAMAGES: dict[str, Callable[[Path], None]] = {
    damage.__name__: damage
    for damage in (
        *(cut_all, empty_all, cut_data, cut_optimizer, remove_data, remove_manifest, remove_part),
        *(remove_metadata, empty_folder, cut_identity, file_instead, remove_one_metadata),
        *(remove_parameters, empty_metadata),
        *map(not_an_identity, NOT_IDENTITIES),
    )
}


def error_of(source: Path) -> str:
    with pytest.raises(UserError) as error:
        clip_jax.load(source)
    message = str(error.value)
    assert "\n" not in message
    return message


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
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    assert "coroutine" not in errors


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
    assert error_of(workdir).startswith(f"no checkpoint of {workdir} can be read: ")


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"cut_optimizer", "remove_data"}))
def test_loading_refuses_whatever_is_wrong(damage: str, run: Path, tmp_path: Path) -> None:
    """No older step is taken in silence; the optimizer's state is not read by `load`."""
    workdir = shutil.copytree(run, tmp_path / "run")
    newest, before = (workdir / "checkpoints" / str(step) for step in (6, 4))
    DAMAGES[damage](newest)
    message = error_of(workdir)
    assert message.startswith(f"{newest}: ")
    assert message.endswith(f"; give {before}, the newest one that can be read")
    said = message.removeprefix(f"{newest}: ").partition("; give")[0]
    assert len(said) < 170, said
    assert "damaged" in said or "not complete" in said
    assert error_of(workdir / "checkpoints").startswith(f"{newest}: ")
    DAMAGES[damage](before)
    shutil.rmtree(workdir / "checkpoints" / "2")
    message = error_of(workdir)
    assert message.startswith(f"no checkpoint of {workdir} can be read: {newest}: ")
    assert f"; {before}: " in message


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove_part, "is not complete (no rest/_METADATA)"),
        (remove_one_metadata, "is not complete (no params/_METADATA)"),
        (empty_metadata, "params/_METADATA is damaged or incomplete (Expecting value"),
        (remove_parameters, "params is damaged or incomplete (DATA_LOSS: Error reading"),
        (remove_manifest, "params is damaged or incomplete ("),
        (not_an_identity("{}"), "identity is damaged (config is missing or not an object)"),
        (not_an_identity("[]"), "identity is damaged (a list, not an object)"),
    ],
)
def test_messages_name_what_is_damaged(
    damage: Callable[[Path], None], expected: str, run: Path, tmp_path: Path
) -> None:
    step = shutil.copytree(run / "checkpoints" / "6", tmp_path / "6")
    damage(step)
    assert error_of(step).startswith(f"{step}: {expected}")


def test_folders_of_other_programs_are_no_checkpoints(tmp_path: Path) -> None:
    clip = clip_jax.create("custom", **nested(TINY))
    for place in ("model", "model/checkpoints/500"):
        clip.save(tmp_path / place, format="huggingface")
    assert clip_jax.load(tmp_path / "model" / "checkpoints" / "500").params
    assert clip_jax.load(tmp_path / "model").params


@pytest.mark.slow
@pytest.mark.parametrize("is_caught", [True, False])
def test_a_script_prints_little(is_caught: bool, run: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(run, tmp_path / "run")
    remove_parameters(workdir / "checkpoints" / "6")
    lines = ["import clip_jax", "try: clip_jax.load('run')", "except clip_jax.errors.UserError:"]
    script = "\n".join([*lines, f"    {'pass' if is_caught else 'raise'}"])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if is_caught:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.stderr.count("Traceback") == 1
        assert len(done.stderr.splitlines()) < 20


def cut_weights(model: Path) -> None:
    os.truncate(model / "model.safetensors", 5000)


def empty_weights(model: Path) -> None:
    os.truncate(model / "model.safetensors", 0)


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def remove_tokenizer(model: Path) -> None:
    shutil.rmtree(model / "tokenizer")


def cut_config(model: Path) -> None:
    os.truncate(model / "config.json", 100)


def remove_config(model: Path) -> None:
    (model / "config.json").unlink()


def empty_model(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_weights, empty_weights, remove_weights, remove_tokenizer, cut_config, remove_config),
        empty_model,
    ],
)
def test_a_damaged_export_is_made_again(
    damage: Callable[[Path], None], finished: Path, tmp_path: Path, capfd: Any
) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run")
    damage(workdir / "model")
    if damage in (cut_weights, empty_weights, remove_weights):
        newest = re.escape(str(workdir / "checkpoints" / "6"))
        for source in (workdir, workdir / "model"):
            with pytest.raises(UserError, match=rf"model\.safetensors: .*; give {newest}, the new"):
                clip_jax.load(source)
        assert "download" not in error_of(workdir)
    train(config_of(6), workdir)
    assert "already trained" not in capfd.readouterr().err
    assert clip_jax.load(workdir / "model").tokenizer is not None
    train(config_of(6), workdir)
    assert "already trained to step 6" in capfd.readouterr().err


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


@pytest.mark.slow
def test_a_checkpoint_of_more_devices_than_there_are_is_loaded(run: Path) -> None:
    """Its arrays lay on eight devices; a program of the tests' environment without them has one."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    script = "import sys, jax, clip_jax; assert jax.device_count() == 1; clip_jax.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(run)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
