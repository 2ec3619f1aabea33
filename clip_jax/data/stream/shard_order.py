"""Order of streamed shards: which are read in parallel, and how their samples are shuffled.

Each epoch deals the shards out anew to a fixed number of streams. A stream reads its shards in
windows of a few, copied to local disk; samples are shuffled within a window. Each stream fills its
own rows of every batch. So the order depends on the seed, the shards, the batch size and the number
of streams, not on hosts or workers; a host copies only the shards of its own rows' streams. Streams
may end an epoch at different times, because shards differ in length.

A checkpoint stores the current window of each stream; a resume begins with that window.
"""

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.process_cache import ProcessCache
from clip_jax.data.stream.order import mixed_seed, shuffled
from clip_jax.data.stream.shards import SHIFT, Held, StreamingSource
from clip_jax.errors import UserError
from clip_jax.files.stores import in_background

_MOST_STREAMS = 64  # default maximum
MAX_STREAMS = 4096
_BATCHES_IN_FLIGHT = 64  # upper bound; threads and buffers hold only a few
_WINDOWS_TRIED = 64  # in search of a replacement record
_EMPTY_EPOCHS = 8  # of one stream before the run stops: a few may be bad luck
_CLOSED_SECONDS = 0.2  # between checks for closed batches

# Stream -> (epoch, window in the epoch, position in the stream at which the window begins).
Cursor = dict[str, tuple[int, int, int]]


class Begun(NamedTuple):
    """A shard that a stream starts to read."""

    epoch: int
    path: str
    samples: int  # usable ones
    drops: dict[str, int]  # kind -> dropped samples
    lost: str | None  # why the whole shard is unreadable


@dataclass(frozen=True)
class _Window:
    start: int  # position in the stream of its first sample
    epoch: int
    number: int
    shards: tuple[int, ...]
    ends: np.ndarray  # cumulative sample counts of its shards
    begun: tuple[Begun, ...]  # its shards, and those of empty windows before it

    @property
    def size(self) -> int:
        return int(self.ends[-1])

    @property
    def end(self) -> int:
        return self.start + self.size

    def record(self, place: int) -> int:
        """Returns the record number at a place in the window, before shuffling."""
        at = int(np.searchsorted(self.ends, place, side="right"))
        first = int(self.ends[at - 1]) if at else 0
        return self.shards[at] << SHIFT | place - first


class _Stream:
    """Windows of one stream, found one after the other."""

    def __init__(self, order: "StreamOrder", index: int, cursor: Sequence[int]) -> None:
        self._order = order
        self._source = order.source
        self._index = index
        self._begin = self._next = tuple(cursor)  # epoch, window, start
        self._windows: list[_Window] = []
        self._ahead: dict[tuple[int, int], Future[list[Held]]] = {}
        self._lock = threading.Lock()

    def window(self, position: int) -> _Window:
        """Returns the window that holds the sample at `position`."""
        with self._lock:
            if self._windows and position < self._windows[0].start:
                # The window was released: find the windows again from the shards' known counts.
                self._windows, self._next = [], self._begin
            while not self._windows or position >= self._windows[-1].end:
                self._windows.append(self._find())
            for window in reversed(self._windows):
                if window.start <= position:
                    return window
        raise AssertionError(f"position {position} of stream {self._index} is before its cursor")

    def _let_go(self, position: int) -> None:
        """Releases windows that no batch in flight with the one at `position` can need."""
        oldest = position - self._order.rows * _BATCHES_IN_FLIGHT
        with self._lock:
            while self._windows[0].end <= oldest:
                del self._windows[0]

    def _find(self) -> _Window:
        epoch, number, start = self._next
        last_epoch = epoch + _EMPTY_EPOCHS
        begun: list[Begun] = []
        while True:
            shards, is_last = self._shards(epoch, number)
            held = self._copied(epoch, number)
            for shard, x in zip(shards, held, strict=True):
                path = self._source.paths[shard]
                begun.append(Begun(epoch, path, x.count, x.drops, x.lost))
            ends = np.cumsum([x.count for x in held])
            window = _Window(start, epoch, number, shards, ends, tuple(begun))
            epoch, number = (epoch + 1, 0) if is_last else (epoch, number + 1)
            if window.size:
                break
            if epoch > last_epoch:
                raise UserError(
                    f"no shard of stream {self._index} had samples in {_EMPTY_EPOCHS} epochs, such"
                    f" as {begun[-1].path}: {begun[-1].lost or 'none that could be used'}"
                )
        self._next = (epoch, number, start + window.size)
        self._copy(epoch, number)  # while this window is read
        return window

    def _copy(self, epoch: int, number: int) -> Future[list[Held]]:
        """Returns a future of the contents of each shard of a window, once they are copied."""

        def copy() -> list[Held]:
            found = []
            for shard in self._shards(epoch, number)[0]:
                self._order.check_open()
                found.append(self._source.held(shard, epoch))
            return found

        if (epoch, number) not in self._ahead:
            self._ahead[epoch, number] = in_background(copy)
        return self._ahead[epoch, number]

    def _copied(self, epoch: int, number: int) -> list[Held]:
        copying = self._copy(epoch, number)
        while not copying.done():
            wait_for([copying], timeout=_CLOSED_SECONDS)
            self._order.check_open()
        del self._ahead[epoch, number]
        return copying.result()

    def _shards(self, epoch: int, number: int) -> tuple[tuple[int, ...], bool]:
        """Returns (shards of a window, whether it is the last of its epoch)."""
        order, seed = self._order, np.random.SeedSequence([self._order.seed, epoch, 2])
        shards = np.random.Generator(np.random.Philox(seed)).permutation(len(self._source.paths))
        mine = shards[self._index :: order.streams].tolist()
        end = (number + 1) * order.width
        return tuple(mine[number * order.width : end]), end >= len(mine)

    def record(self, position: int) -> int:
        """Returns the record number at a position of the stream."""
        window = self.window(position)
        self._let_go(position)
        seed = self._seed_of(window, 3)
        return window.record(shuffled(position - window.start, window.size, seed))

    def replacements(self, position: int) -> Iterator[int]:
        """Yields other records of the same window, then of later ones."""
        at = position
        for _ in range(_WINDOWS_TRIED):
            window = self.window(at)
            seed = self._seed_of(window, position - self.window(position).start, 4)
            # Records of lost shards are skipped: trying them would fail one by one.
            is_lost = all(map(self._source.is_lost, window.shards))
            for attempt in range(0 if is_lost else window.size):
                number = window.record(shuffled(attempt, window.size, seed))
                if not self._source.is_lost(number >> SHIFT):
                    yield number
            at = window.end

    def _seed_of(self, window: _Window, *parts: int) -> int:
        return mixed_seed(self._order.seed, window.epoch, window.number, self._index, *parts)


class StreamOrder:
    """Order of a `StreamingSource`, which also has cursors.

    Args:
      source: the source whose shards are dealt out.
      seed: of the order.
      batch_size: of the global batch; must be a multiple of `streams`.
      streams: number of streams; None: the largest divisor of the batch size that is at most 64
        and the number of shards.
      width: shards per window.
      cursor: where to begin, from a checkpoint; {} or None: at the start.

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
        self.source, self.seed = source, seed
        self.streams, self.width = streams, width
        self.rows = batch_size // streams  # of a batch, per stream
        self._batch_size = batch_size
        self._cursor = dict(cursor or {})
        self._end_mark = source.folder / f"closed-{uuid.uuid4().hex}"  # visible to all processes
        self._open = ProcessCache(MAX_STREAMS)

    def _place(self, position: int) -> tuple[int, int]:
        """Returns (stream, position in it) of a position in the global stream."""
        batch, row = divmod(position, self._batch_size)
        stream, within = divmod(row, self.rows)
        return stream, batch * self.rows + within

    def _stream(self, index: int) -> _Stream:
        begin = self._cursor.get(str(index), (0, 0, 0))
        stream: _Stream = self._open.get(index, lambda: _Stream(self, index, begin))
        return stream

    def close(self) -> None:
        """Stops all waiting for shards, in this process and in workers."""
        with contextlib.suppress(FileNotFoundError):  # the source is gone, folder and all
            self._end_mark.touch()

    def check_open(self) -> None:
        """Raises UserError after `close`, in any process."""
        if self._end_mark.exists():
            raise UserError("the batches are closed")

    def numbers(self, positions: Sequence[int]) -> Iterator[int]:
        for position in positions:
            stream, within = self._place(position)
            yield self._stream(stream).record(within)

    def replacements(self, position: int) -> Iterator[int]:
        stream, within = self._place(position)
        return self._stream(stream).replacements(within)

    def progress(self, positions: Sequence[int]) -> dict[str, Any]:
        """Returns {"cursor", "begun"} of a batch with these positions.

        The cursor has, for each stream, the window of its last position. Begun are the shards whose
        window begins at a position: in the first epoch all, later those with drops. Both depend on
        the positions only, so that each shard is reported once across workers and resumes.
        """
        cursor: Cursor = {}
        begun: list[Begun] = []
        for position in positions:
            stream, within = self._place(position)
            window = self._stream(stream).window(within)
            begun += window.begun if window.start == within else ()
            here = (window.epoch, window.number, window.start)
            cursor[str(stream)] = max(cursor.get(str(stream), here), here)
        begun = [shard for shard in begun if shard.drops or shard.lost or shard.epoch == 0]
        return {"cursor": cursor, "begun": begun}
