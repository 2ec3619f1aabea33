"""Keeps libtpu out of processes on machines that have it but no TPU.

libtpu is then there for pre-flights, which compile for a TPU that is only described. jax would load
it in every process, which costs time, and libtpu writes errors to stderr when it finds no TPU.
"""

import contextlib
import os
import sys
from glob import glob
from importlib.util import find_spec

_GOOGLE = "0x1ae0"  # PCI vendor of TPUs, and of the disks and network cards of Google's cloud
_NO_TPU = ("0x01", "0x02")  # PCI classes: storage, network

# What libtpu reads when it is loaded. Without these it asks the cloud's metadata server who it is,
# refuses a second process, and writes log files.
QUIET_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}


def leave_idle_tpu_alone(root: str = "/") -> None:
    """Makes jax choose the CPU where libtpu is installed and no TPU is there.

    Where jax has plugins (for GPUs) it has to choose among them, and libtpu is told to be silent. A
    choice of the user (JAX_PLATFORMS that is not empty, or jax's configuration) stays. Call it
    before jax chooses its devices; `root` is the folder that has /sys and /dev.
    """
    if os.environ.get("JAX_PLATFORMS") or find_spec("libtpu") is None or _has_tpu(root):
        return
    if find_spec("jax_plugins") is not None:
        for name, value in QUIET_LIBTPU.items():
            os.environ.setdefault(name, value)
    elif "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        import jax

        if not jax.config.jax_platforms:  # type: ignore[attr-defined]
            with contextlib.suppress(RuntimeError):  # jax has its devices already
                jax.config.update("jax_platforms", "cpu")


def _has_tpu(root: str) -> bool:
    """Whether any sign of a TPU is there; in doubt yes, since a TPU left unused is the worse."""
    if any(glob(f"{root}/dev/{name}[0-9]*") for name in ("accel", "vfio/")):
        return True
    for device in glob(f"{root}/sys/bus/pci/devices/*"):
        if _read(f"{device}/vendor") == _GOOGLE and _read(f"{device}/class")[:4] not in _NO_TPU:
            return True
    return False


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""
