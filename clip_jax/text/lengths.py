"""Batches of texts of similar length, so that short ones are not padded to the whole context."""

from collections.abc import Iterator

import numpy as np


def by_length(
    lengths: np.ndarray, longest: int, batch_size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (row numbers (B,), padded length) for every row of `lengths` (N,) once.

    A batch is full but for the last, and its length one of a few, for each is compiled. Rows that
    do not fill a batch of their length join the next longer one; a single batch has `longest`.
    """
    waiting = np.zeros(0, np.int64)
    if len(lengths) > batch_size:
        steps = [8, 16, 24, *(base << n for n in range(4, 32) for base in (2, 3))]
        previous = 0
        for step in steps:
            if step >= longest:
                break
            here = np.flatnonzero((lengths > previous) & (lengths <= step))
            waiting, previous = np.concatenate([waiting, here]), step
            whole = len(waiting) // batch_size * batch_size
            yield from ((rows, step) for rows in np.split(waiting[:whole], whole // batch_size or 1)
                        if len(rows))  # fmt: skip
            waiting = waiting[whole:]
        waiting = np.concatenate([waiting, np.flatnonzero(lengths > previous)])
    else:
        waiting = np.arange(len(lengths))
    for start in range(0, len(waiting), batch_size):
        yield waiting[start : start + batch_size], longest
