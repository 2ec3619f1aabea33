"""Guard that keeps jax from loading libtpu on machines without a TPU.

Such machines have libtpu for pre-flights, which compile for a described TPU. jax would load it in
every process, which costs time, and libtpu writes errors to stderr when it finds no TPU.
"""

import contextlib
import os
import sys
from glob import glob
from importlib.util import find_spec

_GOOGLE = "0x1ae0"  # PCI vendor of TPUs, and of the disks and network cards of Google's cloud
_NO_TPU = ("0x01", "0x02")  # PCI classes: storage, network

# libtpu reads these when it is loaded. Without them it queries the cloud's metadata server for its
# identity, refuses a second process, and writes log files.
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
    """Makes jax choose the CPU if libtpu is installed but the machine has no TPU.

    If jax has plugins (for GPUs), it must choose among them, so libtpu is only silenced. The
    user's choice (a non-empty JAX_PLATFORMS, or jax's configuration) stays. Call this before jax
    chooses its devices; `root` is the folder that holds /sys and /dev.
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
    """Whether there is any sign of a TPU; errs towards yes, as an unused TPU is the worse error."""
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
