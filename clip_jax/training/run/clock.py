"""Clocks of a run: training time, and the time of the next checkpoint."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AGREE_EVERY_STEPS = 4


class Clock:
    """Training time of a run, without evaluations and checkpoints.

    A step's time runs from the end of the previous step to its own end, as the host sees them. Time
    in which the host waited for data is also counted separately.
    """

    def __init__(self, seconds: float, first_step: int):
        """Starts at `first_step`, after `seconds` of training before this start of the run."""
        self.seconds = seconds
        self.wait_seconds = 0.0  # waiting for data, since the last logged row
        self.logged_seconds = self.seconds
        self.logged_step = first_step
        self.started_step = first_step
        self.compiled = False
        self.rate_start = 0.0  # seconds at the end of the first step, which compiles
        self._mark = time.perf_counter()
        self._wait_from = 0.0

    def waiting(self) -> None:
        """Marks the start of a wait for data."""
        self._wait_from = time.perf_counter()

    def running(self) -> None:
        """Adds the time since `waiting` to the seconds spent waiting for data."""
        self.wait_seconds += time.perf_counter() - self._wait_from

    def tick(self) -> None:
        """Adds the time since the last tick to the run's time."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now

    pause = tick

    def resume(self) -> None:
        """Goes on with the run's time after a pause."""
        self._mark = time.perf_counter()

    def logged(self, step: int) -> None:
        """Begins the next logged row."""
        self.logged_seconds, self.logged_step, self.wait_seconds = self.seconds, step, 0.0


class SaveTimer:
    """Timer that tells all hosts alike whether `minutes` have passed since the last save.

    With several hosts, process 0's clock counts. Every `AGREE_EVERY_STEPS` steps a reduction over
    all devices distributes its answer, dispatched behind the training step. Hosts read it that many
    steps later, when it has long arrived, so that none has to wait.
    """

    def __init__(self, minutes: float | None):
        self._minutes = minutes
        self._asked: jax.Array | None = None
        self._mesh = Mesh(np.asarray(jax.devices()), "all", axis_types=(AxisType.Auto,))
        self.reset()

    def reset(self) -> None:
        """Restarts the timer when a save begins; all hosts must call it after the same step."""
        self._last_save = time.monotonic()
        self._asked = None

    def due(self, step: int) -> bool:
        """Whether a save is due after `step`; must be called after every step."""
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
        """Returns () bool on every device: whether any process has set the flag."""
        flags = jax.make_array_from_process_local_data(
            NamedSharding(self._mesh, PartitionSpec("all")),
            np.full(jax.local_device_count(), flag),
        )
        whole = NamedSharding(self._mesh, PartitionSpec())
        with jax.set_mesh(self._mesh):
            return jax.jit(jnp.any, out_shardings=whole)(flags)
