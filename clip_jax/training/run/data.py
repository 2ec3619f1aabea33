"""Training data of a configuration, and the cost of reading it."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Source
from clip_jax.data.sources import check_image_column, check_split, reader_of
from clip_jax.data.sources.refine import open_refined, refined
from clip_jax.data.stream.groups import BalancedSource
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.data.stream.order import check_weights
from clip_jax.data.stream.pipeline import BatchIterator, streaming_of
from clip_jax.data.stream.shard_order import MAX_STREAMS, Cursor
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.errors import DecodeError, UserError
from clip_jax.training.config import TrainConfig

_WAIT_FRACTION = 0.05  # share of the time between steps above which waiting for data is reported
_WARN_EVERY_STEPS = 1000
_SAMPLED_SHARDS = 8  # shards of a stream whose captions train a tokenizer


def open_data(config: TrainConfig, **changes: Any) -> Source:
    """Opens the image-text pairs of the configuration.

    `changes`: fields that only `SourceOptions` has. Raises `UserError` as `open_source` does, and
    for a mixture with bad weights.
    """
    data = config.data
    if data.streaming:
        stream = _open_stream(os.path.expanduser(data.path), data.format, data.options())
        return refined(stream, data)
    if not data.mixture:
        return open_refined(data, **changes)
    weights = [part.weight for part in data.mixture]
    check_weights(weights)  # opening the sources may take minutes
    sources = [open_refined(part, **changes) for part in data.mixture]
    return MixtureSource(sources, [part.path for part in data.mixture], weights)


def open_training_data(config: TrainConfig) -> Source:
    """Opens the data with its groups balanced, if `config.data.balance_by` names them."""
    source = open_data(config)
    field = config.data.balance_by
    return source if field is None else BalancedSource(source, field)


def _open_stream(path: str, format: str, options: SourceOptions) -> StreamingSource:
    reader = reader_of(path, format)
    if reader.name != "webdataset":
        raise UserError(
            f"config.data.streaming=True: streams are of tars, and {path} is read as {reader.name};"
            " leave streaming out, or convert it first (python -m clip_jax.data convert)"
        )
    check_image_column(reader, options)
    source = StreamingSource(path, options)
    check_split(path, reader, options, source)
    return source


def captions_of(source: Source) -> Iterator[str]:
    """Yields all readable captions, or those of a few shards of a stream."""
    stream = streaming_of(source)
    numbers = range(len(source)) if stream is None else stream.sample_numbers(_SAMPLED_SHARDS)
    for number in numbers:
        with contextlib.suppress(DecodeError):
            yield from source.captions(number)


def gathered_cursor(cursor: Cursor) -> Cursor:
    """Gathers the windows of all streams from their hosts; every host must call it."""
    if jax.process_count() == 1:
        return cursor
    rows = np.full((MAX_STREAMS, 3), -1, np.int64)
    for index, values in cursor.items():
        rows[int(index)] = values
    everywhere = multihost_utils.process_allgather(rows).max(axis=0)
    return {str(n): tuple(row) for n, row in enumerate(everywhere.tolist()) if row[0] >= 0}


class DataWatch:
    """Measures input cost for the metrics, and warns when the trainer waits for data."""

    def __init__(self, batches: BatchIterator, workers: int):
        self._batches = batches
        self._workers = workers
        self._before: Counter[str] = Counter()
        self._warned: int | None = None

    def row(self, seconds: float) -> dict[str, float]:
        """Returns the metrics of input.

        Bytes per second are since the last call, `seconds` ago. Dropped records by kind, and
        non-zero counts of stores and their cache, are since the start.
        """
        batches = self._batches
        read = batches.counts["bytes_read"] - self._before["bytes_read"]
        self._before = batches.counts.copy()
        row: dict[str, float] = {"data_bytes_per_second": read / seconds}
        row |= {f"dropped_{kind}": count for kind, count in sorted(batches.dropped.items())}
        for name in ("bytes_fetched", "cache_hits", "cache_misses", "store_retries"):
            if batches.counts[name]:
                row[f"data_{name}"] = batches.counts[name]
        return row

    def advice(self, step: int, wait_fraction: float) -> str | None:
        """Returns advice if too much time is spent waiting, but only now and then; else None."""
        recently = self._warned is not None and step < self._warned + _WARN_EVERY_STEPS
        if wait_fraction <= _WAIT_FRACTION or recently:
            return None
        self._warned = step
        cores = os.cpu_count() or 1
        if self._workers < cores:
            what = f"raise config.data.workers (now {self._workers}; there are {cores} cores)"
        else:
            what = (
                f"all {cores} cores read already: store smaller images"
                " (python -m clip_jax.data convert --resize=…)"
            )
        return (
            f"step {step:,}: {100 * wait_fraction:.0f} % of the time was spent waiting for data;"
            f" {what}; python -m clip_jax.data inspect tells which stage is slow"
        )
