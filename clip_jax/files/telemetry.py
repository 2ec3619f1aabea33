"""What reading costs, counted where it happens and carried along with the batches.

Workers are processes of their own: each batch takes the counts since the one before with it.
"""

import threading
from collections import Counter


class Telemetry:
    """Counts by name; safe in threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)


# Of this process. Names: bytes_read, bytes_fetched, cache_hits, cache_misses, store_retries.
telemetry = Telemetry()
