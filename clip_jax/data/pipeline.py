"""Source -> shuffled, augmented, tokenised batches of this host, the same for any worker count.

A batch is a pure function of (data, seed, batch number). It can be computed in any thread or
process and in any order, and a resume at batch k needs no state but k. grain's part is to compute
the batches ahead, in threads or processes, and to hand them over in order:

    MapDataset.range(∞) -> map(batch number -> batch) -> [start_batch:] -> threads or processes

Shuffling is inside the map: grain's `index_shuffle`, which needs no memory, anew for each epoch,
over the endless global stream of records; a host makes the rows of each global batch that it is
told to. The usual chain of per-record links (seed, shuffle, repeat, slice, random_map, batch) does
the same, but brings a small in-memory image without augmentation to 33 µs; the one map to 15. It
also lets a batch be tokenised in one call and its pixels be written in place.

Each record draws from a random stream of its own, named by (seed, position in the global stream):
global batch k holds the same records with the same augmentation, in the same rows, on any number of
hosts.
"""

import functools
import json
import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import absl.flags
import grain
import numpy as np
from grain.experimental import index_shuffle

from clip_jax.data.augmentation import Augmentation, training_image
from clip_jax.data.image import ImageTransform
from clip_jax.data.records import DecodeError, Source
from clip_jax.errors import UserError

logger = logging.getLogger(__name__)

Tokenize = Callable[[list[str]], np.ndarray]
Batch = dict[str, np.ndarray]

_ENDLESS = 2**53  # batches
_MAX_BAD_IN_A_ROW = 1000  # records tried for one place in a batch before the data is called bad
_MIN_RECORDS_JUDGED = 100  # the bad share is one of at least so many records (or of all, if fewer)
_READ_THREADS = 4  # without workers; each makes whole batches
_EVALUATION_CHUNK = 32  # images a thread decodes at a time


@dataclass(frozen=True)
class _MakeBatch:
    """Batch number -> batch; pickled to the workers."""

    source: Source
    tokenize: Tokenize
    image_size: int
    interpolation: str
    augmentation: Augmentation
    batch_size: int  # of the global batch
    rows: Sequence[int]
    seed: int

    def positions(self, number: int) -> list[int]:
        """Positions in the global stream of records of this host's rows of a batch."""
        return [number * self.batch_size + row for row in self.rows]

    def record_numbers(self, positions: list[int]) -> Iterator[int]:
        """The shuffled stream; each epoch is a permutation of its own."""
        count = len(self.source)
        seeds: dict[int, int] = {}
        for position in positions:
            epoch, index = divmod(position, count)
            if epoch not in seeds:
                # Mixed, not added: seed 0 in epoch 1 must not be seed 1 in epoch 0.
                seeds[epoch] = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
            yield index_shuffle(index, max_index=count - 1, seed=seeds[epoch], rounds=4)

    def __call__(self, number: int) -> dict[str, Any]:
        _end_with_parent()
        size, count = self.image_size, len(self.rows)
        images = np.empty((count, size, size, 3), np.uint8)
        used = np.empty(count, np.int64)
        captions: list[str] = []
        bad: list[tuple[int, str, str]] = []
        rng = np.random.Generator(np.random.Philox(key=self.seed))
        state: Any = rng.bit_generator.state
        positions = self.positions(number)
        numbers = self.record_numbers(positions)
        for place, (position, index) in enumerate(zip(positions, numbers, strict=True)):
            state["state"]["counter"][3] = position
            # Setting the state is eight times cheaper than making a generator.
            rng.bit_generator.state = state
            found = self._first_good(index, images[place], rng, bad)
            if found is None:
                return {"bad": json.dumps(bad)}
            used[place], caption = found
            captions.append(caption)
        tokens = np.asarray(self.tokenize(captions), np.int32)
        # Bad records travel as one string: workers hand over arrays and plain values only.
        return {"images": images, "tokens": tokens, "indices": used, "bad": json.dumps(bad)}

    def _first_good(
        self,
        index: int,
        out: np.ndarray,
        rng: np.random.Generator,
        bad: list[tuple[int, str, str]],
    ) -> tuple[int, str] | None:
        """Writes the first decodable image from `index` on; its record number and caption."""
        count = len(self.source)
        for offset in range(min(count, _MAX_BAD_IN_A_ROW)):
            candidate = (index + offset) % count
            try:
                record = self.source[candidate]
                choices = record.captions
                caption = choices[int(rng.random() * len(choices)) if len(choices) > 1 else 0]
                out[:] = training_image(
                    record.image, self.image_size, self.interpolation, self.augmentation, rng
                )
                return candidate, caption
            except DecodeError as error:
                bad.append((candidate, self.source.key(candidate), str(error)))
        return None


@functools.cache
def _end_with_parent() -> None:
    """In a worker: ends it when the trainer is gone. One that was killed leaves it waiting."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


class BatchIterator:
    """Endless batches of one host; made by `training_batches`.

    Attributes:
      next_batch: number of the batch that `next` gives; what a resume passes as `start_batch`.
      bad_records: key -> reason, of the records of this run that could not be decoded.
    """

    def __init__(
        self,
        iterator: Any,
        source: Source,
        *,
        seed: int,
        batch_size: int,
        host_rows: int,
        start_batch: int,
        max_bad_fraction: float,
    ) -> None:
        self._iterator = iterator
        self._source = source
        self._seed = seed
        self._batch_size = batch_size
        self._host_rows = host_rows
        self._max_bad_fraction = max_bad_fraction
        self._tried = 0
        # By number: keys of different archives may be equal.
        self._bad_indices: set[int] = set()
        self.bad_records: dict[str, str] = {}
        self.next_batch = start_batch

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        """{"images": uint8 (B, S, S, 3), "tokens": int32 (B, L), "indices": int64 (B,)}.

        `indices` are the records used. An image that cannot be decoded is replaced by the next good
        record and logged once. Raises UserError where too many are bad.
        """
        batch = next(self._iterator)
        self._judge(json.loads(batch.pop("bad")), is_complete="images" in batch)
        self.next_batch += 1
        return batch

    def _judge(self, bad: list[tuple[int, str, str]], is_complete: bool) -> None:
        for index, key, reason in bad:
            if index not in self._bad_indices:
                self._bad_indices.add(index)
                self.bad_records[key] = reason
                logger.warning("record %s left out: %s", key, reason)
        count = len(self._source)
        self._tried += self._host_rows + len(bad)
        judged = min(count, max(self._tried, _MIN_RECORDS_JUDGED))
        if is_complete and len(self._bad_indices) <= self._max_bad_fraction * judged:
            return
        key, reason = next(iter(self.bad_records.items()))
        raise UserError(
            f"{len(self._bad_indices)} of {min(count, self._tried)} records tried cannot be"
            f" decoded, more than max_bad_fraction={self._max_bad_fraction:g};"
            f" such as {key}: {reason};"
            " repair the data or raise max_bad_fraction"
        )

    def state(self) -> dict[str, Any]:
        """JSON-able: what a checkpoint keeps, and what `resume` takes back."""
        bad = sorted(self._bad_indices)
        return {
            "next_batch": self.next_batch,
            **self._identity(),
            "tried": self._tried,
            "bad": bad,
            "bad_records": self.bad_records,
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "global_batch_size": self._batch_size,
            "fingerprint": self._source.fingerprint,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Takes over the count of bad records of the run that `state` was saved by.

        Raises UserError where that run had other data, seed or global batch size. The position is
        not moved: it is `start_batch`.
        """
        for name, now in self._identity().items():
            if state.get(name) != now:
                what = "data (keys or captions)" if name == "fingerprint" else name
                raise UserError(
                    f"cannot resume: the checkpoint was made with other {what}:"
                    f" {name}={state.get(name)!r} there, {now!r} now; restore it or start a new run"
                )
        self._tried = state["tried"]
        self._bad_indices = set(state["bad"])
        self.bad_records = dict(state["bad_records"])

    def close(self) -> None:
        """Ends threads and worker processes; nothing comes after it."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        # Let go of now: what grain's iterators do when the interpreter ends prints a traceback.
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
) -> BatchIterator:
    """Endless shuffled batches, or this host's share of them.

    Args:
      source: the records; pickled to workers.
      tokenize: list[str] of N -> int32 (N, L); pickled to workers.
      image_size: pixels, both sides.
      interpolation: "bicubic" or "bilinear".
      augmentation: what is done to the images.
      batch_size: records of the global batch.
      seed: of order, augmentation and choice of captions; not negative.
      rows: which rows of the global batch this host makes, in this order; None: all.
      workers: processes; 0 makes batches in threads of this one. Changes no value.
      start_batch: the first batch's number, for a resume; costs nothing.
      max_bad_fraction: share of undecodable records among those seen above which the run stops.

    Raises:
      UserError: fewer records than the global batch, or a number out of its range.
    """
    _check_numbers(
        batch_size=(batch_size, 1),
        seed=(seed, 0),
        workers=(workers, 0),
        start_batch=(start_batch, 0),
    )
    if len(source) < batch_size:
        raise UserError(
            f"the data has {len(source)} records, fewer than the global batch of"
            f" {batch_size}; give more data or a smaller batch size"
        )
    rows = range(batch_size) if rows is None else [int(row) for row in rows]
    make_batch = _MakeBatch(
        source=source,
        tokenize=tokenize,
        image_size=image_size,
        interpolation=interpolation,
        augmentation=augmentation,
        batch_size=batch_size,
        rows=rows,
        seed=seed,
    )
    batches = grain.MapDataset.range(_ENDLESS).map(make_batch)[start_batch:]
    return BatchIterator(
        iter(_parallel(batches, workers)),
        source,
        seed=seed,
        batch_size=batch_size,
        host_rows=len(rows),
        start_batch=start_batch,
        max_bad_fraction=max_bad_fraction,
    )


def _check_numbers(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise UserError(f"{name}={value}; accepted is a whole number of at least {least}")


def _parallel(batches: Any, workers: int) -> Any:
    if workers == 0:
        # grain's default buffer of 500 elements would be 500 batches here.
        threads = min(_READ_THREADS, os.cpu_count() or 1)
        return batches.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        )
    # grain reads absl flags, which nobody has parsed in a notebook or a test.
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    one_at_a_time = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    return batches.to_iter_dataset(one_at_a_time).mp_prefetch(options)


def evaluation_batches(
    source: Source,
    transform: ImageTransform,
    batch_size: int,
    bad_records: dict[str, str] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every decodable record once, in order: (int64 (B,) record numbers, uint8 (B, S, S, 3)).

    The last batch may be shorter. Records that cannot be decoded are logged and left out; they are
    also put into `bad_records` (key -> reason) where one is given.
    """
    _check_numbers(batch_size=(batch_size, 1))
    indices: list[int] = []
    images: list[np.ndarray] = []
    for index, image in _in_order(source, transform, batch_size):
        if isinstance(image, str):
            logger.warning("record %s left out: %s", source.key(index), image)
            if bad_records is not None:
                bad_records[source.key(index)] = image
            continue
        indices.append(index)
        images.append(image)
        if len(indices) == batch_size:
            yield np.asarray(indices, np.int64), np.stack(images)
            indices, images = [], []
    if indices:
        yield np.asarray(indices, np.int64), np.stack(images)


def _in_order(
    source: Source, transform: ImageTransform, batch_size: int
) -> Iterator[tuple[int, np.ndarray | str]]:
    """(record number, image or the reason why there is none); threads stay a batch ahead."""

    def read(start: int) -> list[tuple[int, np.ndarray | str]]:
        results: list[tuple[int, np.ndarray | str]] = []
        for index in range(start, min(start + _EVALUATION_CHUNK, len(source))):
            try:
                results.append((index, transform(source[index].image)))
            except DecodeError as error:
                results.append((index, str(error)))
        return results

    threads = min(_READ_THREADS, os.cpu_count() or 1)
    starts = iter(range(0, len(source), _EVALUATION_CHUNK))
    ahead = threads + batch_size // _EVALUATION_CHUNK
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[list[tuple[int, np.ndarray | str]]]] = deque(
            pool.submit(read, start) for start in islice(starts, ahead)
        )
        try:
            while pending:
                yield from pending.popleft().result()
                pending.extend(pool.submit(read, start) for start in islice(starts, 1))
        finally:
            for future in pending:
                future.cancel()
