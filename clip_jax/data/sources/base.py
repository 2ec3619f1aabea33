"""Base of most sources: options, drops, fingerprint, and records in parts."""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops, Source, fingerprint_of
from clip_jax.errors import UserError


class BaseSource:
    """Base of sources."""

    split: str | None = None
    fingerprint: str

    def __init__(self, options: SourceOptions) -> None:
        self._options = options
        self.dropped = Drops(options.listed_drops)

    def __len__(self) -> int:
        raise NotImplementedError

    def _check_not_empty(self, message: str, advice: str, because: str = "") -> None:
        """Raises UserError if no record is usable, unless the reader wants to know only why.

        `because`: the reason, if nothing is dropped.
        """
        is_inspected = self._options.skip_unreadable and self.dropped.total
        if not len(self) and not is_inspected:
            raise UserError(f"{message}{self.dropped.because() or because}; {advice}")


def hash_of(source: Source) -> str:
    """Returns the fingerprint of a source whose keys and captions are read quickly."""
    records = range(len(source))
    return fingerprint_of((source.key(index), source.captions(index)) for index in records)


class Parts:
    """Numbering of records that are in several parts, one after the other."""

    def __init__(self, counts: Iterable[int]) -> None:
        self._ends = [*accumulate(counts)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def find(self, index: int) -> tuple[int, int]:
        """Returns (part, number in it) of a record. Raises IndexError."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)
