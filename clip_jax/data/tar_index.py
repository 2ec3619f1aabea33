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
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import IMAGE_EXTENSIONS, CaptionError, Fingerprint
from clip_jax.data.tar_captions import CaptionReader, Member

ENDING = ".index"
VERSION = 3

_MAGIC = b"clip_jax tar index\n\0"
_ALWAYS = ("image", "json", "cls")  # members that a sample may have, besides texts
_LARGEST_MEMBER = 2**32 - 1  # bytes
# What is looked at of an archive to know it again. Longer than the zeros at the end of a tar.
_PIECES = 4
_PIECE_BYTES = 12 << 10


NO_END = "has no end mark and may be cut off"


class NotATar(ValueError):
    """Not an uncompressed tar file; the message says why."""


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
    version: int = VERSION


def text_endings(options: SourceOptions) -> tuple[str, ...]:
    """Of the members that may hold captions: .txt, and whatever the caption columns name."""
    return tuple(dict.fromkeys(("txt", *(name.lower() for name in options.caption_columns))))


def sample_type(options: SourceOptions) -> np.dtype:
    """A row of the table: offset and size of each member (0 where there is none), where the key
    ends among the keys, whether captions need the .json."""
    fields = []
    for name in (*_ALWAYS, *(f".{ending}" for ending in text_endings(options))):
        fields += [(f"{name}_offset", "<u8"), (f"{name}_size", "<u4")]
    return np.dtype([*fields, ("key_end", "<u8"), ("needs_json", "u1")])


def options_key(options: SourceOptions) -> str:
    """What of the options an index depends on: which captions make a sample usable."""
    return json.dumps(options.caption_columns)


@dataclass
class _Group:
    """Neighbouring members of one key, by lower-case extension."""

    key: str
    start: int  # byte of the first header
    members: dict[str, Member] = field(default_factory=dict)


@dataclass
class _End:
    """How an archive ends, as `IndexHeader` says it."""

    damage: str | None = None
    at: int = 0
    is_marked: bool = True


class _Builder:
    """Collects samples; `file` is the archive."""

    def __init__(self, file: BinaryIO, options: SourceOptions) -> None:
        self._descriptor = file.fileno()
        self._captions = CaptionReader(options)
        self._texts = text_endings(options)
        self.rows: list[tuple[int, ...]] = []
        self.keys = bytearray()
        self.drop_counts: Counter[str] = Counter()
        self.drops: list[tuple[str, str, str, int]] = []
        self.fingerprint = Fingerprint()

    def read(self, member: Member) -> bytes:
        return os.pread(self._descriptor, member.size, member.offset)

    def finish(self, group: _Group | None) -> None:
        if group is None:
            return
        members = group.members
        image = next((members[name] for name in members if name in IMAGE_EXTENSIONS), None)
        if image is None:
            self._drop(group, "image_missing", "no complete image member")
            return
        texts = {name: members[name] for name in self._texts if name in members}
        try:
            captions = self._captions.read(texts, members.get("json"), self.read)
        except CaptionError as error:
            self._drop(group, error.kind, str(error))
            return
        self.keys += group.key.encode("utf-8", "surrogateescape")
        none = Member(0, 0)
        rest = (*_ALWAYS[1:], *self._texts)
        found = (image, *(members.get(name, none) for name in rest))
        self.rows.append((*(x for m in found for x in m), len(self.keys), captions.needs_json))
        self.fingerprint.add(group.key, captions.texts)

    def _drop(self, group: _Group, kind: str, reason: str) -> None:
        self.drop_counts[kind] += 1
        self.drops.append((group.key, kind, reason, group.start))


def make_index(path: str | os.PathLike[str], options: SourceOptions, tag: str) -> bytes:
    """The index of a local archive, as it is written to disk.

    Raises NotATar, and OSError where it cannot be read.
    """
    end = _End()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = content_digest(size, range_reader(file))
        builder = _Builder(file, options)
        group: _Group | None = None
        for info in _headers(file, size, end):
            key, extension = split_name(info.name)
            if not key or info.isdir():
                continue
            if group is None or key != group.key or extension in group.members:
                builder.finish(group)
                group = _Group(key, info.offset)
            if _is_whole_file(info, size):
                group.members[extension] = Member(info.offset_data, info.size)
        builder.finish(group)
    drops = json.dumps(builder.drops).encode()
    header = IndexHeader(
        size=size,
        tag=tag,
        count=len(builder.rows),
        key_bytes=len(builder.keys),
        fingerprint=str(builder.fingerprint.value),
        damage=end.damage,
        damage_at=end.at,
        has_end=end.is_marked,
        drop_counts=dict(builder.drop_counts),
        drop_bytes=len(drops),
        row_bytes=sample_type(options).itemsize,
        options=options_key(options),
        content=content,
    )
    table = np.array(builder.rows, sample_type(options)).tobytes()
    return _packed(header, table, bytes(builder.keys), drops)


def _packed(header: IndexHeader, *rest: bytes) -> bytes:
    text = json.dumps(asdict(header)).encode()
    return b"".join((_MAGIC, struct.pack("<Q", len(text)), text, *rest))


def content_digest(size: int, read: Callable[[int, int], bytes]) -> str:
    """Tells an archive from another of its size, wherever it is copied to: a hash of the size and
    of a few pieces, from the first header to the last blocks.

    `read` gives the bytes from its first argument to before its second.
    """
    digest = hashlib.blake2b(f"{size}\n".encode(), digest_size=16)
    last = max(size - _PIECE_BYTES, 0)
    for start in sorted({last * number // (_PIECES - 1) for number in range(_PIECES)}):
        digest.update(read(start, min(start + _PIECE_BYTES, size)))
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
    return _packed(replace(header, tag=tag), index[start:])


def _headers(file: BinaryIO, size: int, end: _End) -> Iterator[tarfile.TarInfo]:
    """The headers that can be read; `end` is told how the archive ends.

    Raises NotATar where there is none.
    """
    try:
        # "r:" seeks from header to header and refuses compression, which has no offsets.
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except tarfile.TarError as error:
        raise NotATar(str(error)) from None
    last = -1
    while True:
        try:
            info = archive.next()
        except tarfile.TarError as error:
            _broken(end, archive.offset, size, f" ({error})")
            return
        except (ValueError, OverflowError, OSError) as error:  # of numbers in a broken header
            _broken(end, archive.offset, size, f" ({error})")
            return
        if info is None:
            break
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header
        if info.size < 0 or info.offset_data <= last:  # a broken header may lead back
            _broken(end, info.offset, size)
            return
        last = info.offset_data
        yield info
    # tarfile takes a damaged header for the end of the archive without a word.
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if archive.offset > size or block.strip(b"\0"):
        _broken(end, archive.offset, size)
    elif not block:
        end.is_marked = False
    elif _has_data(file):  # a hole of zeros in the middle, or two archives one after the other
        end.at = archive.offset
        end.damage = f"goes on after an end mark at byte {end.at}; the samples before it are used"


def _has_data(file: BinaryIO) -> bool:
    """Whether anything but zeros follows."""
    return any(piece.strip(b"\0") for piece in iter(partial(file.read, _PIECE_BYTES), b""))


def _broken(end: _End, at: int, size: int, why: str = "") -> None:
    if at >= size:
        end.at = size
        end.damage = f"is truncated at byte {size}{why}; its complete samples are used"
    else:
        end.at = max(at, 0)
        end.damage = f"is damaged at byte {end.at}{why}; the samples before it are used"


def _is_whole_file(info: tarfile.TarInfo, archive_size: int) -> bool:
    # A sparse member is stored as pieces: its bytes are not one range of the archive.
    is_plain = info.isreg() and not info.issparse() and info.size <= _LARGEST_MEMBER
    return is_plain and info.offset_data + info.size <= archive_size


def split_name(name: str) -> tuple[str, str]:
    """'a.b/c.seg.png' -> ('a.b/c', 'seg.png'); the key is empty for hidden files."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    if not stem:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


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

    def __init__(
        self, path: str | os.PathLike[str], header: IndexHeader, start: int, options: SourceOptions
    ) -> None:
        """Raises OSError or ValueError where the index is gone or has another size by now."""
        mapped = np.memmap(path, np.uint8, mode="r")
        end = start + header.count * header.row_bytes
        self._rows = mapped[start:end].view(sample_type(options))
        self._keys = mapped[end : end + header.key_bytes]
        self._endings = text_endings(options)

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


def cached_index(path: str, options: SourceOptions) -> Path:
    """Where the cache keeps the index of an archive."""
    from clip_jax.data.stores import cache_folder

    identity = f"{path}\n{options_key(options)}".encode()
    name = hashlib.blake2b(identity, digest_size=16).hexdigest()
    return cache_folder() / "indexes" / name[:2] / f"{name}{ENDING}"
