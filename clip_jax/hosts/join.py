"""Joining of the processes of one run, and their common end.

jax's coordination service joins the processes and watches for silent ones: it ends the others by
SIGABRT, with its own words. This module adds clear errors for flags and environment variables, and
one reason on all processes when one of them stops by itself.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import re
import resource
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from clip_jax.errors import INTERRUPTED, UserError

_ENDED = "clip_jax/ended"  # key of the coordination service: who stopped first, and why
_POLL_SECONDS = 1.0
_GONE = (
    "error: another process of this job is gone (killed, or its machine or network is down: "
    "{status}); this one ends too; the same command on every machine goes on from the newest "
    "checkpoint"
)
# The backends report a process that does not answer with one of these.
_PEER_ERROR = re.compile(
    r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Hh]eartbeat|[Cc]oordination service|"
    r"Connection (closed|reset|refused)"
)
_SIZE_VARIABLES = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE")
_RANK_VARIABLES = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK")


@dataclasses.dataclass(frozen=True)
class Job:
    """Coordinates by which a process finds its job; jax detects those that are None."""

    coordinator_address: str | None = None  # HOST:PORT, where process 0 listens
    num_processes: int | None = None
    process_id: int | None = None


def find_job(
    multihost: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Job | None:
    """Returns the job that flags and environment describe, or None if this process is alone.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID replace flags that are not
    given. With `multihost`, jax detects missing values (TPU pod, SLURM, Open MPI, Kubernetes);
    without it, all three are needed. Raises `UserError` for inconsistent values.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    asked = any(value is not None for value in given.values())
    asked = asked or any(environment.get(v[0]) for v in (_SIZE_VARIABLES, _RANK_VARIABLES))
    alone = all(value is None for value in given.values()) and any(
        environment.get(name) == "1" for name in _SIZE_VARIABLES
    )
    if not multihost and (alone or not asked):
        return None
    job = Job(
        coordinator_address or environment.get("JAX_COORDINATOR_ADDRESS") or None,
        _number(num_processes, "num_processes", _SIZE_VARIABLES, environment),
        _number(process_id, "process_id", _RANK_VARIABLES, environment),
    )
    missing = [f"--{name}" for name, value in dataclasses.asdict(job).items() if value is None]
    if missing and not multihost:
        raise UserError(
            f"{', '.join(missing)}: missing; give --coordinator_address=HOST:PORT, --num_processes "
            "and --process_id together, or --multihost to have them found"
        )
    _check(job)
    return job


def _number(
    value: int | None, flag: str, variables: tuple[str, ...], environment: Mapping[str, str]
) -> int | None:
    if value is not None:
        return value
    for name in variables:
        if text := environment.get(name):
            if not text.isdecimal():
                raise UserError(f"{name}={text}: must be a whole number (as --{flag})")
            return int(text)
    return None


def _check(job: Job) -> None:
    address, count, index = job.coordinator_address, job.num_processes, job.process_id
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UserError(
                f"--coordinator_address={address}: must be HOST:PORT, such as 10.0.0.1:8476"
            )
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count}: must be at least 1")
    if index is not None and (index < 0 or (count is not None and index >= count)):
        highest = "" if count is None else f" to {count - 1}"
        raise UserError(f"--process_id={index}: must be 0{highest}, another for each process")


@contextlib.contextmanager
def joined(job: Job | None, join_seconds: int, peer_seconds: int) -> Iterator[None]:
    """Joins the job, and makes its processes end together; does nothing for None.

    All processes must join within `join_seconds`; one that is silent for `peer_seconds` counts as
    gone.

    An exception that leaves the block ends this process at once, with its usual exit code and
    message. The others end with the same code and a line that names the reason; under jax alone
    they would wait for each other. Raises `UserError` if the job cannot be joined.
    """
    if job is None:
        yield
        return
    if job.process_id == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _check_port(job.coordinator_address)
    if job.process_id and job.coordinator_address is not None:
        _wait_for_port(job.coordinator_address, join_seconds)
    _join(job, join_seconds, peer_seconds)
    with _Watch() as watch:
        try:
            _check_devices()
            yield
        except BaseException as error:
            watch.leave(error)
            raise
    jax.distributed.shutdown()  # waits for the others


def _join(job: Job, join_seconds: int, peer_seconds: int) -> None:
    # The service ends processes by SIGABRT, and a core dump of a trainer is large and useless.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        jax.distributed.initialize(
            **dataclasses.asdict(job),
            initialization_timeout=join_seconds,
            heartbeat_timeout_seconds=peer_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(_why_not_joined(job, str(error))) from error
    if not os.environ.get("JAX_LOCAL_DEVICE_IDS") and alone_on_its_node(os.environ):
        # jax assumes one process per GPU, and would use only the first GPU.
        for platform in ("cuda", "rocm"):
            jax.config.update(f"jax_{platform}_visible_devices", "all")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_own_error)


def _check_port(address: str | None) -> None:
    """Raises `UserError` if process 0 cannot listen on its port, which sometimes crashes jax."""
    if address is None:
        return
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise UserError(
                f"--coordinator_address={address}: process 0 cannot listen there "
                f"({error.strerror}); give a free port"
            ) from error


def _wait_for_port(address: str, seconds: int) -> None:
    """Raises `UserError` if nothing listens at process 0's address, which would abort jax."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator_address={address}: process 0 of this job was not met there "
                    f"within {seconds} s ({error.strerror or error}); look whether it is running, "
                    "and whether this machine can reach that address"
                ) from error
        time.sleep(0.2)


def _check_devices() -> None:
    """Raises `UserError` if the processes have different numbers of devices."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    for index, count in counts.items():
        if count != counts[0]:
            raise UserError(
                f"process {index} of this job has {count} devices, and process 0 {counts[0]}; "
                "give each process as many"
            )


def _why_not_joined(job: Job, error: str) -> str:
    if "should be defined" in error or "must be defined" in error:
        return (
            "--multihost: no TPU pod, SLURM, Open MPI or Kubernetes job is found around this "
            "process; give --coordinator_address=HOST:PORT, --num_processes and --process_id"
        )
    address = f"--coordinator_address={job.coordinator_address}" if job.coordinator_address else ""
    return f"{address or '--multihost'}: the other processes cannot be joined: {error}"


def alone_on_its_node(environment: Mapping[str, str]) -> bool:
    """Whether SLURM or Open MPI started one process per node, which then owns all its devices."""
    if tasks := environment.get("SLURM_STEP_TASKS_PER_NODE"):
        return {part.split("(")[0] for part in tasks.split(",")} == {"1"}
    return environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


class _Watch:
    """Reports to the others why this process stops, and stops it when one of them has reported."""

    def __init__(self) -> None:
        self._client = service()
        self._end = threading.Event()
        self._last_words = threading.Lock()  # never released by the thread that ends the process
        self._thread = threading.Thread(target=self._poll, name="peers", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._end.wait(_POLL_SECONDS):
            try:
                told = json.loads(self._client.key_value_try_get(_ENDED))
            except (jax.errors.JaxRuntimeError, ValueError):
                continue  # no process has stopped, or the service is gone, which jax reports
            if told["process"] != jax.process_index():
                line = f"error: process {told['process']} of this job stopped: {told['reason']}"
                self._exit(line, told["code"])

    def leave(self, error: BaseException) -> None:
        """Ends this process because of an exception, and the others with it."""
        if isinstance(error, SystemExit | GeneratorExit):
            return
        code, reason = 1, f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            code, reason, line = 2, str(error), f"error: {error}"
        elif isinstance(error, KeyboardInterrupt):
            code, reason = 130, "interrupted"
            line = INTERRUPTED
        elif jax.process_count() > 1 and is_peer_error(error):
            time.sleep(3 * _POLL_SECONDS)  # the poll may find why the other process stopped
            self._exit(_GONE.format(status=str(error).strip().partition("\n")[0]), code)
        else:
            line = "".join(traceback.format_exception(error)).rstrip()
        told = {"process": jax.process_index(), "code": code, "reason": reason}
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or all are gone
            self._client.key_value_set(_ENDED, json.dumps(told))
        if jax.process_index() == 0 and jax.process_count() > 1:
            time.sleep(3 * _POLL_SECONDS)  # the service ends with this process
        self._exit(line, code)

    def _exit(self, line: str, code: int) -> None:
        """Writes the line and ends the process; unlike jax, does not wait for the others."""
        self._last_words.acquire()
        sys.stdout.flush()
        # A traceback of our own keeps its lines.
        text = " ".join(line.split()) if line.startswith("error: ") else line
        print(text, file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():  # readers of data
            child.kill()
        os._exit(code)


def service() -> Any:
    """Returns the client of the coordination service, which has no public name in jax."""
    from jax._src import distributed

    return distributed.global_state.client


def _is_own_error(record: logging.LogRecord) -> bool:
    """Returns False for a traceback that a library's thread logs because a peer is gone."""
    return not (record.exc_info and is_peer_error(record.exc_info[1]))


def is_peer_error(error: BaseException | None) -> bool:
    """Whether an exception says that another process does not answer."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and _PEER_ERROR.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
