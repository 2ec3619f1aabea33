"""Batches of texts of similar length."""

import numpy as np
import pytest

from clip_jax.text.lengths import by_length


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 500])
def test_every_row_is_in_one_batch_that_is_long_enough(count: int) -> None:
    lengths = np.random.default_rng(count).integers(1, 78, count)
    batches = list(by_length(lengths, 77, batch_size=8))
    rows = np.concatenate([np.zeros(0, int), *(rows for rows, _ in batches)])
    assert sorted(rows) == list(range(count))
    for rows, length in batches:
        assert lengths[rows].max() <= length <= 77
    assert all(len(rows) == 8 for rows, _ in batches[:-1])


def test_short_texts_are_padded_little() -> None:
    lengths = np.full(1000, 9)
    batches = list(by_length(lengths, 77, batch_size=100))
    assert [length for _, length in batches] == [16] * 10


def test_one_batch_has_the_whole_context() -> None:
    """Short calls of any length must not compile a program each."""
    assert [length for _, length in by_length(np.array([3, 9]), 77, batch_size=256)] == [77]
