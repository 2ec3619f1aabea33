"""Tar files of a store, read one after the other: no index of the whole set, a local shuffle.

The shards are dealt out to a fixed number of streams, anew in each epoch. A stream reads its shards
in windows of a few, copied to this machine; within a window samples are shuffled. Each stream fills
rows of its own of every batch. So the order depends on the seed, the shards, the batch size and the
number of streams, not on hosts or workers; a host copies the shards of its own rows' streams only.
An epoch of one stream may end before that of another: shards differ in length.

A checkpoint has the window that each stream is in; a resume begins with that window.
"""

import logging
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.order import shuffled
from clip_jax.data.paths import expand_paths
from clip_jax.data.records import Drops, Record, fingerprint_of
from clip_jax.data.tar_indexes import build_indexes
from clip_jax.data.telemetry import DROPPED, telemetry
from clip_jax.data.webdataset import WebDatasetSource
from clip_jax.errors import UserError

logger = logging.getLogger(__name__)

SHIFT = 32  # a record's number is its shard's, shifted by so many bits, and its place in the shard
_MOST_STREAMS = 64  # where the configuration leaves it open
MAX_STREAMS = 4096
_OPEN_SHARDS = 128
_WINDOWS_TRIED = 64  # for a record that takes the place of another
_EMPTY_EPOCHS = 8  # of one stream, after which the data is called bad: a few may be bad luck

# Of each stream: epoch, window in it, position in the stream at which the window begins.
Cursor = dict[str, tuple[int, int, int]]


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
        self._folder = Path(self._verdicts.name)
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
        verdict = self._folder / f"{epoch}-{shard}"
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
        part = self._folder / f"{epoch}-{shard}.{os.getpid()}.{threading.get_ident()}"
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


@dataclass(frozen=True)
class _Window:
    start: int  # position in the stream of its first sample
    epoch: int
    number: int
    shards: tuple[int, ...]
    ends: np.ndarray  # of its shards, in samples

    @property
    def size(self) -> int:
        return int(self.ends[-1])

    def record(self, place: int) -> int:
        """The number of the record at a place in the window, before shuffling."""
        at = int(np.searchsorted(self.ends, place, side="right"))
        first = int(self.ends[at - 1]) if at else 0
        return self.shards[at] << SHIFT | place - first


class _Stream:
    """The windows of one stream, found one after the other."""

    def __init__(
        self,
        source: StreamingSource,
        streams: int,
        index: int,
        seed: int,
        width: int,
        cursor: Sequence[int],
    ) -> None:
        self._source = source
        self._streams = streams
        self._index = index
        self._seed = seed
        self._width = width
        self._next = tuple(cursor)  # epoch, window, start
        self._windows: list[_Window] = []
        self._lock = threading.Lock()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="shards")

    def window(self, position: int) -> _Window:
        """The one that holds the sample at `position`; earlier ones than the last few are gone."""
        with self._lock:
            while not self._windows or position >= self._windows[-1].start + self._windows[-1].size:
                self._windows = [*self._windows[-8:], self._find()]
            for window in reversed(self._windows):
                if window.start <= position:
                    return window
        raise AssertionError(f"position {position} of stream {self._index} is long past")

    def _find(self) -> _Window:
        epoch, number, start = self._next
        last_epoch = epoch + _EMPTY_EPOCHS
        while True:
            shards, is_last = self._shards(epoch, number)
            ends = np.cumsum([self._source.count(shard, epoch) for shard in shards])
            window = _Window(start, epoch, number, shards, ends)
            epoch, number = (epoch + 1, 0) if is_last else (epoch, number + 1)
            if window.size:
                break
            if epoch > last_epoch:
                raise UserError(
                    f"no shard of stream {self._index} could be read in {_EMPTY_EPOCHS} epochs"
                    f" (such as {self._source.paths[shards[0]]}); see the log"
                )
        self._next = (epoch, number, start + window.size)
        for shard in self._shards(epoch, number)[0]:  # copied while this window is read
            self._ahead.submit(self._source.count, shard, epoch)
        return window

    def _shards(self, epoch: int, number: int) -> tuple[tuple[int, ...], bool]:
        """(shards of a window, whether it is the last of its epoch)."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch, 2])))
        mine = rng.permutation(len(self._source.paths))[self._index :: self._streams].tolist()
        end = (number + 1) * self._width
        return tuple(mine[number * self._width : end]), end >= len(mine)

    def record(self, position: int) -> int:
        """The number of the record at a position of the stream."""
        window = self.window(position)
        seed = self._seed_of(window, 3)
        return window.record(shuffled(position - window.start, window.size, seed))

    def replacements(self, position: int) -> Iterator[int]:
        """Other records of the same window, then of those after it."""
        at = position
        for _ in range(_WINDOWS_TRIED):
            window = self.window(at)
            seed = self._seed_of(window, position - self.window(position).start, 4)
            for attempt in range(window.size):
                yield window.record(shuffled(attempt, window.size, seed))
            at = window.start + window.size

    def _seed_of(self, window: _Window, *parts: int) -> int:
        whole = [self._seed, window.epoch, window.number, self._index, *parts]
        return int(np.random.SeedSequence(whole).generate_state(1)[0])


class StreamOrder:
    """The order of a `StreamingSource`; an `Order` that also has cursors.

    Args:
      source: whose shards are dealt out.
      seed: of the order.
      batch_size: of the global batch; `streams` divides it.
      streams: how many; None: the largest divisor of the batch size up to 64 and the shards.
      width: shards of a window.
      cursor: where to begin, from a checkpoint; {}: at the start.

    Raises UserError for more streams than shards, or a number that does not divide the batch.
    """

    def __init__(
        self,
        source: StreamingSource,
        seed: int,
        batch_size: int,
        streams: int | None = None,
        width: int = 2,
        cursor: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        shards = len(source.paths)
        if streams is None:
            most = min(_MOST_STREAMS, shards)
            streams = max(n for n in range(1, most + 1) if batch_size % n == 0)
        if not 1 <= streams <= min(shards, MAX_STREAMS) or batch_size % streams:
            raise UserError(
                f"config.data.streams={streams}: must divide config.batch_size={batch_size} and be"
                f" at most the number of shards, {shards}, and {MAX_STREAMS}"
            )
        self.streams = streams
        self._source = source
        self._seed = seed
        self._batch_size = batch_size
        self._rows = batch_size // streams  # of a batch, by each stream
        self._width = width
        self._cursor = dict(cursor or {})
        self._reset()

    def _reset(self) -> None:
        self._open: dict[int, _Stream] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _place(self, position: int) -> tuple[int, int]:
        """(stream, position in it) of a position in the global stream."""
        batch, row = divmod(position, self._batch_size)
        stream, within = divmod(row, self._rows)
        return stream, batch * self._rows + within

    def _stream(self, index: int) -> _Stream:
        with self._lock:
            stream = self._open.get(index)
            if stream is None:
                begin = self._cursor.get(str(index), (0, 0, 0))
                stream = self._open[index] = _Stream(
                    self._source, self.streams, index, self._seed, self._width, begin
                )
            return stream

    def numbers(self, positions: Sequence[int]) -> Iterator[int]:
        for position in positions:
            stream, within = self._place(position)
            yield self._stream(stream).record(within)

    def replacements(self, position: int) -> Iterator[int]:
        stream, within = self._place(position)
        return self._stream(stream).replacements(within)

    def cursor(self, positions: Sequence[int]) -> Cursor:
        """Of each stream that has one of these positions, the window of the last of them."""
        last: dict[int, int] = {}
        for position in positions:
            stream, within = self._place(position)
            last[stream] = max(last.get(stream, 0), within)
        found: Cursor = {}
        for index, within in last.items():
            window = self._stream(index).window(within)
            found[str(index)] = (window.epoch, window.number, window.start)
        return found
