"""Tar files of a store, read one after the other: no index of the whole set, a local shuffle.

`clip_jax.data.stream_order` deals them out; here they are copied, and read.
"""

import logging
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.paths import expand_paths
from clip_jax.data.records import Drops, Record, fingerprint_of
from clip_jax.data.tar_indexes import build_indexes
from clip_jax.data.telemetry import DROPPED, telemetry
from clip_jax.data.webdataset import WebDatasetSource
from clip_jax.errors import UserError

logger = logging.getLogger(__name__)

SHIFT = 32  # a record's number is its shard's, shifted by so many bits, and its place in the shard
_OPEN_SHARDS = 128


class StreamingSource:
    """Records of shards by (shard, place); what a shard holds is found when it is copied.

    `len` is an estimate, from the first shard. A shard that cannot be had counts as empty.

    Raises:
      UserError: no shard there, or the first cannot be read.
    """

    def __init__(
        self,
        path: str,
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._options = options
        self.paths = expand_paths(path, remote=options.remote)
        self.dropped = Drops()
        self.fingerprint = fingerprint_of((path, ()) for path in self.paths)
        # Workers agree here on what each shard holds: the first that finds out says so.
        self._verdicts = tempfile.TemporaryDirectory(prefix="clip_jax_stream_")
        self.folder = Path(self._verdicts.name)
        self._reset()
        self._estimate = self.count(0, 0) * len(self.paths)
        if not self._estimate:
            raise UserError(f"{self.paths[0]}: no sample that could be used; see the log above")

    def _reset(self) -> None:
        self._open: dict[int, WebDatasetSource] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_open", "_lock", "_verdicts")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def count(self, shard: int, epoch: int) -> int:
        """Samples of a shard, which is copied for it; 0 where it cannot be had in this epoch.

        Raises UserError where `remote.on_failure` is "stop".
        """
        verdict = self.folder / f"{epoch}-{shard}"
        known = _read(verdict)
        if known is not None:
            return known
        path = self.paths[shard]
        summary = build_indexes([path], options=self._options)
        if summary.failed and self._options.remote.on_failure == "stop":
            raise UserError(f"{summary.failed[path]}; config.data.remote.on_failure is 'stop'")
        count = sum(found.header.count for found in summary.shards)
        drops = Counter({"shard_unreadable": len(summary.failed)})
        for found in summary.shards:
            drops.update(found.header.drop_counts)
        part = self.folder / f"{epoch}-{shard}.{os.getpid()}.{threading.get_ident()}"
        part.write_text(str(count))
        try:
            os.link(part, verdict)  # the first wins
            telemetry.add(**{f"{DROPPED}{kind}": n for kind, n in drops.items() if n})
            for failed, reason in summary.failed.items():
                logger.warning("%s left out in epoch %d: %s", failed, epoch, reason)
        except FileExistsError:
            count = _read(verdict) or 0
        part.unlink()
        return count

    def _shard(self, shard: int) -> WebDatasetSource:
        with self._lock:
            source = self._open.get(shard)
        if source is None:
            source = WebDatasetSource(self.paths[shard], self._options)
            with self._lock:
                while len(self._open) >= _OPEN_SHARDS:
                    self._open.pop(next(iter(self._open)))
                self._open[shard] = source
        return source

    def __len__(self) -> int:
        return self._estimate

    def __getitem__(self, number: int) -> Record:
        return self._shard(number >> SHIFT)[number & (1 << SHIFT) - 1]

    def captions(self, number: int) -> tuple[str, ...]:
        return self._shard(number >> SHIFT).captions(number & (1 << SHIFT) - 1)

    def metadata(self, number: int) -> dict[str, Any]:
        return self._shard(number >> SHIFT).metadata(number & (1 << SHIFT) - 1)

    def key(self, number: int) -> str:
        return self._shard(number >> SHIFT).key(number & (1 << SHIFT) - 1)

    def sample_numbers(self, shards: int) -> Iterator[int]:
        """Records of so many shards, spread over the set."""
        step = max(1, len(self.paths) // shards)
        for shard in range(0, len(self.paths), step):
            for place in range(self.count(shard, 0)):
                yield shard << SHIFT | place


def _read(verdict: Path) -> int | None:
    try:
        return int(verdict.read_text())
    except FileNotFoundError:
        return None
