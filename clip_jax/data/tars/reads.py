"""Positional reads from local or remote archives; some files stay open."""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from clip_jax.data.tars.captions import Member
from clip_jax.files import stores
from clip_jax.files.options import RemoteOptions
from clip_jax.files.patterns import is_remote
from clip_jax.files.stores import Stat, Unavailable

_MAX_OPEN_FILES = 256  # well below the usual limit of 1,024 per process
FORGIVEN_SECONDS = 600.0  # until an archive that failed is tried again


class ShardFiles:
    """Archives for reading; picklable, safe in threads and after a fork.

    If all remote archives together fit into the cache, each is copied there on first use;
    otherwise every member is a request of its own.
    """

    def __init__(self, paths: Sequence[str], stats: Sequence[Stat], remote: RemoteOptions) -> None:
        self.paths = tuple(paths)
        self._stats = tuple(stats)
        self._remote = remote
        elsewhere = sum(
            stat.size for path, stat in zip(paths, stats, strict=True) if is_remote(path)
        )
        self._copies = elsewhere <= remote.cache_gib * 2**30
        self._reset()

    def _reset(self) -> None:
        self._descriptors: dict[int, int] = {}
        self._failed: dict[int, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_descriptors", "_failed", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            with contextlib.suppress(OSError):  # at interpreter exit
                os.close(descriptor)

    def read(self, shard: int, member: Member) -> bytes:
        """Returns the member's bytes.

        Raises OSError, with the archive's name, if it is gone or shorter, or its store fails; at
        once if it failed recently.
        """
        # pread has no file position, so threads and forked children may share a descriptor.
        descriptor = self._descriptors.get(shard)
        if descriptor is not None:
            data = os.pread(descriptor, member.size, member.offset)
        else:
            data = self._read_slowly(shard, member)
        if len(data) != member.size:
            raise OSError(f"{self.paths[shard]} ends before offset {member.offset + member.size}")
        return data

    def _read_slowly(self, shard: int, member: Member) -> bytes:
        failed = self._failed.get(shard)
        if failed is not None and time.monotonic() < failed[0]:
            raise Unavailable(failed[1])
        path = self.paths[shard]
        try:
            if is_remote(path) and not self._copies:
                start = member.offset
                return stores.read_range(path, start, start + member.size, self._remote)
            return self._open_and_read(shard, member)
        except OSError as error:
            reason = str(error)
            if not isinstance(error, Unavailable):
                reason = f"{path}: {error.strerror or error}"
            self._failed[shard] = (time.monotonic() + FORGIVEN_SECONDS, reason)
            raise Unavailable(reason) from error

    def _open_and_read(self, shard: int, member: Member) -> bytes:
        path = self.paths[shard]
        if is_remote(path):
            path = str(stores.fetch(path, self._remote, self._stats[shard]))
        descriptor = os.open(path, os.O_RDONLY)
        with self._lock:
            # The first descriptors stay open: closing one could hit a thread that reads from it.
            keep = shard not in self._descriptors and len(self._descriptors) < _MAX_OPEN_FILES
            if keep:
                self._descriptors[shard] = descriptor
        try:
            return os.pread(descriptor, member.size, member.offset)
        finally:
            if not keep:
                os.close(descriptor)
