"""What a data source is: records by index, captions without pixels, and what was dropped.

Every format of `clip_jax.data` implements `Source`; everything above it (pipeline, evaluation)
knows nothing else about files.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from clip_jax.data.options import LISTED_DROPS
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


# Why samples are left out, in the words of metrics, reports and `Drops.counts`.
KINDS = (
    "image_missing",  # no image, or an incomplete one
    "image_undecodable",
    "image_bomb",  # declares too many pixels
    "image_filtered",  # too small, too long: by config.data.filters
    "caption_missing",
    "caption_empty",  # or white space
    "caption_not_utf8",
    "caption_too_long",  # more bytes than any caption has
    "caption_filtered",
    "duplicate",  # on the list of config.data.exclude
    "row_malformed",
    "shard_unreadable",  # vanished, or a store that fails in spite of all attempts
    "shard_damaged",  # once an archive that is cut off or broken; its samples before are used
)


class CaptionError(DecodeError):
    """A caption that cannot be used, as `decode_caption` finds it."""


class Drop(NamedTuple):
    """Why one sample is left out; `position`: archive and byte, where a source knows them."""

    kind: str
    reason: str
    position: str | None = None


class Drops(Mapping[str, str]):
    """What a source leaves out: key -> reason of the first, exact counts of all.

    Of equal keys, as archives may have them, the mapping has the first; `listed` has each.

    Attributes:
      counts: kind (of `KINDS`) -> how many.
      listed: (key, `Drop`) of the first, in order.
      room: how many may be listed.
      kept_rows: rows that are used, where rows of one image make one record; otherwise 0, and the
        records count.
    """

    def __init__(self, room: int = LISTED_DROPS) -> None:
        self.counts: Counter[str] = Counter()
        self.listed: list[tuple[str, Drop]] = []
        self.room = room
        self.kept_rows = 0
        self._reasons: dict[str, str] = {}

    def add(self, kind: str, key: str, reason: str, position: str | None = None) -> None:
        """One sample; `reason` in a few words, without the key."""
        self.counts[kind] += 1
        self.list(((key, Drop(kind, reason, position)),))

    def list(self, drops: Iterable[tuple[str, Drop]]) -> None:
        """Samples that are counted already."""
        for key, drop in islice(drops, max(0, self.room - len(self.listed))):
            self.listed.append((key, drop))
            self._reasons.setdefault(key, drop.reason)

    def update(self, other: "Drops", prefix: str = "", kept: int = 0) -> None:
        """Adds all of another's, after our own; `prefix` goes before its keys.

        `kept`: its records, where `kept_rows` is to be the sum over several sources.
        """
        self.counts.update(other.counts)
        self.list((prefix + key, drop) for key, drop in other.listed)
        self.kept_rows += other.kept_rows or kept

    @property
    def total(self) -> int:
        return self.counts.total()

    def __getitem__(self, key: str) -> str:
        return self._reasons[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reasons)

    def __len__(self) -> int:
        """How many keys are listed; `total` counts all."""
        return len(self._reasons)

    def __repr__(self) -> str:
        return f"Drops({dict(self)!r})"


@dataclass(frozen=True)
class Record:
    """One image with its captions, as stored.

    `image` is an encoded file (bytes) or, from in-memory sources, pixels uint8 (H, W, 3).
    `weights`, where given, has a number for each caption: how often it is to be chosen.
    """

    key: str
    image: bytes | np.ndarray
    captions: tuple[str, ...]
    weights: tuple[float, ...] | None = None


class Source(Protocol):
    """Random access to records.

    Picklable, so that worker processes can read it: files are opened lazily in each process.
    Safe to read from several threads.
    """

    @property
    def dropped(self) -> Drops:
        """What was left out when the source was opened, and why."""
        ...

    @property
    def fingerprint(self) -> str:
        """By which a resume knows the data again: a hash of keys and captions in order, the same
        for any format and machine.

        Where captions would have to be read for it, of other things that change with the data:
        names, sizes and counts of files and two records (ArrayRecord, TFDS), or paths (a stream).
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """The record at `index`. Raises `DecodeError` where it cannot be read."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """At least one caption; reads no image. Raises `DecodeError` where it cannot be read."""
        ...

    def metadata(self, index: int) -> dict[str, Any]:
        """Whatever the format knows besides the caption, such as "class"; reads no image."""
        ...

    def key(self, index: int) -> str:
        """The name by which logs speak of the record."""
        ...


def split_of(source: Source) -> str | None:
    """Name of the split that a source is, or None where its data has no splits."""
    return getattr(source, "split", None)


class Fingerprint:
    """Hash of keys and captions in order, of parts that can be put together.

    A polynomial in digests of the records: that of "ab" comes from those of "a" and "b", wherever a
    set is cut into shards.
    """

    _PRIME = 2**127 - 1
    _BASE = 0x2545F4914F6CDD1D_9E3779B97F4A7C15 % _PRIME

    def __init__(self, value: int = 0, count: int = 0) -> None:
        self.value = value
        self.count = count

    def add(self, key: str, captions: Iterable[str]) -> None:
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
        """The records of `other` after our own."""
        shifted = self.value * pow(self._BASE, other.count, self._PRIME)
        self.value = (shifted + other.value) % self._PRIME
        self.count += other.count

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        text = f"{self.value}/{self.count}".encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest()


def fingerprint_of(items: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    """The `Fingerprint` of (key, captions) in order, as 32 hexadecimal digits."""
    fingerprint = Fingerprint()
    for key, captions in items:
        fingerprint.add(key, captions)
    return fingerprint.hexdigest()


def decode_caption(data: bytes) -> str:
    """UTF-8 bytes -> text without byte order mark, otherwise unchanged.

    Raises CaptionError, with the reason in a few words, where it is blank or not UTF-8.
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
    """The text. Raises CaptionError where it has half a surrogate pair, by an escape in JSON."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CaptionError(
                f"caption is not Unicode text (character {error.start})", "caption_not_utf8"
            ) from None
    return text
