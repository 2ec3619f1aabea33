"""Joining a job, ending it together, and what its processes must have in common."""

import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import pytest
from job import Job, explicit, free_port
from places import REPOSITORY

from clip_jax import sharding
from clip_jax.errors import UserError
from clip_jax.hosts.join import Job as Found
from clip_jax.hosts.join import alone_on_its_node, find_job, is_peer_error
from clip_jax.sharding import host_rows, make_mesh

ADDRESS = "10.0.0.1:8476"
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": ADDRESS,
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


@pytest.mark.parametrize(
    ("flags", "environment", "found"),
    [
        ({}, {}, None),
        ({}, {"JAX_COORDINATOR_ADDRESS": ADDRESS}, None),
        ({}, {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        ({}, EXPLICIT, Found(ADDRESS, 4, 3)),
        ({"process_id": 0}, EXPLICIT, Found(ADDRESS, 4, 0)),
        ({"multihost": True}, {}, Found()),
        ({"multihost": True, "num_processes": 2}, {}, Found(None, 2, None)),
        (
            {"coordinator_address": ADDRESS},
            {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"},
            Found(ADDRESS, 8, 5),
        ),
    ],
)
def test_flags_and_environment_describe_a_job(flags, environment, found):
    assert find_job(**flags, environment=environment) == found


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"num_processes": 2}, {}, "^--coordinator_address, --process_id: missing"),
        ({}, {"JAX_PROCESS_ID": "0"}, "^--coordinator_address, --num_processes: missing"),
        ({}, EXPLICIT | {"JAX_PROCESS_ID": "4"}, "^--process_id=4: must be 0 to 3"),
        ({}, EXPLICIT | {"JAX_PROCESS_ID": "one"}, "^JAX_PROCESS_ID=one: must be a whole number"),
        ({"process_id": -1}, EXPLICIT, "^--process_id=-1: must be 0 to 3"),
        ({"num_processes": 0}, EXPLICIT, "^--num_processes=0: must be at least 1"),
        ({"coordinator_address": "host"}, EXPLICIT, "^--coordinator_address=host: must be HOST"),
        ({"coordinator_address": "a:99999"}, EXPLICIT, "a:99999: must be HOST:PORT"),
    ],
)
def test_what_does_not_fit_together_is_named(flags, environment, message):
    with pytest.raises(UserError, match=message):
        find_job(**flags, environment=environment)


@pytest.mark.parametrize(
    ("environment", "alone"),
    [
        ({}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2),2"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, False),
    ],
)
def test_one_process_a_node_has_all_its_devices(environment, alone):
    assert alone_on_its_node(environment) is alone


@pytest.mark.parametrize(
    ("mesh", "process_of_device", "rows"),
    [
        ((8, 1, 1), (0, 0, 0, 0, 1, 1, 1, 1), [range(8), range(8, 16)]),
        ((2, 4, 1), (0, 0, 0, 0, 1, 1, 1, 1), [range(8), range(8, 16)]),
        # A mesh that goes through the machines in another order.
        ((8, 1, 1), (1, 1, 0, 0, 0, 0, 1, 1), [range(4, 12), (0, 1, 2, 3, 12, 13, 14, 15)]),
        # The tensor axis runs across two machines: both make the same rows.
        ((2, 1, 4), (0, 0, 1, 1, 2, 2, 3, 3), [range(8), range(8), range(8, 16), range(8, 16)]),
        ((1, 1, 8), (0, 0, 0, 0, 1, 1, 1, 1), [range(16), range(16)]),
        ((2, 1, 4), (0, 0, 0, 0, 1, 1, 1, 1), [range(8), range(8, 16)]),
    ],
)
def test_each_process_makes_the_rows_of_its_devices(mesh, process_of_device, rows, monkeypatch):
    put_devices_on_processes(monkeypatch, process_of_device)
    made = [host_rows(make_mesh(*mesh), 16, process) for process in range(len(rows))]
    assert made == [list(part) for part in rows]


def test_rows_that_are_shared_by_halves_are_refused(monkeypatch):
    put_devices_on_processes(monkeypatch, (0, 0, 0, 1, 1, 1, 2, 2))
    with pytest.raises(UserError, match="mesh data=2 fsdp=1 tensor=4: the devices of process"):
        host_rows(make_mesh(2, 1, 4), 16, 0)


class Device(NamedTuple):
    id: int
    process_index: int


def put_devices_on_processes(monkeypatch, process_of_device):
    """Makes `host_rows` see the simulated devices as those of several processes."""
    real = sharding.batch_sharding

    def fake(mesh):
        def devices_indices_map(shape):
            parts = real(mesh).devices_indices_map(shape)
            return {Device(d.id, process_of_device[d.id]): part for d, part in parts.items()}

        return SimpleNamespace(devices_indices_map=devices_indices_map)

    monkeypatch.setattr(sharding, "batch_sharding", fake)


@pytest.mark.parametrize(
    ("message", "by_peer"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:22193", True),
        ("INTERNAL: Barrier failed because: UNAVAILABLE: Task 1 heartbeat timeout.", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.", False),
    ],
)
def test_errors_that_come_of_another_process(message, by_peer):
    error = RuntimeError("save failed")
    error.__cause__ = jax.errors.JaxRuntimeError(message)
    assert is_peer_error(error) is by_peer
    assert not is_peer_error(OSError(message))  # of a bucket, say


SCRIPT = """
import sys
from pathlib import Path
from clip_jax import command_line
from clip_jax.hosts import agreement
from clip_jax.hosts import join as distributed
from clip_jax.errors import UserError

def main():
    index, address, folder, what = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    with distributed.joined(distributed.Job(address, 2, index), 60, 20):
        assert agreement.gather(b"x" * index) == [b"", b"x"]
        assert agreement.from_first([index, None]) == [0, None]
        agreement.check_same({"a": 1}, "config.", "")
        agreement.check_shared(folder, "--workdir")
        agreement.wait_for_all("here")
        if what == "values":
            agreement.check_same({"a": 1, "b": index}, "config.", "change it")
        if what == "folder":
            agreement.SHARED_SECONDS = 1
            agreement.check_shared(folder / str(index), "--workdir")
        if what == "mistake" and index == 1:
            raise UserError("data: all bad")
        if what == "defect" and index == 0:
            raise TypeError("of ours")
        if what in ("mistake", "defect"):
            while True:
                agreement.gather(b"")
    print("together")

try:
    main()
except UserError as error:
    command_line.fail(str(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "lines"),
    [
        ("nothing", 0, ("", "")),
        ("values", 2, ("config.b=1 on process 1, 0 on process 0; change it",) * 2),
        ("folder", 2, ("process 1 does not see what process 0 writes there",) * 2),
        ("mistake", 2, ("error: process 1 of this job stopped: data: all bad", "error: data")),
        ("defect", 1, ("TypeError: of ours", "error: process 0 of this job stopped: TypeError")),
    ],
)
def test_processes_end_together(what, code, lines, tmp_path):
    """With the same exit code, soon, and each with a line that says why."""
    for index in range(2):
        (tmp_path / str(index)).mkdir()
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(index), address, str(tmp_path), what],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [code] * 2, outputs
    for (out, err), line in zip(outputs, lines, strict=True):
        assert line in err
        assert ("together" in out) == (what == "nothing")
        assert err.count("error:") == (what != "nothing" and "TypeError: of" not in line)


@pytest.mark.slow
def test_a_job_that_cannot_meet_says_so(tmp_path):
    """A port that is taken, and a coordinator that is not there."""
    config = "--config=configs/quickstart.py"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = explicit(2, taken.getsockname()[1])
        with Job(tmp_path / "run", [config], flags[:1]) as job:
            assert job.finish() == [2]
            assert "process 0 cannot listen there (Address already in use)" in job.outputs()[0]
    with Job(tmp_path / "run", [config, "--join_timeout=2"], explicit(2)[1:]) as job:
        assert job.finish(seconds=60) == [2]
        assert "process 0 of this job was not met there within 2 s" in job.outputs()[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_configuration_on_one_process_is_refused(tmp_path):
    flags = explicit(2)
    flags[1].append("--config.seed=7")
    with Job(tmp_path / "run", ["--config=configs/quickstart.py"], flags, devices=1) as job:
        assert job.finish() == [2, 2]
        for output in job.outputs():
            assert "config.seed=7 on process 1, 0 on process 0" in output
