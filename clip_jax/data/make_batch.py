"""From a batch's number to the batch: what workers compute, of nothing but the data and a seed."""

import functools
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_jax.data.augmentation import Augmentation, training_image
from clip_jax.data.order import Order
from clip_jax.data.records import DecodeError, Record, Source
from clip_jax.data.streaming import Cursor, StreamOrder
from clip_jax.data.telemetry import telemetry
from clip_jax.errors import UserError
from clip_jax.host_memory import keep_freed_memory

Tokenize = Callable[[list[str]], np.ndarray]
# (record number, key, reason, kind of `records.KINDS`)
Bad = tuple[int, str, str, str]

_MAX_TRIES = 1000  # records tried for one place in a batch before the data is called bad


@dataclass(frozen=True)
class MakeBatch:
    """Batch number -> batch; pickled to the workers.

    Each record draws from a random stream of its own, named by (seed, position in the global
    stream): global batch k holds the same records with the same augmentation, in the same rows, on
    any number of hosts.
    """

    source: Source
    order: Order
    tokenize: Tokenize
    image_size: int
    interpolation: str
    augmentation: Augmentation
    batch_size: int  # of the global batch
    rows: Sequence[int]
    seed: int

    def __call__(self, number: int) -> dict[str, Any]:
        """{"images", "tokens", "indices", "report"}; only "report" where there is no batch.

        The report travels as one string: workers hand over arrays and plain values only. It has
        "bad" (a list of `Bad`), "counts" (of `telemetry`), where the run must end "fatal", and of
        a stream its "cursor" after the batch.
        """
        _set_up_worker()
        size, count = self.image_size, len(self.rows)
        images = np.empty((count, size, size, 3), np.uint8)
        used = np.empty(count, np.int64)
        captions: list[str] = []
        bad: list[Bad] = []
        bytes_read = 0
        rng = np.random.Generator(np.random.Philox(key=self.seed))
        state: Any = rng.bit_generator.state
        positions = [number * self.batch_size + row for row in self.rows]
        try:
            numbers = self.order.numbers(positions)
            for place, (position, index) in enumerate(zip(positions, numbers, strict=True)):
                state["state"]["counter"][3] = position
                # Setting the state is eight times cheaper than making a generator.
                rng.bit_generator.state = state
                found = self._first_good(index, images[place], rng, bad)
                if found is None:
                    return {"report": _report(bad)}
                used[place], caption, size_bytes = found
                captions.append(caption)
                bytes_read += size_bytes
        except UserError as error:
            return {"report": _report(bad, fatal=str(error))}
        tokens = np.asarray(self.tokenize(captions), np.int32)
        telemetry.add(bytes_read=bytes_read)
        cursor = None
        if isinstance(self.order, StreamOrder):
            cursor = self.order.cursor(positions)
        report = _report(bad, cursor=cursor)
        return {"images": images, "tokens": tokens, "indices": used, "report": report}

    def _first_good(
        self, index: int, out: np.ndarray, rng: np.random.Generator, bad: list[Bad]
    ) -> tuple[int, str, int] | None:
        """Writes the first usable image from `index` on; its record number, caption and bytes."""
        first = index
        for _ in range(_MAX_TRIES):
            try:
                record = self.source[index]
                caption = choose_caption(record, rng)
                out[:] = training_image(
                    record.image, self.image_size, self.interpolation, self.augmentation, rng
                )
                size = (
                    record.image.nbytes
                    if isinstance(record.image, np.ndarray)
                    else len(record.image)
                )
                return index, caption, size
            except DecodeError as error:
                bad.append((index, self.source.key(index), str(error), error.kind))
            index = self.order.after(index)
            if index == first:
                break
        return None


def choose_caption(record: Record, rng: np.random.Generator) -> str:
    """One of the captions, by weight where they have some; draws only where there is a choice."""
    captions = record.captions
    if len(captions) == 1:
        return captions[0]
    draw = rng.random()
    if record.weights is None or not sum(record.weights) > 0:
        return captions[int(draw * len(captions))]
    ends = np.cumsum(record.weights)
    return captions[int(np.searchsorted(ends, draw * ends[-1], side="right"))]


def _report(bad: list[Bad], fatal: str | None = None, cursor: Cursor | None = None) -> str:
    return json.dumps({"bad": bad, "counts": telemetry.take(), "fatal": fatal, "cursor": cursor})


@functools.cache
def _set_up_worker() -> None:
    """In a worker: ends it when the trainer is gone. One that was killed leaves it waiting.

    Buffers of images are kept for the next ones, as the programs do for themselves.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    keep_freed_memory()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
