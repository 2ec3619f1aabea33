"""Batches for evaluations: every record of a source once, in order."""

import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from clip_jax.data.records import Source
from clip_jax.errors import DecodeError, UserError
from clip_jax.images.transform import ImageTransform

logger = logging.getLogger(__name__)

_MAX_THREADS = 4
_CHUNK = 32  # images decoded per task


def evaluation_batches(
    source: Source,
    transform: ImageTransform,
    batch_size: int,
    bad_records: dict[str, str] | None = None,
    numbers: range | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every decodable record of `numbers` (None: all) once, in order: (record numbers
    int64 (B,), images uint8 (B, S, S, 3)).

    The last batch may be shorter. Undecodable records are logged and skipped, and added to
    `bad_records` (key -> reason) if given.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}; accepted is a whole number of at least 1")
    indices: list[int] = []
    images: list[np.ndarray] = []
    for index, image in _in_order(
        source, transform, batch_size, range(len(source)) if numbers is None else numbers
    ):
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
    source: Source, transform: ImageTransform, batch_size: int, numbers: range
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Yields (record number, image or error message); threads stay a batch ahead."""

    def read(indices: range) -> list[tuple[int, np.ndarray | str]]:
        results: list[tuple[int, np.ndarray | str]] = []
        for index in indices:
            try:
                results.append((index, transform(source[index].image)))
            except DecodeError as error:
                results.append((index, str(error)))
        return results

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[list[tuple[int, np.ndarray | str]]]] = deque()
    try:
        for start in range(0, len(numbers), _CHUNK):
            pending.append(pool.submit(read, numbers[start : start + _CHUNK]))
            if len(pending) > threads + batch_size // _CHUNK:
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)
