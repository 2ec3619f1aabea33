"""In which order records come: a function of (seed, position), the same on any number of hosts.

The global stream of records is endless. Position p belongs to one source of the mixture and is the
n-th draw from it; n names an epoch of that source and a place in it, and each epoch is a
permutation of its own. Nothing is kept in memory, and any position can be asked for.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from grain.experimental import index_shuffle

from clip_jax.errors import UserError

# Positions in which each source has its whole-numbered share: weights hold to 1 in 16,000.
BLOCK = 8192


# Up to so many, permutations are tables: `index_shuffle` walks through 65,536 places to find one of
# a few (1.7 ms where there are four).
SMALL = 4096


class Order(Protocol):
    """Positions in the global stream -> record numbers; pickled to workers."""

    def numbers(self, positions: Sequence[int]) -> Iterator[int]:
        """The records at these positions."""
        ...

    def replacements(self, position: int) -> Iterator[int]:
        """The records that are tried, one after another, where that of `position` cannot be used.

        Another shuffled draw, not the neighbours: those of a lost shard would all come to the same
        few records.
        """
        ...

    def close(self) -> None:
        """Lets go of what other threads and processes may wait for."""
        ...


class ShuffledOrder:
    """Sources of `sizes` records, numbered one after the other; each epoch of each is shuffled.

    Args:
      sizes: records of each source.
      weights: shares of the stream, any positive scale; None: every record as often as any other.
      seed: of all permutations.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int, weights: Sequence[float] | None = None
    ) -> None:
        self._sizes = tuple(sizes)
        self._starts = tuple(np.cumsum((0, *sizes)).tolist())
        self._seed = seed
        self._shares = _shares(tuple(weights or sizes))

    def numbers(self, positions: Sequence[int]) -> Iterator[int]:
        # Of each source and epoch: a permutation is cheap, its seed is not.
        seeds: dict[tuple[int, int], int] = {}
        for position in positions:
            source, draw = self._draw(position)
            size = self._sizes[source]
            epoch, index = divmod(draw, size)
            seed = seeds.get((source, epoch))
            if seed is None:
                seed = seeds[source, epoch] = _mixed_seed(self._seed, epoch, source)
            yield self._starts[source] + shuffled(index, size, seed)

    def _draw(self, position: int) -> tuple[int, int]:
        """(source, how many records were drawn from it before)."""
        if len(self._sizes) == 1:
            return 0, position
        block, place = divmod(position, BLOCK)
        sources, ranks = _block(self._shares, self._seed, block)
        source = int(sources[place])
        return source, block * self._shares[source] + int(ranks[place])

    def replacements(self, position: int) -> Iterator[int]:
        """All of the same source, each once."""
        source, _ = self._draw(position)
        size = self._sizes[source]
        parts = [self._seed, position, 0, 4]  # others are shorter, or end otherwise
        seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
        for attempt in range(size):
            yield self._starts[source] + shuffled(attempt, size, seed)

    def close(self) -> None:
        pass


def shuffled(index: int, size: int, seed: int) -> int:
    """The place of `index` in a permutation of `size` things."""
    if size > SMALL:
        return index_shuffle(index, max_index=size - 1, seed=seed, rounds=4)
    return int(_permutation(size, seed)[index])


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).permutation(size)


def _mixed_seed(seed: int, epoch: int, source: int) -> int:
    """Mixed, not added: seed 0 in epoch 1 must not be seed 1 in epoch 0."""
    parts = [seed, epoch] if source == 0 else [seed, epoch, source]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Whole numbers that sum to `BLOCK`, by largest remainders; at least 1 for a weight above 0."""
    scale = np.asarray(weights, np.float64)
    lifted = np.zeros(len(scale), bool)
    while True:  # what is lifted to 1 leaves less to the others, in proportion
        rest = scale[~lifted].sum()
        exact = np.where(lifted, 1, scale / rest * (BLOCK - lifted.sum()))
        tiny = (exact < 1) & (scale > 0) & ~lifted
        if not tiny.any():
            break
        lifted |= tiny
    shares = np.floor(exact).astype(np.int64)
    for place in np.argsort(shares - exact, kind="stable")[: BLOCK - shares.sum()]:
        shares[place] += 1
    return tuple(shares.tolist())


@functools.lru_cache(maxsize=8)
def _block(shares: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, rank among its source's places in the block) of each place of a block."""
    sources = np.repeat(np.arange(len(shares)), shares)
    np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, block, 1]))).shuffle(sources)
    ranks = np.empty(BLOCK, np.int64)
    for source, share in enumerate(shares):
        ranks[sources == source] = np.arange(share)
    return sources, ranks


def check_weights(weights: Sequence[float]) -> None:
    """Raises UserError where they are no shares of a mixture, or too many for each to have one."""
    for number, weight in enumerate(weights):
        if not (np.isfinite(weight) and weight >= 0):
            raise UserError(
                f"config.data.mixture[{number}].weight={weight}; accepted is a number of at least 0"
            )
    if sum(weight > 0 for weight in weights) > BLOCK:
        raise UserError(
            f"config.data.mixture: {len(weights):,} sources; accepted are at most {BLOCK:,}"
            " with a weight above 0"
        )
    if not sum(weights) > 0:
        raise UserError("config.data.mixture: its weights sum to 0; give one above 0")
