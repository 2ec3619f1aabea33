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
from clip_jax.errors import UserError
from clip_jax.sharding import make_mesh
from clip_jax.training.config import TrainConfig, build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.checkpoint import Checkpoints
from clip_jax.training.run.data import open_data
from clip_jax.training.run.loop import train
from clip_jax.training.run.opening import _Opening


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


def largest(folder: Path) -> Path:
    return max(files(folder), key=lambda path: path.stat().st_size)


def cut_all(step: Path) -> None:
    for path in files(step):
        os.truncate(path, min(100, path.stat().st_size // 2))


def empty_folder(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def file_instead(step: Path) -> None:
    shutil.rmtree(step)
    step.write_text("no folder")


def not_an_identity(stored: str) -> Callable[[Path], Any]:
    text = json.dumps({"json": stored})
    return lambda step: (step / "identity" / "_strings.json").write_text(text)


NOT_IDENTITIES = (
    *("{}", "[]", "null", "3", '"text"', '{"config": [], "architecture": {}, "tokenizer": {}}'),
    '{"config": {"optimizer": {}}, "architecture": {}, "tokenizer": {"spec": {}, "files": {}}}',
)
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut_all": cut_all,
    "empty_all": lambda step: [os.truncate(path, 0) for path in files(step)],
    "cut_data": lambda step: os.truncate(
        largest(step / "params"), largest(step / "params").stat().st_size // 2
    ),
    "cut_optimizer": lambda step: os.truncate(largest(step / "rest"), 100),
    "remove_data": lambda step: largest(step / "rest").unlink(),
    "remove_manifest": lambda step: (step / "params" / "manifest.ocdbt").unlink(),
    "remove_part": lambda step: shutil.rmtree(step / "rest"),
    "remove_metadata": lambda step: [path.unlink() for path in step.glob("*/_METADATA")],
    "empty_folder": empty_folder,
    "file_instead": file_instead,
    "remove_one_metadata": lambda step: (step / "params" / "_METADATA").unlink(),
    "remove_parameters": lambda step: largest(step / "params" / "ocdbt.process_0" / "d").unlink(),
    "empty_metadata": lambda step: os.truncate(step / "params" / "_METADATA", 0),
    "cut_identity": lambda step: [
        os.truncate(path, path.stat().st_size // 2) for path in files(step / "identity")
    ],
    **{f"identity {stored}": not_an_identity(stored) for stored in NOT_IDENTITIES},
}


def error_of(source: Path) -> str:
    with pytest.raises(UserError) as error:
        clip_jax.load(source)
    message = str(error.value)
    assert "\n" not in message
    return message


def started_from(workdir: Path) -> int:
    """The step from which a run would go on."""
    config = config_of(8)
    source, mesh = open_data(config), make_mesh(8)
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
        *_, state = _Opening(config, workdir, source, mesh, 8, checkpoints).start()
        checkpoints.close()
    return int(state.step)


def names(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.parametrize("damage", [name for name in DAMAGES if "identity " not in name])
def test_the_one_before_is_taken(
    damage: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    workdir = shutil.copytree(run, tmp_path / "run")
    DAMAGES[damage](workdir / "checkpoints" / "6")
    with caplog.at_level(logging.WARNING):
        assert started_from(workdir) == 4
    said = [line for line in caplog.messages if "checkpoints/6" in line]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "going on from step 4, what is damaged is renamed to 6.damaged" in said[0]
    assert names(workdir) == {"2", "4", "6.damaged"}
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    assert "coroutine" not in errors


def test_where_all_are_damaged_nothing_is_touched(run: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(run, tmp_path / "run")
    for step, damage in ((2, "cut_data"), (4, "remove_part"), (6, "cut_all")):
        DAMAGES[damage](workdir / "checkpoints" / str(step))
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


# Beginnings of messages, after the path of the checkpoint.
MESSAGES = {
    "remove_part": "is not complete (no rest/_METADATA)",
    "remove_one_metadata": "is not complete (no params/_METADATA)",
    "empty_metadata": "params/_METADATA is damaged or incomplete (Expecting value",
    "remove_parameters": "params is damaged or incomplete (DATA_LOSS: Error reading",
    "remove_manifest": "params is damaged or incomplete (",
    "identity {}": "identity is damaged (config is missing or not an object)",
    "identity []": "identity is damaged (a list, not an object)",
}


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"cut_optimizer", "remove_data"}))
def test_loading_refuses_whatever_is_wrong(damage: str, run: Path, tmp_path: Path) -> None:
    """No older step is taken in silence; the optimizer's state is not read by `load`."""
    workdir = shutil.copytree(run, tmp_path / "run")
    newest, before = (workdir / "checkpoints" / str(step) for step in (6, 4))
    DAMAGES[damage](newest)
    message = error_of(workdir)
    assert message.startswith(f"{newest}: {MESSAGES.get(damage, '')}")
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
    DAMAGES["remove_parameters"](workdir / "checkpoints" / "6")
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


DAMAGED_EXPORTS: dict[str, Callable[[Path], Any]] = {
    "cut_weights": lambda model: os.truncate(model / "model.safetensors", 5000),
    "empty_weights": lambda model: os.truncate(model / "model.safetensors", 0),
    "remove_weights": lambda model: (model / "model.safetensors").unlink(),
    "remove_tokenizer": lambda model: shutil.rmtree(model / "tokenizer"),
    "cut_config": lambda model: os.truncate(model / "config.json", 100),
    "remove_config": lambda model: (model / "config.json").unlink(),
    "empty_model": empty_folder,
}


@pytest.mark.parametrize("damage", DAMAGED_EXPORTS)
def test_a_damaged_export_is_made_again(
    damage: str, finished: Path, tmp_path: Path, capfd: Any
) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run")
    DAMAGED_EXPORTS[damage](workdir / "model")
    if damage.endswith("weights"):
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
def test_a_run_ends_as_if_nothing_had_happened(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Same losses and parameters, the same steps saved and kept; though two are damaged."""
    whole = shutil.copytree(run, tmp_path / "whole")
    train(config_of(8), whole)
    damaged = shutil.copytree(run, tmp_path / "damaged")
    for step in (4, 6):
        cut_all(damaged / "checkpoints" / str(step))
    train(config_of(8), damaged)
    assert "renamed to 6.damaged, 4.damaged" in caplog.text
    losses = [
        [(row["step"], row["loss"]) for row in read_rows(folder / "metrics.jsonl")]
        for folder in (whole, damaged)
    ]
    assert losses[0] == losses[1]
    models = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, damaged)]
    assert models[0] == models[1]
    assert [step for step, _ in losses[0]] == list(range(1, 9))
    assert names(whole) == {"4", "6", "8"}
    assert names(damaged) == {"4", "4.damaged", "6", "6.damaged", "8"}


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
