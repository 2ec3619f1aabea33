"""Checks and exchanges between the processes of a job: values, configuration, shared folder.

All processes must call these functions in the same order; in a job of one they do nothing.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax.errors import UserError
from clip_jax.hosts.join import service

SHARED_SECONDS = 90.0  # until another machine sees a new file; mounted buckets cache for 60


def wait_for_all(name: str, seconds: float = 3600) -> None:
    """Blocks until every process of the job has called it; does not involve the devices."""
    if jax.process_count() > 1:
        service().wait_at_barrier(f"clip_jax/{name}", int(1000 * seconds))


def gather(data: bytes) -> list[bytes]:
    """Returns the bytes of every process, in process order."""
    sizes = multihost_utils.process_allgather(np.asarray(len(data), np.int32))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded).reshape(jax.process_count(), -1)
    return [row.tobytes()[:size] for row, size in zip(rows, np.ravel(sizes), strict=True)]


def from_first(value: Any) -> Any:
    """Broadcasts process 0's value, which must be JSON-serialisable."""
    if jax.process_count() == 1:
        return value
    data = json.dumps(value).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(data), np.int32)))
    padded = np.zeros(size, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


def check_same(values: Mapping[str, Any], prefix: str, advice: str) -> None:
    """Raises the same `UserError` on every process if one has another value than process 0.

    The message begins with the prefix and the name of the value, and ends with the advice.
    """
    if jax.process_count() == 1:
        return
    first, *others = (json.loads(text) for text in gather(json.dumps(values).encode()))
    for index, other in enumerate(others, start=1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{prefix}{name}={other.get(name)} on process {index}, {first.get(name)} on "
                    f"process 0; {advice}"
                )


def check_shared(folder: Path, flag: str) -> None:
    """Raises the same `UserError` on every process if one does not see process 0's folder."""
    if jax.process_count() == 1:
        return
    token, file = from_first(os.urandom(8).hex()), folder / ".job"
    if jax.process_index() == 0:
        file.write_text(token, encoding="utf-8")
    deadline, seen = time.monotonic() + SHARED_SECONDS, b"no"
    while seen == b"no" and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            seen = b"yes" if file.read_text(encoding="utf-8") == token else b"no"
        if seen == b"no":
            time.sleep(0.2)
    blind = [index for index, answer in enumerate(gather(seen)) if answer == b"no"]
    if blind:
        raise UserError(
            f"{flag}={folder}: process {blind[0]} does not see what process 0 writes there; give "
            "a folder that all machines share (NFS, a mounted bucket)"
        )
