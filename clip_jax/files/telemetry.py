"""Counters of input cost, sent to the trainer with the batches.

Workers are separate processes: each batch carries the counts since the previous one.
"""

import threading
from collections import Counter


class Telemetry:
    """Thread-safe counters by name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        """Adds to the counts, by name; threads may call it at once."""
        with self._lock:
            self._counts.update(counts)

    def take(self) -> dict[str, int]:
        """Returns the counts since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)


# Each process has its own: bytes_read, bytes_fetched, cache_hits, cache_misses, store_retries.
telemetry = Telemetry()
