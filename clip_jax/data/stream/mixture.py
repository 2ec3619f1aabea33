"""Mixture of several sources."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from clip_jax.data.records import Drops, Record, Source, fingerprint_of
from clip_jax.data.stream.order import check_weights


class MixtureSource:
    """Concatenation of sources; `weights` are their shares of the stream (see
    `order.ShuffledOrder`).

    Keys are "NAME:KEY", with the name and key of the source.

    Raises UserError for invalid weights.
    """

    def __init__(
        self, sources: Sequence[Source], names: Sequence[str], weights: Sequence[float]
    ) -> None:
        check_weights(weights)
        kept = [n for n, weight in enumerate(weights) if weight > 0]
        self.sources = tuple(sources[n] for n in kept)
        self.weights = tuple(weights[n] for n in kept)
        self._names = tuple(names[n] for n in kept)
        self.sizes = tuple(len(source) for source in self.sources)
        self._ends = tuple(accumulate(self.sizes))
        self.dropped = Drops(max(source.dropped.room for source in self.sources))
        for name, source in zip(self._names, self.sources, strict=True):
            self.dropped.update(source.dropped, f"{name}:")
        self.fingerprint = fingerprint_of(
            (f"{weight}", (source.fingerprint,))
            for weight, source in zip(self.weights, self.sources, strict=True)
        )

    def _locate(self, index: int) -> tuple[Source, int, str]:
        number = bisect_right(self._ends, index)
        if index < 0 or number == len(self._ends):
            raise IndexError(index)
        first = self._ends[number] - self.sizes[number]
        return self.sources[number], index - first, self._names[number]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        source, local, name = self._locate(index)
        record = source[local]
        return Record(f"{name}:{record.key}", record.image, record.captions, record.weights)

    def captions(self, index: int) -> tuple[str, ...]:
        source, local, _ = self._locate(index)
        return source.captions(local)

    def metadata(self, index: int) -> dict[str, Any]:
        source, local, _ = self._locate(index)
        return source.metadata(local)

    def key(self, index: int) -> str:
        source, local, name = self._locate(index)
        return f"{name}:{source.key(local)}"
