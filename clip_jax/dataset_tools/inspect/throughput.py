"""Speed of one thread that reads, decodes and tokenises."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.data.records import Source
from clip_jax.dataset_tools.inspect.as_trained import Loader
from clip_jax.errors import DecodeError

_MOST_RECORDS = 512
_SECONDS = 6.0  # at most
_TEXTS_AT_ONCE = 64

READ, DECODE, TOKENISE = "read", "decode and crop", "tokenise"


@dataclass(frozen=True)
class Throughput:
    """Time that one thread took to pass some records through all stages.

    `seconds`: stage -> time in it. Recently read data may come from memory.
    """

    records: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds in all stages."""
        return max(sum(self.seconds.values()), 1e-9)

    @property
    def whole(self) -> float:
        """Records per second through all stages."""
        return self.records / self.total

    @property
    def bottleneck(self) -> str:
        """The slowest stage."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    def rows(self) -> list[tuple[str, float, float]]:
        """(stage, records per second, share of the time) of each stage, and of all."""
        stages = [
            (name, self.records / max(seconds, 1e-9), seconds / self.total)
            for name, seconds in self.seconds.items()
        ]
        return [*stages, ("one after the other", self.whole, 1.0)]


def measure(source: Source, loader: Loader, indices: Sequence[int]) -> Throughput:
    """Measures the stages on good records (`indices`)."""
    # Training reads in random order.
    order = np.random.default_rng(0).permutation(np.asarray(indices)).tolist()[:_MOST_RECORDS]
    _pass(source, loader, order[:1])  # excludes one-time work
    return _pass(source, loader, order)


def _pass(source: Source, loader: Loader, order: Sequence[int]) -> Throughput:
    seconds = dict.fromkeys((READ, DECODE, TOKENISE), 0.0)
    texts: list[str] = []
    started = time.perf_counter()
    for number, index in enumerate(order):
        try:
            before = time.perf_counter()
            record = source[index]
            read = time.perf_counter()
            _, caption = loader.sample(record, number)
        except DecodeError:  # changed since it was looked at
            continue
        decoded = time.perf_counter()
        seconds[READ] += read - before
        seconds[DECODE] += decoded - read
        texts.append(caption)
        if decoded - started > _SECONDS:
            break
    before = time.perf_counter()
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        loader.tokens(texts[start : start + _TEXTS_AT_ONCE])
    seconds[TOKENISE] = time.perf_counter() - before
    return Throughput(len(texts), seconds)
