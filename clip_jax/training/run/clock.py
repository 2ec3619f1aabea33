"""Time in a run: where it goes, and when it calls for a checkpoint."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AGREE_EVERY_STEPS = 4


class Clock:
    """Where the time of a run goes, without evaluations and checkpoints.

    A step's time runs from the end of the step before it to its own end, as seen by the host; the
    share in which the host waited for data is kept apart.
    """

    def __init__(self, seconds: float, first_step: int):
        """`seconds` of training up to `first_step`, in the parts of the run before this one."""
        self.seconds = seconds
        self.wait_seconds = 0.0  # for data, since the last logged row
        self.logged_seconds = self.seconds
        self.logged_step = first_step
        self.started_step = first_step
        self.compiled = False
        self.rate_start = 0.0  # seconds at the end of the first step, which compiles
        self._mark = time.perf_counter()
        self._wait_from = 0.0

    def waiting(self) -> None:
        self._wait_from = time.perf_counter()

    def running(self) -> None:
        self.wait_seconds += time.perf_counter() - self._wait_from

    def tick(self) -> None:
        """Adds the time since the last tick to the run."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now

    pause = tick

    def resume(self) -> None:
        self._mark = time.perf_counter()

    def logged(self, step: int) -> None:
        """Begins the next logged row."""
        self.logged_seconds, self.logged_step, self.wait_seconds = self.seconds, step, 0.0


class SaveTimer:
    """Whether so many minutes have passed since the last save, with the same answer on all hosts.

    With several hosts it is process 0's clock that counts. Every `AGREE_EVERY_STEPS` steps a
    reduction over all devices carries its answer along behind the training step, and it is read so
    many steps later, when it has long been there: the host waits for nothing.
    """

    def __init__(self, minutes: float | None):
        self._minutes = minutes
        self._asked: jax.Array | None = None
        self._mesh = Mesh(np.asarray(jax.devices()), "all", axis_types=(AxisType.Auto,))
        self.reset()

    def reset(self) -> None:
        """A save begins; all hosts call it after the same step."""
        self._last_save = time.monotonic()
        self._asked = None

    def due(self, step: int) -> bool:
        """Whether a save is due after `step`; to be called after every step."""
        if self._minutes is None:
            return False
        late = time.monotonic() - self._last_save > 60 * self._minutes
        if jax.process_count() == 1:
            return late
        if step % AGREE_EVERY_STEPS:
            return False
        answer = self._asked is not None and bool(self._asked)
        self._asked = self._ask(late and jax.process_index() == 0)
        return answer

    def _ask(self, flag: bool) -> jax.Array:
        """() bool on every device: whether the flag is set anywhere."""
        flags = jax.make_array_from_process_local_data(
            NamedSharding(self._mesh, PartitionSpec("all")),
            np.full(jax.local_device_count(), flag),
        )
        whole = NamedSharding(self._mesh, PartitionSpec())
        with jax.set_mesh(self._mesh):
            return jax.jit(jnp.any, out_shardings=whole)(flags)
