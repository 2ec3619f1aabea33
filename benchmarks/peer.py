"""What the benchmarks share: the peer's worker process, and the limit of this machine."""

import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from absl import flags

from clip_jax.models.config import ClipConfig

_PEER = flags.DEFINE_string("peer_python", None, "Python of an environment with open_clip.")
_PEER_PATH = flags.DEFINE_string("peer_pythonpath", "", "PYTHONPATH for the peer.")


class PeerError(Exception):
    """The peer cannot do this model."""


class Peer:
    """The worker process of peer_torch.py."""

    def __init__(self, config: ClipConfig, batch_size: int):
        spec = config.to_dict() | {"batch_size": batch_size, "threads": os.cpu_count()}
        worker = Path(__file__).with_name("peer_torch.py")
        self.process = subprocess.Popen(
            [str(_PEER.value), str(worker), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": _PEER_PATH.value},
        )
        self.about = self._read()
        self.parameters = self.about["parameters"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise PeerError("the peer ended; its message is above")
            if line.startswith("{"):
                return json.loads(line)

    def time(self, what: str, count: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"what": what, "count": count}) + "\n")
        self.process.stdin.flush()
        return self._read()["seconds"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def matmul_flops_per_second(size: int = 2048) -> float:
    """The rate of a large float32 product: what these cores can do at best."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(times)
