"""Bounded cache of what one process holds: open files, footers, decoded row groups."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Any = None
        self.size = 0


class ProcessCache:
    """LRU cache of values that belong to one process, such as open files; safe in threads.

    It is pickled empty, and is empty after a fork, at which another thread may have held its lock.
    A value is made once even if several threads wait for it. An evicted value is not closed: a
    thread that reads from it keeps it alive.

    Args:
      limit: maximum sum of the sizes; a newest value that is larger is kept alone.
      size: value -> its size; None: each has size 1.
    """

    def __init__(self, limit: int, size: Callable[[Any], int] | None = None) -> None:
        self._limit = limit
        self._size = size
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._limit, self._size)

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns the value; errors of `make` pass through and are not cached."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.value is None:
                entry.value = make()
                with self._lock:
                    entry.size = 1 if self._size is None else self._size(entry.value)
                    self._shrink(entry)
            return entry.value

    def _shrink(self, newest: _Entry) -> None:
        total = sum(entry.size for entry in self._entries.values())
        for key, entry in list(self._entries.items()):
            if total <= self._limit:
                return
            if entry is not newest:
                del self._entries[key]
                total -= entry.size
