"""What a data source is: records by index, captions without pixels, and what was dropped.

Every format of `clip_jax.data` implements `Source`; everything above it (pipeline, evaluation)
knows nothing else about files.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from clip_jax.errors import UserError

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


class DecodeError(UserError):
    """An image that cannot be read or decoded completely; the message is one line with the reason.

    A `UserError`, so that a program which is given one bad image ends with one line; the training
    and evaluation pipelines catch it, count it and go on.
    """


@dataclass(frozen=True)
class Record:
    """One image with its captions, as stored.

    `image` is an encoded file (bytes) or, from in-memory sources, pixels uint8 (H, W, 3).
    """

    key: str
    image: bytes | np.ndarray
    captions: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Random access to records.

    Picklable, so that worker processes can read it: files are opened lazily in each process.
    Safe to read from several threads.
    """

    @property
    def dropped(self) -> dict[str, str]:
        """key -> why the sample was left out when the source was indexed."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of keys and captions in order; equal data, equal fingerprint, on any machine."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """The record at `index`. Raises `DecodeError` where its image cannot be read."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """At least one caption; reads no image."""
        ...

    def metadata(self, index: int) -> dict[str, Any]:
        """Whatever the format knows besides the caption, such as "class"; reads no image."""
        ...

    def key(self, index: int) -> str:
        """The name by which logs speak of the record."""
        ...


def fingerprint_of(items: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    """Stable hash (32 hexadecimal digits) of (key, captions) in order."""
    digest = hashlib.blake2b(digest_size=16)
    for key, captions in items:
        for text in (key, *captions):
            encoded = text.encode("utf-8", "surrogatepass")
            # Lengths keep ("ab", "c") and ("a", "bc") apart.
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        digest.update(b"\xff")
    return digest.hexdigest()


def decode_caption(data: bytes) -> str:
    """UTF-8 bytes -> text without byte order mark, otherwise unchanged.

    Raises ValueError, with the reason in a few words, where it is blank or not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"caption is not UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise ValueError("caption is empty or only white space")
    return text


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file; `DecodeError` where it cannot be read, as for any other bad image."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DecodeError(f"{path} cannot be read: {error.strerror or error}") from error
