"""Compact storage of the keys and captions of millions of records, and its sources' base.

Python objects would take five times the memory, and each worker would have to unpickle all of them.
"""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.sources.base import BaseSource


class PackedTexts:
    """Append-only list of texts; lone surrogates, as in file names, are kept."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("Q")
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Adds a text, which may hold lone surrogates."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        end = self._ends[index]  # raises IndexError
        if index < 0:
            index += len(self._ends)
        start = self._ends[index - 1] if index else 0
        return self._bytes[start:end].decode("utf-8", "surrogatepass")


class RecordStore:
    """Keys, one more text (`rest`) and captions of records.

    Captions are added one by one, each with its column, until `gather`. A record's captions are
    then ordered by column, and by the order of adding.
    """

    def __init__(self) -> None:
        self.keys = PackedTexts()
        self.rest = PackedTexts()
        self._captions = PackedTexts()
        self._owners = array("Q")
        self._columns = array("H")
        self._ends = array("Q")  # end of each record's captions

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, key: str, rest: str) -> None:
        """Adds a record without captions."""
        self.keys.append(key)
        self.rest.append(rest)

    def add_caption(self, record: int, column: int, caption: str) -> None:
        """Adds a caption of any earlier record, from a column of the table."""
        self._owners.append(record)
        self._columns.append(column)
        self._captions.append(caption)

    def gather(self, keep_columns: bool) -> None:
        """Sorts the captions by record, after the last one; `keep_columns`: `columns` is needed."""
        owners, columns = np.asarray(self._owners), np.asarray(self._columns)
        order = np.lexsort((columns, owners))
        if np.any(order[1:] < order[:-1]):
            self._captions = PackedTexts(self._captions[int(number)] for number in order)
            self._columns = array("H", columns[order].tobytes())
        counts = np.bincount(owners.astype(np.int64), minlength=len(self.keys))
        self._ends = array("Q", np.cumsum(counts, dtype=np.uint64).tobytes())
        self._owners = array("Q")
        if not keep_columns:
            self._columns = array("H")

    def _numbers(self, index: int) -> range:
        """Returns the range of a record's captions in the flat list of all captions."""
        end = self._ends[index]
        if index < 0:
            index += len(self._ends)
        return range(self._ends[index - 1] if index else 0, end)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions of a record."""
        return tuple(self._captions[number] for number in self._numbers(index))

    def columns(self, index: int) -> list[int]:
        """Returns the column of each of a record's captions."""
        return [self._columns[number] for number in self._numbers(index)]


class StoredSource(BaseSource):
    """Base of sources that read all keys and captions when opened."""

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        self._store = RecordStore()

    def __len__(self) -> int:
        return len(self._store)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._store.captions(index)

    def key(self, index: int) -> str:
        return self._store.keys[index]
