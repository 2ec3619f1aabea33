"""Positional reads from local or remote archives; some files stay open."""

import contextlib
import os
import time
from collections.abc import Sequence

from clip_jax.data.process_cache import ProcessCache
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
        self._failed: dict[int, tuple[float, str]] = {}
        self._open = ProcessCache(_MAX_OPEN_FILES)

    def read(self, shard: int, member: Member) -> bytes:
        """Returns the member's bytes.

        Raises OSError, with the archive's name, if it is gone or shorter, or its store fails; at
        once if it failed recently.
        """
        data = self._read(shard, member)
        if len(data) != member.size:
            raise OSError(f"{self.paths[shard]} ends before offset {member.offset + member.size}")
        return data

    def _read(self, shard: int, member: Member) -> bytes:
        failed = self._failed.get(shard)
        if failed is not None and time.monotonic() < failed[0]:
            raise Unavailable(failed[1])
        path = self.paths[shard]
        try:
            if is_remote(path) and not self._copies:
                start = member.offset
                return stores.read_range(path, start, start + member.size, self._remote)
            opened = self._open.get(shard, lambda: _Archive(self._local_path(shard)))
            # pread has no file position, so threads may share a descriptor.
            return os.pread(opened.descriptor, member.size, member.offset)
        except OSError as error:
            reason = str(error)
            if not isinstance(error, Unavailable):
                reason = f"{path}: {error.strerror or error}"
            self._failed[shard] = (time.monotonic() + FORGIVEN_SECONDS, reason)
            raise Unavailable(reason) from error

    def _local_path(self, shard: int) -> str:
        path = self.paths[shard]
        return (
            str(stores.fetch(path, self._remote, self._stats[shard])) if is_remote(path) else path
        )


class _Archive:
    """An open file, closed when nobody reads from it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # not opened, or at interpreter exit
            os.close(self.descriptor)
