"""Row groups of Parquet files, decoded on demand into an LRU cache.

A row group is the smallest readable unit, so a global shuffle reads a whole one for each image:
slow, unless the groups are small or fit into `IMAGES_BYTES`.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from clip_jax.data.sources.columns import local_copy
from clip_jax.errors import UserError
from clip_jax.files.options import RemoteOptions

# Each process caches up to this size of decoded row groups; a larger one is kept alone.
IMAGES_BYTES = 256 << 20
_TEXTS_BYTES = 64 << 20
_FOOTERS_BYTES = 64 << 20


def import_pyarrow() -> tuple[Any, Any]:
    """Returns (pyarrow, pyarrow.parquet). Raises UserError if pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow: pip install 'clip_jax[parquet]'") from error
    return pyarrow, pyarrow.parquet


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Any = None


class ByteCache:
    """LRU cache limited in bytes; a value is made once even if several threads wait for it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._sizes: dict[Any, int] = {}

    def get(self, key: Any, make: Callable[[], tuple[Any, int]]) -> Any:
        """Returns the value; `make`: () -> (value, bytes), whose errors pass through uncached."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.value is None:
                entry.value, size = make()
                with self._lock:
                    if self._entries.get(key) is entry:
                        self._sizes[key] = size
                        self._shrink(key)
            return entry.value

    def _shrink(self, newest: Any) -> None:
        total = sum(self._sizes.values())
        for key in list(self._entries):
            if total <= self._limit:
                return
            if key != newest:
                del self._entries[key]
                total -= self._sizes.pop(key, 0)


class RowGroups:
    """Tables of row groups of several files; picklable, safe in threads and after a fork.

    No file stays open; the footers, which are expensive to read, are cached.
    """

    def __init__(self, paths: Sequence[str], remote: RemoteOptions) -> None:
        self.paths = list(paths)
        self._remote = remote
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._images = ByteCache(IMAGES_BYTES)
        self._texts = ByteCache(_TEXTS_BYTES)
        self._footers = ByteCache(_FOOTERS_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "_remote": self._remote}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def images(self, file: int, group: int, column: str) -> Any:
        """Returns one column as a ChunkedArray. All methods raise OSError and ArrowException."""
        self._check_process()
        table = self._images.get(
            (file, group), lambda: _with_size(self.read(file, group, [column]))
        )
        return table.column(column)

    def texts(self, file: int, group: int, columns: Sequence[str]) -> Any:
        """Returns a Table of small columns."""
        self._check_process()
        key = (file, group, tuple(columns))
        return self._texts.get(key, lambda: _with_size(self.read(file, group, columns)))

    def read(self, file: int, group: int, columns: Sequence[str]) -> Any:
        """Returns a Table, without caching it."""
        with self._open(file, self.footer(file)) as opened:
            # The caller has threads; pyarrow's own would not survive a fork.
            return opened.read_row_group(group, columns=list(columns), use_threads=False)

    def footer(self, file: int) -> Any:
        """Returns the FileMetaData of a file."""
        self._check_process()

        def make() -> tuple[Any, int]:
            with self._open(file) as opened:
                # A parsed footer takes several times its serialized size.
                return opened.metadata, 4 * opened.metadata.serialized_size

        return self._footers.get(file, make)

    def _open(self, file: int, footer: Any = None) -> Any:
        _, parquet = import_pyarrow()
        for attempts_left in (1, 0):
            try:
                # With a memory map, a file truncated while it is read would kill the process.
                local = local_copy(self.paths[file], self._remote)
                return parquet.ParquetFile(local, metadata=footer, memory_map=False)
            except FileNotFoundError:  # the cache may have evicted the copy
                if not attempts_left:
                    raise
        raise AssertionError("unreachable")

    def _check_process(self) -> None:
        if self._process != os.getpid():  # another thread may have held a lock at the fork
            self._reset()


def _with_size(table: Any) -> tuple[Any, int]:
    return table, table.nbytes
