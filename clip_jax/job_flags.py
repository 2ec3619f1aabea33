"""Flags of programs that run as several processes, on TPU pods, under SLURM or by hand."""

from contextlib import AbstractContextManager

from absl import flags

_MULTIHOST = flags.DEFINE_boolean(
    "multihost", False, "Join the other processes of this job (TPU pod, SLURM, Open MPI)."
)
_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0 (or $JAX_COORDINATOR_ADDRESS), where the others join it.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Processes of this job (or $JAX_NUM_PROCESSES)."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0 (or $JAX_PROCESS_ID)."
)
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds to wait for all processes at the start.", lower_bound=1
)
_PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout", 40, "Seconds of silence after which a process counts as gone.", lower_bound=5
)


def joined_job() -> AbstractContextManager[None]:
    """Joins the job that the flags name, and makes its processes end together.

    Raises UserError: flags or environment do not name a job, or it cannot be joined.
    """
    from clip_jax.hosts.join import find_job, joined

    job = find_job(_MULTIHOST.value, _ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    return joined(job, _JOIN_TIMEOUT.value, _PEER_TIMEOUT.value)
