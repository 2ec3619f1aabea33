"""The `Source` protocol: records by index, captions without pixels, and a list of drops.

Every format of `clip_jax.data` implements `Source`; the code above it (pipeline, evaluation) knows
nothing else about files.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from clip_jax.data.options import LISTED_DROPS, SourceOptions
from clip_jax.errors import DecodeError
from clip_jax.files.text_encoding import utf16_problem

IMAGE_EXTENSIONS = (
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bmp",
    "gif",
    "tif",
    "tiff",
    "avif",
    "ppm",
    "jfif",
)


# These are the reasons for dropping a sample, as metrics, reports and `Drops.counts` name them.
KINDS = (
    "image_missing",  # no image, or an incomplete one
    "image_undecodable",
    "image_bomb",  # declares too many pixels
    "image_filtered",  # too small or too elongated for config.data.filters
    "caption_missing",
    "caption_empty",  # or white space
    "caption_not_utf8",
    "caption_too_long",  # more bytes than any caption has
    "caption_filtered",
    "duplicate",  # on the list of config.data.exclude
    "row_malformed",
    "shard_unreadable",  # vanished, or its store failed in all attempts
    "shard_damaged",  # once per truncated or broken archive; samples before that are used
)


class CaptionError(DecodeError):
    """A caption that cannot be used; see `decode_caption`."""


class Drop(NamedTuple):
    """The reason why one sample is dropped; `position`: archive and byte, if known."""

    kind: str
    reason: str
    position: str | None = None


class Drops(Mapping[str, str]):
    """Samples that a source drops: a mapping key -> reason of the first ones, and exact counts.

    If keys repeat, as they may in archives, the mapping has the first; `listed` has each.

    Attributes:
      counts: kind (of `KINDS`) -> number of samples.
      listed: (key, `Drop`) of the first samples, in order.
      room: maximum length of `listed`.
      kept_rows: number of rows used, if several rows make one record; otherwise 0, and the number
        of records counts.
    """

    def __init__(self, room: int = LISTED_DROPS) -> None:
        self.counts: Counter[str] = Counter()
        self.listed: list[tuple[str, Drop]] = []
        self.room = room
        self.kept_rows = 0
        self._reasons: dict[str, str] = {}

    def add(self, kind: str, key: str, reason: str, position: str | None = None) -> None:
        """Counts and lists one sample; `reason` is a few words, without the key."""
        self.counts[kind] += 1
        self.list(((key, Drop(kind, reason, position)),))

    def list(self, drops: Iterable[tuple[str, Drop]]) -> None:
        """Lists samples that are already counted, while there is room."""
        for key, drop in islice(drops, max(0, self.room - len(self.listed))):
            self.listed.append((key, drop))
            self._reasons.setdefault(key, drop.reason)

    def update(self, other: "Drops", prefix: str = "", kept: int = 0) -> None:
        """Appends the drops of `other`, with `prefix` before its keys.

        `kept`: its number of records, if `kept_rows` is to be a sum over several sources.
        """
        self.counts.update(other.counts)
        self.list((prefix + key, drop) for key, drop in other.listed)
        self.kept_rows += other.kept_rows or kept

    @property
    def total(self) -> int:
        """Returns how many samples were left out."""
        return self.counts.total()

    def because(self) -> str:
        """Returns " (number dropped; the first, and why)" for messages; "" if there is none."""
        if not self.listed:
            return ""
        key, drop = self.listed[0]
        return f" ({self.total} dropped; {key}: {drop.reason})"

    def __getitem__(self, key: str) -> str:
        return self._reasons[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reasons)

    def __len__(self) -> int:
        """Returns the number of distinct keys listed; `total` counts all samples."""
        return len(self._reasons)

    def __repr__(self) -> str:
        return f"Drops({dict(self)!r})"


@dataclass(frozen=True)
class Record:
    """One image with its captions, as stored.

    `image` is an encoded file (bytes) or, from in-memory sources, pixels uint8 (H, W, 3).
    `weights`, if given, has each caption's relative probability of being chosen.
    """

    key: str
    image: bytes | np.ndarray
    captions: tuple[str, ...]
    weights: tuple[float, ...] | None = None


class Source(Protocol):
    """Random access to records.

    A source is picklable for worker processes, each of which opens files lazily, and is safe to
    read from several threads.
    """

    @property
    def dropped(self) -> Drops:
        """Samples dropped when the source was opened, with reasons."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash by which a resume recognises the data: of keys and captions in order, the same for
        any format and machine.

        Formats that do not read all captions when opened hash other things that change with the
        data: file names, sizes, counts and two records (ArrayRecord, TFDS), or paths (a stream).
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`. Raises `DecodeError` if it cannot be read."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns at least one caption, reading no image. Raises `DecodeError` on failure."""
        ...

    def metadata(self, index: int) -> dict[str, Any]:
        """Returns the record's other fields, such as "class", reading no image."""
        ...

    def key(self, index: int) -> str:
        """Returns the record's name in logs."""
        ...


def split_of(source: Source) -> str | None:
    """Returns the name of the split that a source reads, or None if its data has no splits."""
    return getattr(source, "split", None)


@dataclass(frozen=True)
class Reader:
    """A format of data, and all that the rest of the package knows about it.

    Each format is one file in `clip_jax.data.sources` with a `READER`; no other file lists it.

    Attributes:
      name: value of the option `format`.
      open: (path, options) -> its `Source`.
      endings: endings of its files, in lower case and without the dot; the usual one first.
      signs: groups of file patterns; a folder has this format if all patterns of a group match.
      rank: if a folder has the signs of several formats, it has that of the highest rank.
      table_columns: (path, options) -> (all columns, those of captions), if its files may be tables
        of captions in a folder of images. Raises UserError if a needed column is missing, and
        UnicodeDecodeError or OSError.
      tables: endings of such tables.
      named_tables: endings that count only if a file is called metadata, captions or the like.
      files: the local files that records are made of: all files named by the path ("files"), those
        and the images that the keys name ("images"), or all in a folder ("folder"); "" for none.
      in_memory: reading a caption reads no file.
      no_columns: if `image_column` has no meaning, where the images come from; otherwise "".
    """

    name: str
    open: Callable[[str, SourceOptions], Source]
    endings: tuple[str, ...] = ()
    signs: tuple[tuple[str, ...], ...] = ()
    rank: int = 0
    table_columns: Callable[[Path, SourceOptions], tuple[list[str], tuple[str, ...]]] | None = None
    tables: tuple[str, ...] = ()
    named_tables: tuple[str, ...] = ()
    files: Literal["files", "images", "folder", ""] = "files"
    in_memory: bool = False
    no_columns: str = ""


class Fingerprint:
    """Hash of keys and captions in order, which can be combined from the hashes of shards.

    It is a polynomial in the records' digests: the hash of "ab" follows from those of "a" and "b",
    however a set is cut into shards.
    """

    _PRIME = 2**127 - 1
    _BASE = 0x2545F4914F6CDD1D_9E3779B97F4A7C15 % _PRIME

    def __init__(self, value: int = 0, count: int = 0) -> None:
        self.value = value
        self.count = count

    def add(self, key: str, captions: Iterable[str]) -> None:
        """Adds a record; the order of records counts."""
        digest = hashlib.blake2b(digest_size=16)
        for text in (key, *captions):
            encoded = text.encode("utf-8", "surrogatepass")
            # Lengths keep ("ab", "c") and ("a", "bc") apart.
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        number = int.from_bytes(digest.digest(), "little")
        self.value = (self.value * self._BASE + number) % self._PRIME
        self.count += 1

    def extend(self, other: "Fingerprint") -> None:
        """Appends the records of `other`."""
        shifted = self.value * pow(self._BASE, other.count, self._PRIME)
        self.value = (shifted + other.value) % self._PRIME
        self.count += other.count

    def hexdigest(self) -> str:
        """Returns 32 hexadecimal digits."""
        text = f"{self.value}/{self.count}".encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest()


def fingerprint_of(items: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    """Returns the `Fingerprint` of (key, captions) in order, as 32 hexadecimal digits."""
    fingerprint = Fingerprint()
    for key, captions in items:
        fingerprint.add(key, captions)
    return fingerprint.hexdigest()


def decode_caption(data: bytes) -> str:
    """Decodes UTF-8 bytes, without the byte order mark but otherwise unchanged.

    Raises CaptionError, with the reason in a few words, if the text is blank or not UTF-8.
    """
    problem = utf16_problem(data) if b"\0" in data else None
    if problem is not None:
        raise CaptionError(f"caption {problem}", "caption_not_utf8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(
            f"caption is not UTF-8 (byte {error.start})", "caption_not_utf8"
        ) from None
    if not text.strip():
        raise CaptionError("caption is empty or only white space", "caption_empty")
    return text


def check_unicode(text: str) -> str:
    """Returns the text. Raises CaptionError if it has a lone surrogate (from a JSON escape)."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CaptionError(
                f"caption is not Unicode text (character {error.start})", "caption_not_utf8"
            ) from None
    return text
