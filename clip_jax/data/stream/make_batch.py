"""Function from a batch's number to the batch, run by workers; depends on data and seed only."""

import functools
import itertools
import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.records import Record, Source
from clip_jax.data.stream.caption_words import CaptionWords
from clip_jax.data.stream.groups import GroupNumber, SampleWeight
from clip_jax.data.stream.order import ShuffledOrder
from clip_jax.data.stream.shard_order import StreamOrder
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.telemetry import telemetry
from clip_jax.hosts.children import end_with_parent
from clip_jax.hosts.memory import keep_freed_memory
from clip_jax.images.augmentation import Augmentation, training_image

Tokenize = Callable[[list[str]], np.ndarray]
_MAX_TRIES = 1000  # records tried for one row of a batch before giving up
# After this many unreadable shards in a row the store must be down; each may cost all attempts.
_MAX_LOST = 64


class Bad(NamedTuple):
    """A record that was not used."""

    number: int  # of the record
    key: str
    reason: str
    kind: str  # of `records.KINDS`
    shard: str | None  # its shard, if the whole shard cannot be read


@dataclass(frozen=True)
class MakeBatch:
    """Function batch number -> batch; pickled to the workers.

    Each record has its own random stream, keyed by (seed, position in the global stream): global
    batch k holds the same records with the same augmentation, in the same rows, on any number of
    hosts.
    """

    source: Source
    order: ShuffledOrder | StreamOrder
    tokenize: Tokenize
    image_size: int
    interpolation: str
    augmentation: Augmentation
    batch_size: int  # of the global batch
    rows: Sequence[int]
    seed: int
    weigh: SampleWeight | None = None
    group: GroupNumber | None = None
    change_caption: CaptionWords | None = None

    def __call__(self, number: int) -> dict[str, Any]:
        """Returns {"images", "tokens", "indices", "report"}, and "weights" and "groups" if records
        have some; only "report" if there is no batch.

        The report is one JSON string, because workers can send only arrays and plain values. It
        has "bad" (a list of `Bad`), "counts" (of `telemetry`), "fatal" if the run must end, and
        for a stream its "cursor" after the batch and the shards "begun" with it.
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
                # Setting the state costs an eighth of making a generator.
                rng.bit_generator.state = state
                found = self._first_good(position, index, images[place], rng, bad)
                if found is None:
                    return {"report": _report(bad)}
                used[place], caption, size_bytes = found
                captions.append(caption)
                bytes_read += size_bytes
            fields = self._fields(used)
        except UserError as error:
            return {"report": _report(bad, fatal=str(error))}
        tokens = np.asarray(self.tokenize(captions), np.int32)
        telemetry.add(bytes_read=bytes_read)
        progress = self.order.progress(positions) if isinstance(self.order, StreamOrder) else {}
        report = _report(bad, **progress)
        return {"images": images, "tokens": tokens, "indices": used, "report": report, **fields}

    def _fields(self, used: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays (B,) that come from the records' metadata."""
        found: dict[str, np.ndarray] = {}
        for name, read, dtype in (
            ("weights", self.weigh, np.float32),
            ("groups", self.group, np.int32),
        ):
            if read is not None:
                values = [read(self.source, int(index)) for index in used]
                found[name] = np.asarray(values, dtype)
        return found

    def _first_good(
        self, position: int, index: int, out: np.ndarray, rng: np.random.Generator, bad: list[Bad]
    ) -> tuple[int, str, int] | None:
        """Writes the first usable image, of `index` or its replacements, to `out`; returns its
        record number, caption and size in bytes."""
        lost_in_a_row = 0
        others = (other for other in self.order.replacements(position) if other != index)
        for tried in itertools.islice(itertools.chain((index,), others), _MAX_TRIES):
            try:
                record = self.source[tried]
                caption = choose_caption(record, rng)
                if self.change_caption is not None:
                    caption = self.change_caption(caption, rng)
                out[:] = training_image(
                    record.image, self.image_size, self.interpolation, self.augmentation, rng
                )
                return tried, caption, getattr(record.image, "nbytes", len(record.image))
            except DecodeError as error:
                key = self.source.key(tried) if error.shard is None else error.shard
                bad.append(Bad(tried, key, str(error), error.kind, error.shard))
                lost_in_a_row = 0 if error.shard is None else lost_in_a_row + 1
            if lost_in_a_row == _MAX_LOST:
                break
        return None


def choose_caption(record: Record, rng: np.random.Generator) -> str:
    """Chooses one caption, by weight if there are weights; uses `rng` only if there are several."""
    captions = record.captions
    if len(captions) == 1:
        return captions[0]
    draw = rng.random()
    if record.weights is None or not sum(record.weights) > 0:
        return captions[int(draw * len(captions))]
    ends = np.cumsum(record.weights)
    return captions[int(np.searchsorted(ends, draw * ends[-1], side="right"))]


def _report(bad: list[Bad], **more: Any) -> str:
    return json.dumps({"bad": bad, "counts": telemetry.take(), **more})


@functools.cache
def _set_up_worker() -> None:
    """Makes a worker process end with its trainer and keep freed image buffers for reuse, as the
    main programs do."""
    if multiprocessing.parent_process() is not None:
        keep_freed_memory()
        end_with_parent()
