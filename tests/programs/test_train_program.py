"""The programs as a person runs them: exit codes, one-line errors, files left behind."""

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job import SMALL
from PIL import Image
from programs import Ended, assert_mistake, run_program

pytestmark = pytest.mark.slow


def train(*arguments: str, **environment: str) -> Ended:
    return run_program(
        "clip_jax.train", "--config=configs/own_images.py", *arguments, **environment
    )


def evaluations(*tasks: str, **options: Any) -> str:
    """The flag for evaluations with the same options."""
    return f"--config.evaluations={tuple({'task': task, **options} for task in tasks)}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen coloured squares in two class folders, one file that is no image."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, colour in (("red thing", (200, 30, 30)), ("blue thing", (30, 30, 200))):
        (root / name).mkdir()
        for index in range(8):
            pixels = np.clip(rng.normal(colour, 30, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    (root / "red thing" / "broken.jpg").write_bytes(b"no image at all")
    return root


@pytest.fixture(scope="module")
def photo_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "photos"
    result = train(
        f"--workdir={workdir}",
        f"--config.data.path={photos}",
        evaluations("zero_shot", "retrieval", data={"path": str(photos)}),
        *SMALL,  # with epochs=2.0, which would be four steps
        "--config.steps=3",
        "--config.checkpoint.every_minutes=None",
    )
    assert result.returncode == 0, result.stderr
    assert "broken.jpg" in result.stderr
    return workdir


def test_own_images_leave_the_whole_run_directory(photo_run: Path) -> None:
    names = {path.name for path in photo_run.iterdir()}
    assert {"config.json", "metrics.jsonl", "evaluation.jsonl", "checkpoints", "model"} <= names
    assert "report.html" in names
    last = json.loads((photo_run / "metrics.jsonl").read_text().splitlines()[-1])
    needed = (
        "step samples_seen loss logit_scale learning_rate grad_norm samples_per_second "
        "samples_per_second_per_device model_flops_utilization seconds bad_records"
    )
    assert set(needed.split()) <= last.keys()
    assert (last["step"], last["bad_records"]) == (3, 1)
    evaluations = [json.loads(x) for x in (photo_run / "evaluation.jsonl").read_text().splitlines()]
    assert {row["task"] for row in evaluations} == {"zero_shot", "retrieval"}
    config = json.loads((photo_run / "config.json").read_text())
    assert config["model"]["image_size"] == 32
    assert config["checkpoint"]["every_minutes"] is None
    assert any((photo_run / "tensorboard").iterdir())


def test_evaluate_writes_json(photo_run: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    result = run_program(
        "clip_jax.evaluate",
        f"--model={photo_run}",
        "--tasks=zero_shot,retrieval",
        f"--data={photos}",
        "--templates=photo",
        f"--output={output}",
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(output.read_text())["results"]
    zero_shot = next(row for row in rows if row["task"] == "zero_shot")
    assert zero_shot["num_classes"] == 2
    assert zero_shot["num_images"] == 16
    assert 0 <= zero_shot["accuracy_top1"] <= 1


def test_mistakes_on_the_command_line(tmp_path: Path, photos: Path) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    assert_mistake(run_program("clip_jax.train"), "--config")
    assert_mistake(train(), "--workdir")
    assert_mistake(
        train(workdir, "--config.optimizer.learning_rat=1"),
        "learning_rat",
        "did you mean 'config.optimizer.learning_rate'",
    )
    data = f"--config.data.path={photos}"
    # Mistakes of an evaluation are found before the training begins.
    wrong = evaluations("zero_shot", data={"path": str(photos)}, label_key="kind")
    assert_mistake(train(workdir, data, wrong), "config.evaluations[0]: ", "kind", "class")
    assert_mistake(train("--workdir=gs://bucket/run", data), "gs:/")
    assert_mistake(train(workdir, "--confg=1"), "confg")
    assert_mistake(train(workdir, data, "--multihost"), "--multihost", "--coordinator_address")
    assert not (tmp_path / "run").exists()


def test_explain_sharding_needs_no_workdir(photos: Path) -> None:
    result = train(f"--config.data.path={photos}", *SMALL, "--explain_sharding")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith("on 1 devices")
    assert sum(line.startswith("params/") for line in lines) > 30


def test_mistakes_in_the_data(tmp_path: Path, photos: Path) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    bad = tmp_path / "bad" / "class"
    bad.mkdir(parents=True)
    for index in range(16):
        (bad / f"{index}.jpg").write_bytes(b"not an image")
    few = train(workdir, f"--config.data.path={bad.parent}", *SMALL)
    assert_mistake(few, "max_bad_fraction")
    large = train(workdir, f"--config.data.path={photos}", "--config.batch_size=100")
    assert_mistake(large, "100", "17")


def test_mistakes_against_the_mesh_and_the_workdir(photo_run: Path, photos: Path) -> None:
    data = f"--config.data.path={photos}"
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    flags = (data, f"--workdir={photo_run}2", "--config.batch_size=12")
    assert_mistake(train(*flags, **eight), "batch_size=12", "multiple", "8 or 16")
    before = (photo_run / "metrics.jsonl").read_bytes()
    assert_mistake(train(f"--workdir={photo_run}", data, *SMALL, "--config.steps=2"), "steps=2")
    assert_mistake(
        train(f"--workdir={photo_run}", data, *SMALL, "--config.optimizer.clip_norm=None"),
        "clip_norm=None",
    )
    with open(photo_run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_mistake(train(f"--workdir={photo_run}", data, *SMALL), "another trainer")
    other = train(f"--workdir={photo_run}", data, *SMALL, "--config.model.embed_dim=32")
    assert_mistake(other, "another architecture", "embed_dim: 16 -> 32")
    assert (photo_run / "metrics.jsonl").read_bytes() == before


def test_mistakes_of_evaluate(photo_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(photo_run / "model", tmp_path / "model")
    model_file = next((copy / "tokenizer").glob("*.model"))
    model_file.write_bytes(model_file.read_bytes()[:100])
    for model, task, part in (
        (copy, "glyphs/letters", "tokenizer"),
        ("nowhere", "glyphs/letters", "nowhere"),
        (photo_run, "magic", "magic"),
    ):
        ended = run_program("clip_jax.evaluate", f"--model={model}", f"--tasks={task}")
        assert_mistake(ended, part)
