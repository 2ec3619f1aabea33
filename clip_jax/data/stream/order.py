"""Order of records: a function of (seed, position), the same on any number of hosts.

The global stream of records is endless. Position p belongs to one source of the mixture and is the
n-th draw from it; n gives an epoch of that source and a place in it, and each epoch is its own
permutation. The order keeps no state, and any position can be computed directly.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from grain.experimental import index_shuffle

from clip_jax.errors import UserError

# Each source has a whole-numbered share of a block's positions: weights are exact to 1 in 16,000.
BLOCK = 8192
# Permutations up to this size are tables, because `index_shuffle` walks through 65,536 places to
# find one of a few (1.7 ms for four).
SMALL = 4096


class ShuffledOrder:
    """Order of sources whose records are numbered consecutively; each epoch of each is shuffled.

    It is pickled to workers, as is a stream's order, `shard_order.StreamOrder`.

    Args:
      sizes: number of records of each source.
      weights: shares of the stream, on any positive scale; None: all records equally often.
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
        """Yields the record numbers at these positions in the global stream."""
        # Seeds are kept per source and epoch: a permutation is cheap, its seed is not.
        seeds: dict[tuple[int, int], int] = {}
        for position in positions:
            source, draw = self._draw(position)
            size = self._sizes[source]
            epoch, index = divmod(draw, size)
            if (source, epoch) not in seeds:
                # Mixed, not added: seed 0 in epoch 1 must differ from seed 1 in epoch 0.
                parts = [self._seed, epoch, source] if source else [self._seed, epoch]
                seeds[source, epoch] = mixed_seed(*parts)
            yield self._starts[source] + shuffled(index, size, seeds[source, epoch])

    def _draw(self, position: int) -> tuple[int, int]:
        """Returns (source, number of earlier draws from it)."""
        if len(self._sizes) == 1:
            return 0, position
        block, place = divmod(position, BLOCK)
        sources, ranks = _block(self._shares, self._seed, block)
        source = int(sources[place])
        return source, block * self._shares[source] + int(ranks[place])

    def replacements(self, position: int) -> Iterator[int]:
        """Yields the records to try in turn if the one at `position` is unusable: all of the same
        source, in another order, because a lost shard's neighbours are the same few."""
        source, _ = self._draw(position)
        size = self._sizes[source]
        seed = mixed_seed(self._seed, position, 0, 4)  # others are shorter or end differently
        for attempt in range(size):
            yield self._starts[source] + shuffled(attempt, size, seed)

    def close(self) -> None:
        """Does nothing: nobody waits for these records."""


def shuffled(index: int, size: int, seed: int) -> int:
    """Returns element `index` of a permutation of range(size)."""
    if size > SMALL:
        return index_shuffle(index, max_index=size - 1, seed=seed, rounds=4)
    return int(_permutation(size, seed)[index])


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).permutation(size)


def mixed_seed(*parts: int) -> int:
    """Mixes numbers into one seed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Returns integers that sum to `BLOCK`, by largest remainders; at least 1 for a weight > 0."""
    scale = np.asarray(weights, np.float64)
    lifted = np.zeros(len(scale), bool)
    while True:  # lifting a share to 1 shrinks the others in proportion
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
    """Returns (source, rank among that source's places) of each place of a block."""
    sources = np.repeat(np.arange(len(shares)), shares)
    np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, block, 1]))).shuffle(sources)
    ranks = np.empty(BLOCK, np.int64)
    for source, share in enumerate(shares):
        ranks[sources == source] = np.arange(share)
    return sources, ranks


def check_weights(weights: Sequence[float]) -> None:
    """Raises UserError if weights are invalid, or too many for each to have a share of a block."""
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
