"""The index of a tar file: where its samples are, made once from the headers.

An index lies beside its archive (`00000.tar.index`) or in the cache. It begins with a header that
is all that opening a set reads; the table of samples and their keys are mapped into memory where
they are looked at, and the list of what is left out is read where somebody asks for it. So a set of
10,000 archives opens in a second and costs little memory.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.tars.captions import Member

ENDING = ".index"
VERSION = 4
ALWAYS = ("image", "json", "cls")  # members that a sample may have, besides texts
NO_END = "has no end mark and may be cut off"

_MAGIC = b"clip_jax tar index\n\0"
# What is looked at of an archive to know it again.
_PIECES = 4
_PIECE_BYTES = 4 << 10
_LAST_PIECE_BYTES = 12 << 10  # more than the zeros at the end of a tar


@dataclass(frozen=True)
class IndexHeader:
    """What opening a set has to know of one archive."""

    size: int  # bytes of the archive when the index was made
    tag: str  # that changes when it is written anew, but also when it is copied
    count: int  # samples
    row_bytes: int
    key_bytes: int
    fingerprint: str  # Fingerprint.value, as text: JSON has no such integers
    damage: str | None  # where the archive ends early or is broken; its samples before are used
    damage_at: int = 0  # byte
    has_end: bool = True  # the zeros that end a tar; some writers leave them out
    drop_counts: dict[str, int] = field(default_factory=dict)
    drop_bytes: int = 0  # of their list, at the end of the index
    options: str = ""  # `options_key` of what captions are read from
    content: str = ""  # `content_digest` of the archive
    texts: tuple[str, ...] = ("txt",)  # endings of the text members that the table has
    unlisted: tuple[str, ...] = ()  # endings of other members of its samples
    version: int = VERSION


def text_endings(options: SourceOptions) -> tuple[str, ...]:
    """Returns endings of members that may hold captions or labels: .txt, and what columns name."""
    columns = (*options.caption_columns, *filter(None, (options.label_column,)))
    names = (name.lower() for name in columns)
    return tuple(dict.fromkeys(("txt", *(name for name in names if name not in ALWAYS))))


def sample_type(texts: Sequence[str]) -> np.dtype:
    """Returns the type of a row of the table: offset and size of each member (0 where there is
    none), where the key ends among the keys, whether captions need the .json."""
    fields = []
    for name in (*ALWAYS, *(f".{ending}" for ending in texts)):
        fields += [(f"{name}_offset", "<u8"), (f"{name}_size", "<u4")]
    return np.dtype([*fields, ("key_end", "<u8"), ("needs_json", "u1")])


def options_key(options: SourceOptions) -> str:
    """Returns what of the options an index depends on: which captions make a sample usable."""
    key = json.dumps(options.caption_columns)
    return key if options.needs_captions else f"{key} or none"


def is_index_for(header: IndexHeader, options: SourceOptions) -> bool:
    """Whether an index lists the samples that these options ask for.

    One that left out no sample for its caption is also good for those who need none, and one
    without the member of the labels where the archive has no such members.
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
    """An index as it is written to disk. `rest`: table, keys, list of what is left out."""
    text = json.dumps(asdict(header)).encode()
    return b"".join((_MAGIC, struct.pack("<Q", len(text)), text, *rest))


def content_digest(size: int, read: Callable[[int, int], bytes]) -> str:
    """Tells an archive from another of its size, wherever it is copied to: a hash of the size and
    of a few pieces, from the first header to the last blocks.

    `read` gives the bytes from its first argument to before its second.
    """
    digest = hashlib.blake2b(f"{size}\n".encode(), digest_size=16)
    last = max(size - _LAST_PIECE_BYTES, 0)
    for number in range(_PIECES - 1) if last else ():
        start = last * number // (_PIECES - 1)
        digest.update(read(start, start + _PIECE_BYTES))
    digest.update(read(last, size))
    return digest.hexdigest()


def range_reader(file: BinaryIO) -> Callable[[int, int], bytes]:
    """What `content_digest` takes, of a file here."""
    descriptor = file.fileno()
    return lambda start, end: os.pread(descriptor, end - start, start)


def with_tag(index: bytes, tag: str) -> bytes:
    """The same index, of a copy of its archive. Raises ValueError where it is none."""
    found = parse_header(index)
    if found is None:
        raise ValueError("no index")
    header, start = found
    return pack_index(replace(header, tag=tag), index[start:])


def parse_header(data: bytes) -> tuple[IndexHeader, int] | None:
    """(header, where the table begins) from the first bytes; None where it is no such index.

    Raises EOFError where more bytes are needed.
    """
    start = len(_MAGIC) + 8
    if not data.startswith(_MAGIC) or len(data) < start:
        return None
    (length,) = struct.unpack("<Q", data[len(_MAGIC) : start])
    if len(data) < start + length:
        raise EOFError(start + length)
    try:
        values: dict[str, Any] = json.loads(data[start : start + length])
        if values.get("version") != VERSION:
            return None
        return IndexHeader(**values), start + length
    except (ValueError, TypeError):
        return None


def whole_size(header: IndexHeader, start: int) -> int:
    """Bytes of a complete index whose table begins at `start`."""
    return _drops_start(header, start) + header.drop_bytes


def _drops_start(header: IndexHeader, start: int) -> int:
    return start + header.count * header.row_bytes + header.key_bytes


def read_drops(
    path: str | os.PathLike[str], header: IndexHeader, start: int
) -> list[tuple[str, str, str, int]]:
    """What an archive has that is left out: key, kind, reason, byte at which the sample begins.

    Raises OSError or ValueError where the index is gone or another by now.
    """
    with open(path, "rb") as file:
        file.seek(_drops_start(header, start))
        return [tuple(drop) for drop in json.loads(file.read(header.drop_bytes))]


def read_header(path: str | os.PathLike[str]) -> tuple[IndexHeader, int] | None:
    """Of an index on disk; None where there is none, or an incomplete or foreign one."""
    try:
        with open(path, "rb") as file:
            wanted = 4096
            while True:
                file.seek(0)
                try:
                    found = parse_header(data := file.read(wanted))
                except EOFError as error:
                    if len(data) < wanted:
                        return None
                    wanted = error.args[0]
                    continue
                break
            if found is None:
                return None
            return found if os.fstat(file.fileno()).st_size == whole_size(*found) else None
    except OSError:
        return None


class Sample(NamedTuple):
    """Where the members of one sample are."""

    key: str
    image: Member
    json: Member | None
    cls: Member | None
    texts: dict[str, Member]  # by ending
    needs_json: bool


class Table:
    """Samples of one archive, mapped from its index."""

    def __init__(self, path: str | os.PathLike[str], header: IndexHeader, start: int) -> None:
        """Raises OSError or ValueError where the index is gone or has another size by now."""
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
        return self._key(index, int(self._rows["key_end"][index]))

    def _key(self, index: int, end: int) -> str:
        start = int(self._rows["key_end"][index - 1]) if index else 0
        return self._keys[start:end].tobytes().decode("utf-8", "surrogateescape")


def cached_indexes(path: str, options: SourceOptions) -> tuple[Path, ...]:
    """Returns where the cache may have an index of an archive that these options can use."""
    unlabelled = replace(options, label_column=None)
    every = (_needing(unlabelled), unlabelled, options)
    return tuple(dict.fromkeys(cached_index(path, choice) for choice in every))


def cached_index(path: str, options: SourceOptions) -> Path:
    """Returns where the cache keeps the index of an archive."""
    from clip_jax.files.stores import cache_folder

    identity = f"{path}\n{options_key(options)}\n{text_endings(options)}".encode()
    name = hashlib.blake2b(identity, digest_size=16).hexdigest()
    return cache_folder() / "indexes" / name[:2] / f"{name}{ENDING}"
