"""Trainers as processes on this machine: one, or several that form a job."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from places import REPOSITORY

from clip_jax.training.log.metrics import read_rows

# Flags of a tiny model for `python -m clip_jax.train` on a folder of photos.
SMALL = (  # noqa: SIM905
    "--config.model.image_size=32 "
    "--config.model.vision.kind=vit --config.model.vision.patch_size=16 "
    "--config.model.vision.width=16 "
    "--config.model.vision.layers=1 --config.model.vision.heads=2 --config.model.vision.mlp_dim=16 "
    "--config.model.text.width=16 --config.model.text.layers=1 --config.model.text.heads=2 "
    "--config.model.text.mlp_dim=16 --config.model.embed_dim=16 --config.tokenizer.vocab_size=300 "
    "--config.batch_size=8 --config.epochs=2.0 --config.log_every_steps=1"
).split()
VALUES = ("loss", "grad_norm", "logit_scale")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def explicit(processes: int, port: int | None = None) -> list[list[str]]:
    """The flags by which each process finds the others."""
    address = f"127.0.0.1:{port or free_port()}"
    return [
        [
            f"--coordinator_address={address}",
            f"--num_processes={processes}",
            f"--process_id={index}",
        ]
        for index in range(processes)
    ]


class Job:
    """Starts `python -m clip_jax.train` once for each of `flags`; all are killed at the end."""

    def __init__(
        self,
        workdir: Path,
        common: Sequence[str],
        flags: Sequence[Sequence[str]] = ((),),
        devices: int = 8,
        environments: Sequence[dict[str, str]] = ({}, {}),
    ):
        """`devices`: simulated ones, of each process."""
        self.workdir = workdir
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []
        for index, mine in enumerate(flags):
            log = workdir.parent / f"{workdir.name}-{len(list(workdir.parent.iterdir()))}.log"
            command = [*(sys.executable, "-m", "clip_jax.train", f"--workdir={workdir}"), *common]
            environment = os.environ | {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                **environments[index],
            }
            with log.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *mine],
                        cwd=REPOSITORY,
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
            self.logs.append(log)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait_for_step(self, step: int, seconds: float = 240) -> None:
        """Until the step is logged, while all processes are there."""
        self._wait(lambda: any(row["step"] >= step for row in self.rows()), seconds)

    def wait_for_checkpoint(self, step: int, seconds: float = 240) -> None:
        """Until a checkpoint of at least this step is complete."""
        folder = self.workdir / "checkpoints"
        self._wait(
            lambda: any(p.name.isdecimal() and int(p.name) >= step for p in folder.glob("*")),
            seconds,
        )

    def _wait(self, condition: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain\n" + "\n".join(self.outputs())
            assert all(p.poll() is None for p in self.processes), "\n".join(self.outputs())
            time.sleep(0.02)

    def signal(self, index: int, number: signal.Signals) -> None:
        self.processes[index].send_signal(number)

    def finish(self, seconds: float = 240) -> list[int]:
        """Waits for all to end; their exit codes."""
        end = time.monotonic() + seconds
        return [p.wait(timeout=max(0.1, end - time.monotonic())) for p in self.processes]

    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.workdir / "metrics.jsonl")

    def outputs(self) -> list[str]:
        """What each process wrote, without the chatter of the collectives."""
        texts = [log.read_text(errors="replace").splitlines() for log in self.logs]
        return ["\n".join(x for x in lines if "peer ranks" not in x) for lines in texts]


def assert_same_values(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], steps: range, rtol: float
) -> None:
    """The metrics of two runs at these steps."""
    for name in VALUES:
        values = [[row[name] for row in rows if row["step"] in steps] for rows in (ours, theirs)]
        assert len(values[0]) == len(steps)
        np.testing.assert_allclose(values[0], values[1], rtol=rtol, err_msg=name)
