"""A run that is killed and started again is the run that was never killed, bit for bit."""

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from job import Job
from safetensors.numpy import load_file
from tiny import write_config

from clip_jax.training.log.metrics import read_rows

STEPS = 24
VALUES = ("step", "samples_seen", "loss", "logit_scale", "learning_rate", "grad_norm")


def finish(config: str, workdir: Path) -> str:
    with Job(workdir, [config]) as job:
        assert job.finish() == [0], job.outputs()
        return job.outputs()[0]


def logged(workdir: Path) -> list[tuple[float, ...]]:
    return [tuple(row[name] for name in VALUES) for row in read_rows(workdir / "metrics.jsonl")]


def assert_same_run(workdir: Path, reference: Path) -> None:
    assert logged(workdir) == logged(reference)
    evaluations = read_rows(workdir / "evaluation.jsonl")
    assert evaluations == read_rows(reference / "evaluation.jsonl")
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (workdir, reference))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_config(
        tmp_path_factory.mktemp("config"), steps=STEPS, checkpoint__every_steps=4, mesh__data=2,
        mesh__fsdp=4, optimizer__ema_decay=0.9, optimizer__first_moment_dtype="bfloat16",
        evaluations=({"task": "glyphs_validation/letters", "every_steps": 8},),
    )  # fmt: skip
    return f"--config={path}"


@pytest.fixture(scope="module")
def reference(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("reference") / "run"
    finish(config, workdir)
    assert [row[0] for row in logged(workdir)] == list(range(1, STEPS + 1))
    return workdir


@pytest.mark.slow
def test_kill_at_random_moments(config: str, reference: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    rng = random.Random()  # other moments in every run of the test
    kills = 0
    # A few steps and random milliseconds later: within steps, saves, evaluations, the export.
    for step in (1, 13, STEPS):
        with Job(workdir, [config]) as job:
            job.wait_for_step(step)
            time.sleep(rng.uniform(0, 0.4))
            kills += job.processes[0].poll() is None
            job.signal(0, signal.SIGKILL)
    assert kills >= 2
    finish(config, workdir)
    assert_same_run(workdir, reference)


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(config: str, reference: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with Job(workdir, [config]) as job:
        job.wait_for_step(5)
        job.signal(0, signal.SIGTERM)
        assert job.finish() == [0], job.outputs()
        output = job.outputs()[0]
    stopped = logged(workdir)[-1][0]
    assert 5 <= stopped < STEPS
    assert (workdir / "checkpoints" / str(int(stopped))).is_dir()
    assert "SIGTERM" in output
    assert "resuming at step" in finish(config, workdir)
    assert_same_run(workdir, reference)


@pytest.mark.slow
def test_finished_run_says_so_and_changes_nothing(config: str, reference: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (reference / "model").rglob("*") if p.is_file()}
    rows = logged(reference), read_rows(reference / "evaluation.jsonl")
    assert "already trained" in finish(config, reference)
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert rows == (logged(reference), read_rows(reference / "evaluation.jsonl"))
