"""Keys and captions of millions of records in a few buffers.

As objects they would take five times their bytes, and each worker would make all of them anew.
"""

from array import array
from collections.abc import Iterable

import numpy as np


class PackedTexts:
    """A list of texts that only grows; lone surrogates, as of file names, are kept."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("Q")
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        end = self._ends[index]  # raises IndexError
        if index < 0:
            index += len(self._ends)
        start = self._ends[index - 1] if index else 0
        return self._bytes[start:end].decode("utf-8", "surrogatepass")


class RecordStore:
    """Of each record the key, its captions and one more text."""

    def __init__(self) -> None:
        self.keys = PackedTexts()
        self.rest = PackedTexts()
        self._captions = PackedTexts()
        self._ends = array("Q")  # of each record's captions

    def add(self, key: str, captions: Iterable[str], rest: str = "") -> None:
        self.keys.append(key)
        self.rest.append(rest)
        for caption in captions:
            self._captions.append(caption)
        self._ends.append(len(self._captions))

    def __len__(self) -> int:
        return len(self.keys)

    def numbers(self, index: int) -> range:
        """Of a record's captions, among all."""
        end = self._ends[index]
        if index < 0:
            index += len(self._ends)
        return range(self._ends[index - 1] if index else 0, end)

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self._captions[number] for number in self.numbers(index))


class GatheringStore(RecordStore):
    """A store whose records get their captions bit by bit, each from a column; `gather` ends that.

    The captions of a record are in the order of the columns, then in that in which they came.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owners = array("Q")
        self._columns = array("H")

    def add_caption(self, record: int, column: int, caption: str) -> None:
        self._owners.append(record)
        self._columns.append(column)
        self._captions.append(caption)

    def gather(self, keep_columns: bool) -> None:
        """`keep_columns`: `columns` will be asked for."""
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

    def columns(self, index: int) -> list[int]:
        """Of each of a record's captions."""
        return [self._columns[number] for number in self.numbers(index)]
