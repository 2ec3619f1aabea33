"""Input pipeline: shuffled, augmented, tokenised batches of a host, the same for any worker count.

A batch is a pure function of (data, seed, batch number), so a resume at batch k needs no state but
k. grain computes batches ahead, in threads or processes, and delivers them in order:

    MapDataset.range(∞) -> map(batch number -> batch) -> [start_batch:] -> threads or processes

One map to a whole batch takes 15 µs for a small in-memory image; grain's usual chain of per-record
steps (seed, shuffle, repeat, slice, random_map, batch) takes 33.
"""

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import absl.flags
import grain
import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.sources.refine import RefinedSource
from clip_jax.data.stream.bad_share import Tally, check_opened, opened
from clip_jax.data.stream.caption_words import CaptionWords
from clip_jax.data.stream.groups import BalancedSource, GroupNumber, SampleWeight
from clip_jax.data.stream.make_batch import Bad, MakeBatch, Tokenize
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.data.stream.order import ShuffledOrder
from clip_jax.data.stream.shard_order import Begun, Cursor, StreamOrder
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.errors import UserError
from clip_jax.files.telemetry import telemetry
from clip_jax.images.augmentation import Augmentation

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_ENDLESS = 2**53  # batches
_READ_THREADS = 4  # without workers; each makes whole batches
# A checkpoint may be of a batch before the last one: a resume can start from an older cursor, not
# from a newer one.
_CURSORS = 4
_DIED = "Worker process was terminated unexpectedly"  # grain's message


class BatchIterator:
    """Endless batches of one host; made by `training_batches`.

    Attributes:
      next_batch: number of the batch that `next` returns; a resume passes it as `start_batch`.
      tally: what was left out; its `lost_shards` do not count for `max_bad_fraction`.
      counts: of `telemetry`, since the source was opened.
    """

    def __init__(
        self, make_batch: MakeBatch, workers: int, start_batch: int, max_bad_fraction: float
    ) -> None:
        self._make_batch = make_batch
        self._source, self._order = make_batch.source, make_batch.order
        self._workers = workers
        self._max_bad_fraction = max_bad_fraction
        # A stream finds its drops while it is read, other sources when they are opened.
        streams = isinstance(self._order, StreamOrder)
        self.tally = Tally(len(self._source)) if streams else opened(self._source)
        self._cursors: deque[Cursor] = deque(maxlen=_CURSORS)
        self.counts = Counter(telemetry.take())  # of opening the source
        del self.counts["bytes_read"]  # no part of the rate
        self.next_batch = start_batch
        batches = grain.MapDataset.range(_ENDLESS).map(make_batch)[start_batch:]
        self._iterator = iter(_parallel(batches, workers))

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        """Returns {"images": uint8 (B, S, S, 3), "tokens": int32 (B, L), "indices": int64 (B,)}.

        `indices` are the records used. A record whose image cannot be decoded is replaced by
        another, and logged once. Raises UserError if too many are bad, or a reader process died.
        """
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if _DIED not in str(error):
                raise
            raise UserError(
                "a reader process was killed (out of memory?); fewer config.data.workers (now"
                f" {self._workers}) need less; the same command resumes"
            ) from error
        report = json.loads(batch.pop("report"))
        self.counts.update(report["counts"])
        self.counts.update(telemetry.take())
        if "cursor" in report:
            self._cursors.append(report["cursor"])
        for begun in (Begun(*entry) for entry in report.get("begun", ())):
            if begun.lost is not None:
                self.tally.lose(begun.path, begun.lost)
            if begun.epoch == 0:  # each sample once
                self.tally.dropped.update(begun.drops)
                if wrong := self.tally.add_rows(begun.samples, begun.drops):
                    self.tally.show(begun.path, f"{wrong:,} of its samples")
        fatal = report.get("fatal")
        unused = [Bad(*entry) for entry in report["bad"]]
        is_complete = "images" in batch or bool(fatal)
        rows = len(self._make_batch.rows)
        self.tally.judge(rows, unused, is_complete, self._max_bad_fraction)
        if fatal:
            raise UserError(fatal)
        self.next_batch += 1
        return batch

    @property
    def dropped(self) -> Counter[str]:
        """Kind (of `records.KINDS`) -> number of records dropped, at opening and while reading:
        bad records and unreadable shards once each, filtered records each time they come up."""
        return Counter(self._source.dropped.counts) + self.tally.dropped

    def state(self) -> dict[str, Any]:
        """Returns the JSON-serializable state that a checkpoint keeps and `resume` takes."""
        return {
            "next_batch": self.next_batch,
            **self._identity(),
            "tally": self.tally.state(),
            "cursor": self._cursors[0] if self._cursors else {},
        }

    def _identity(self) -> dict[str, Any]:
        identity = {
            "seed": self._make_batch.seed,
            "global_batch_size": self._make_batch.batch_size,
            "fingerprint": self._source.fingerprint,
        }
        if isinstance(self._order, StreamOrder):  # cursors depend on these
            identity |= {"streams": self._order.streams, "window_shards": self._order.width}
        return identity

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restores the counts of bad records from the `state` of an earlier run.

        Raises UserError if that run had other data, seed, global batch size or streams. The
        position does not change: it is `start_batch`.
        """
        for name, now in self._identity().items():
            if state.get(name) != now:
                what = "data (keys or captions)" if name == "fingerprint" else name
                lost = self._source.dropped.counts["shard_unreadable"]
                how = "restore it or start a new run"
                if name == "fingerprint" and lost:
                    how = f"{lost} of its files cannot be read now: go on when they can"
                raise UserError(
                    f"cannot resume: the checkpoint was made with other {what}:"
                    f" {name}={state.get(name)!r} there, {now!r} now; {how}"
                )
        self.tally = Tally.restored(state["tally"])
        if state.get("cursor"):
            self._cursors.append(dict(state["cursor"]))

    def close(self) -> None:
        """Ends threads and worker processes; there are no batches after that."""
        self._order.close()  # first, because a batch may be waiting for a shard
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        # The iterator is dropped now, because grain's print a traceback at interpreter exit.
        self._iterator = iter(())


def training_batches(
    source: Source,
    tokenize: Tokenize,
    image_size: int,
    interpolation: str,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    workers: int = 0,
    start_batch: int = 0,
    max_bad_fraction: float = 0.1,
    streams: int | None = None,
    window_shards: int = 2,
    cursor: Mapping[str, Sequence[int]] | None = None,
    weigh: SampleWeight | None = None,
    group: GroupNumber | None = None,
    change_caption: CaptionWords | None = None,
) -> BatchIterator:
    """Returns an iterator of endless shuffled batches, or of this host's share of them.

    Args:
      source, tokenize: the records, and list[str] of N -> int32 (N, L); pickled to workers.
      image_size: pixels, both sides.
      interpolation: "bicubic" or "bilinear".
      batch_size: size of the global batch, in records.
      seed: for order, augmentation and choice of captions; not negative.
      rows: which rows of the global batch this host makes, in this order; None: all.
      workers: processes; 0 makes batches in threads of this process. Batches do not depend on it.
      start_batch: the first batch's number, for a resume.
      max_bad_fraction: share of unusable records, found at opening or reading, above which the
        run stops.
      streams, window_shards: for a streaming source, see `StreamOrder`.
      cursor: for a streaming source, from the state in a checkpoint.
      weigh: of each record; batches then have "weights", float32 (B,).
      group: of each record; batches then have "groups", int32 (B,).
      change_caption: applied to each chosen caption.

    Raises:
      UserError: fewer records than the global batch, too many of them unusable, or a number out of
        range.
    """
    least = {"batch_size": 1, "seed": 0, "workers": 0, "start_batch": 0}
    for name, value in zip(least, (batch_size, seed, workers, start_batch), strict=True):
        if value < least[name]:
            raise UserError(f"{name}={value}; accepted is a whole number of at least {least[name]}")
    check_opened(source, max_bad_fraction)
    if len(source) < batch_size:
        raise UserError(
            f"the data has {len(source)} records, fewer than the global batch of"
            f" {batch_size}; give more data or a smaller batch size"
        )
    rows = range(batch_size) if rows is None else [int(row) for row in rows]
    order: ShuffledOrder | StreamOrder
    if (stream := streaming_of(source)) is not None:
        order = StreamOrder(stream, seed, batch_size, streams, window_shards, cursor)
        _say_what_hosts_share(len(stream.paths), order.streams, batch_size // max(1, len(rows)))
    else:
        order = shuffled_order(source, seed)
    make_batch = MakeBatch(
        source=source,
        order=order,
        tokenize=tokenize,
        image_size=image_size,
        interpolation=interpolation,
        augmentation=augmentation,
        batch_size=batch_size,
        rows=rows,
        seed=seed,
        weigh=weigh,
        group=group,
        change_caption=change_caption,
    )
    return BatchIterator(make_batch, workers, start_batch, max_bad_fraction)


def streaming_of(source: Source) -> StreamingSource | None:
    """Returns the streaming source, possibly inside a `RefinedSource`; None if there is none."""
    inner = source.source if isinstance(source, RefinedSource) else source
    return inner if isinstance(inner, StreamingSource) else None


def shuffled_order(source: Source, seed: int) -> ShuffledOrder:
    """Returns the order of a run's records: shuffled, and mixed if the source has parts."""
    if isinstance(source, MixtureSource | BalancedSource):
        return ShuffledOrder(source.sizes, seed, source.weights)
    return ShuffledOrder((len(source),), seed)


def _say_what_hosts_share(shards: int, streams: int, hosts: int) -> None:
    if hosts > streams:
        logger.warning(
            "%d hosts read %d streams of %d shards: several hosts copy the same shards; %s",
            hosts,
            streams,
            shards,
            "raise config.data.streams" if shards >= hosts else "more and smaller ones spare that",
        )


def _parallel(batches: Any, workers: int) -> Any:
    if workers == 0:
        # grain's default buffer has 500 elements, and here an element is a batch.
        threads = min(_READ_THREADS, os.cpu_count() or 1)
        return batches.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        )
    # grain reads absl flags, which are not parsed in a notebook or a test.
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    one_at_a_time = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    return batches.to_iter_dataset(one_at_a_time).mp_prefetch(options)
