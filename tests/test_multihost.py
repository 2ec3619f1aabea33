"""Two processes on one machine, started as SLURM would start them, train the one-process run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from safetensors.numpy import load_file

from clip_jax.training.metrics import read_rows

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config

def get_config():
    return tiny_config(
        steps=12, checkpoint__every_steps=5, mesh__data=2, mesh__fsdp=4,
        evaluation__tasks=("glyphs_validation/letters",),
    )
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train(config: Path, workdir: Path, processes: int) -> None:
    """Runs all processes to their end; each has its share of eight devices."""
    common = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}"}
    if processes > 1:
        common |= {
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": str(processes),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        }
    command = [sys.executable, "-m", "clip_jax.train", f"--config={config}", f"--workdir={workdir}"]
    running = []
    for index in range(processes):
        mine = {"SLURM_PROCID": str(index), "SLURM_LOCALID": "0"} if processes > 1 else {}
        running.append(
            subprocess.Popen(
                [*command, *(["--multihost"] if processes > 1 else [])],
                cwd=REPOSITORY,
                env=common | mine,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=300)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output


@pytest.mark.slow
def test_two_processes_train_the_same_run(tmp_path: Path) -> None:
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG.format(tests=str(REPOSITORY / "tests")))
    one, two = tmp_path / "one", tmp_path / "two"
    train(config, one, 1)
    train(config, two, 2)
    rows = [read_rows(workdir / "metrics.jsonl") for workdir in (one, two)]
    assert [row["step"] for row in rows[1]] == list(range(1, 13))  # written once, by process 0
    losses = [[row["loss"] for row in part] for part in rows]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    exports = [load_file(workdir / "model" / "model.safetensors") for workdir in (one, two)]
    for name, leaf in exports[0].items():
        np.testing.assert_allclose(exports[1][name], leaf, atol=1e-3, err_msg=name)
    assert len(read_rows(two / "evaluation.jsonl")) == 1
