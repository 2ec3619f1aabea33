"""A run that is killed and started again is the run that was never killed, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from places import REPOSITORY, SUPPORT
from safetensors.numpy import load_file

from clip_jax.training.log.metrics import read_rows

STEPS = 24
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config

def get_config():
    return tiny_config(
        steps={steps}, optimizer__ema_decay=0.9, optimizer__first_moment_dtype="bfloat16",
        evaluations=({{"task": "glyphs_validation/letters", "every_steps": 8}},),
        checkpoint__every_steps=4, mesh__data=2, mesh__fsdp=4,
    )
"""
VALUES = ("step", "samples_seen", "loss", "logit_scale", "learning_rate", "grad_norm")


def start(config: Path, workdir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "clip_jax.train", f"--config={config}", f"--workdir={workdir}"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(config: Path, workdir: Path) -> str:
    process = start(config, workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def logged(workdir: Path) -> list[tuple[float, ...]]:
    return [tuple(row[name] for name in VALUES) for row in read_rows(workdir / "metrics.jsonl")]


def wait_for_step(process: subprocess.Popen[str], workdir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(row["step"] >= step for row in read_rows(workdir / "metrics.jsonl")):
            return
        time.sleep(0.01)


def assert_same_run(workdir: Path, reference: Path) -> None:
    assert logged(workdir) == logged(reference)
    evaluations = read_rows(workdir / "evaluation.jsonl")
    assert evaluations == read_rows(reference / "evaluation.jsonl")
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (workdir, reference))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(tests=str(SUPPORT), steps=STEPS))
    return path


@pytest.fixture(scope="module")
def reference(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("reference") / "run"
    finish(config, workdir)
    assert [row[0] for row in logged(workdir)] == list(range(1, STEPS + 1))
    return workdir


@pytest.mark.slow
def test_kill_at_random_moments(config: Path, reference: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    rng = random.Random()  # other moments in every run of the test
    kills = 0
    # A few steps and random milliseconds later: within steps, saves, evaluations, the export.
    for step in (1, 13, STEPS):
        process = start(config, workdir)
        wait_for_step(process, workdir, step)
        time.sleep(rng.uniform(0, 0.4))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills >= 2
    finish(config, workdir)
    assert_same_run(workdir, reference)


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(config: Path, reference: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    process = start(config, workdir)
    wait_for_step(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    stopped = logged(workdir)[-1][0]
    assert 5 <= stopped < STEPS
    assert (workdir / "checkpoints" / str(int(stopped))).is_dir()
    assert "SIGTERM" in output
    assert "resuming at step" in finish(config, workdir)
    assert_same_run(workdir, reference)


@pytest.mark.slow
def test_finished_run_says_so_and_changes_nothing(config: Path, reference: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (reference / "model").rglob("*") if p.is_file()}
    rows = logged(reference), read_rows(reference / "evaluation.jsonl")
    assert "already trained" in finish(config, reference)
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert rows == (logged(reference), read_rows(reference / "evaluation.jsonl"))
