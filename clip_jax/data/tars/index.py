"""Index of a tar file: the positions of its samples, built once from the headers.

An index is beside its archive (`00000.tar.index`) or in the cache. Opening a set reads only the
index's header; the table of samples and their keys are memory-mapped on first use, and the list of
drops is read on request. So a set of 10,000 archives opens in a second and uses little memory.
"""

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.tars.captions import Member
from clip_jax.files.stores import cache_folder

ENDING = ".index"
VERSION = 4
ALWAYS = ("image", "json", "cls")  # members in the table besides texts
NO_END = "has no end mark and may be cut off"

_MAGIC = b"clip_jax tar index\n\0"
# These pieces of an archive are hashed to recognise it.
_PIECES = 4
_PIECE_BYTES = 4 << 10
_LAST_PIECE_BYTES = 12 << 10  # more than the zeros that end a tar


@dataclass(frozen=True)
class IndexHeader:
    """Everything that opening a set needs to know of one archive."""

    size: int  # bytes of the archive when the index was made
    tag: str  # changes when the archive is rewritten, but also when it is copied
    count: int  # samples
    row_bytes: int
    key_bytes: int
    fingerprint: str  # Fingerprint.value, as text: JSON has no such integers
    damage: str | None  # set if the archive ends early or is broken; samples before that are used
    damage_at: int = 0  # byte
    has_end: bool = True  # the zeros that end a tar; some writers leave them out
    drop_counts: dict[str, int] = field(default_factory=dict)
    drop_bytes: int = 0  # of the list of drops, at the end of the index
    options: str = ""  # `options_key` of the options it was built with
    content: str = ""  # `content_digest` of the archive
    texts: tuple[str, ...] = ("txt",)  # endings of the text members in the table
    unlisted: tuple[str, ...] = ()  # endings of the samples' other members
    version: int = VERSION


def text_endings(options: SourceOptions) -> tuple[str, ...]:
    """Returns the endings of members that may hold captions or labels: txt and the columns."""
    columns = (*options.caption_columns, *filter(None, (options.label_column,)))
    names = (name.lower() for name in columns)
    return tuple(dict.fromkeys(("txt", *(name for name in names if name not in ALWAYS))))


def sample_type(texts: Sequence[str]) -> np.dtype:
    """Returns the dtype of a table row: offset and size of each member (0 if absent), end of the
    key in the bytes of all keys, and whether captions need the .json."""
    fields = []
    for name in (*ALWAYS, *(f".{ending}" for ending in texts)):
        fields += [(f"{name}_offset", "<u8"), (f"{name}_size", "<u4")]
    return np.dtype([*fields, ("key_end", "<u8"), ("needs_json", "u1")])


def options_key(options: SourceOptions) -> str:
    """Returns the options that an index depends on: those that decide which samples are usable."""
    key = json.dumps(options.caption_columns)
    return key if options.needs_captions else f"{key} or none"


def is_index_for(header: IndexHeader, options: SourceOptions) -> bool:
    """Returns whether an index is valid for these options.

    An index that dropped no sample for its caption also serves options without `needs_captions`;
    one without the label member serves if the archive has no such members.
    """
    if (set(text_endings(options)) - set(header.texts)) & set(header.unlisted):
        return False
    if header.options == options_key(options):
        return True
    if options.needs_captions or header.options != options_key(_needing(options)):
        return False
    return set(header.drop_counts) <= {"image_missing"}


def _needing(options: SourceOptions) -> SourceOptions:
    return replace(options, needs_captions=True)


def pack_index(header: IndexHeader, *rest: bytes) -> bytes:
    """Returns an index as written to disk. `rest`: table, keys, list of drops."""
    text = json.dumps(asdict(header)).encode()
    return b"".join((_MAGIC, struct.pack("<Q", len(text)), text, *rest))


def content_digest(size: int, read: Callable[[int, int], bytes]) -> str:
    """Returns a hash of an archive's size and a few pieces, from the first header to the last
    blocks, which identifies it wherever it is copied.

    `read(start, end)` returns the bytes in [start, end).
    """
    digest = hashlib.blake2b(f"{size}\n".encode(), digest_size=16)
    last = max(size - _LAST_PIECE_BYTES, 0)
    for number in range(_PIECES - 1) if last else ():
        start = last * number // (_PIECES - 1)
        digest.update(read(start, start + _PIECE_BYTES))
    digest.update(read(last, size))
    return digest.hexdigest()


def read_header(
    source: str | os.PathLike[str] | bytes,
) -> tuple[IndexHeader, int] | None:
    """Returns (header, start of the table) of an index, given by its path or whole; None if it is
    absent, incomplete or foreign."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            magic, length = file.read(len(_MAGIC)), file.read(8)
            start = file.tell() + int.from_bytes(length, "little")
            if magic != _MAGIC or start > size:
                return None
            values: dict[str, Any] = json.loads(file.read(start - file.tell()))
        if values.get("version") != VERSION:
            return None
        header = IndexHeader(**values)
        return (header, start) if size == _drops_start(header, start) + header.drop_bytes else None
    except (OSError, ValueError, TypeError):
        return None


def _drops_start(header: IndexHeader, start: int) -> int:
    return start + header.count * header.row_bytes + header.key_bytes


def read_drops(
    path: str | os.PathLike[str], header: IndexHeader, start: int
) -> list[tuple[str, str, str, int]]:
    """Returns (key, kind, reason, first byte) of each dropped sample of an archive.

    Raises OSError or ValueError if the index has vanished or changed.
    """
    with open(path, "rb") as file:
        file.seek(_drops_start(header, start))
        return [tuple(drop) for drop in json.loads(file.read(header.drop_bytes))]


class Sample(NamedTuple):
    """Positions of the members of one sample."""

    key: str
    image: Member
    json: Member | None
    cls: Member | None
    texts: dict[str, Member]  # by ending
    needs_json: bool


class Table:
    """Samples of one archive, memory-mapped from its index."""

    def __init__(self, path: str | os.PathLike[str], header: IndexHeader, start: int) -> None:
        """Maps the index. Raises OSError or ValueError if it has vanished or changed size."""
        mapped = np.memmap(path, np.uint8, mode="r")
        end = start + header.count * header.row_bytes
        self._rows = mapped[start:end].view(sample_type(header.texts))
        self._keys = mapped[end : end + header.key_bytes]
        self._endings = tuple(header.texts)

    def __getitem__(self, index: int) -> Sample:
        *members, key_end, needs_json = self._rows[index].item()
        pairs = zip(members[::2], members[1::2], strict=True)
        image, json_, cls, *texts = (Member(*pair) if pair[0] else None for pair in pairs)
        found = {ending: m for ending, m in zip(self._endings, texts, strict=True) if m}
        assert image is not None
        return Sample(self._key(index, key_end), image, json_, cls, found, bool(needs_json))

    def key(self, index: int) -> str:
        """Returns the key of a sample."""
        return self._key(index, int(self._rows["key_end"][index]))

    def _key(self, index: int, end: int) -> str:
        start = int(self._rows["key_end"][index - 1]) if index else 0
        return self._keys[start:end].tobytes().decode("utf-8", "surrogateescape")


def cached_indexes(path: str, options: SourceOptions) -> tuple[Path, ...]:
    """Returns the cache paths that may hold an index of an archive for these options."""
    unlabelled = replace(options, label_column=None)
    every = (_needing(unlabelled), unlabelled, options)
    return tuple(dict.fromkeys(cached_index(path, choice) for choice in every))


def cached_index(path: str, options: SourceOptions) -> Path:
    """Returns the cache path of an archive's index."""
    identity = f"{path}\n{options_key(options)}\n{text_endings(options)}".encode()
    name = hashlib.blake2b(identity, digest_size=16).hexdigest()
    return cache_folder() / "indexes" / name[:2] / f"{name}{ENDING}"
