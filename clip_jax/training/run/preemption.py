"""Preemption of a run by SIGTERM, on one host or on all."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Turns SIGTERM into a flag that the loop checks between steps."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._before: Any = None

    def __enter__(self) -> Preemption:
        # With several hosts, jax has its own handler, by which they agree on the step.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self.requested.set())
        return self

    def reached(self, step: int) -> bool:
        """Whether all hosts must stop after this step."""
        if jax.process_count() == 1:
            return self.requested.is_set()
        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
