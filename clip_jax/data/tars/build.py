"""Builder of a tar file's index, from its headers and the captions that make samples usable."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import IMAGE_EXTENSIONS, CaptionError, Fingerprint
from clip_jax.data.tars.captions import CaptionReader, Member
from clip_jax.data.tars.drops import Dropped, Used, join_apart, without_caption, without_image
from clip_jax.data.tars.index import (
    ALWAYS,
    IndexHeader,
    content_digest,
    options_key,
    pack_index,
    range_reader,
    sample_type,
    text_endings,
)

_LARGEST_MEMBER = 2**32 - 1  # bytes
_READ_BYTES = 64 << 10
_MOST_UNLISTED = 100  # endings
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip -d"),
    b"BZh": ("bzip2", "bzip2 -d"),
    b"\xfd7zXZ\0": ("xz", "xz -d"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"PK\3\4": ("zip", "unzip, and tar what comes out"),
}
_MAGIC_BYTES = 8


class NotATar(ValueError):
    """A file that is not an uncompressed tar; the message says why."""


@dataclass
class _Group:
    """Adjacent members with one key, by lower-case extension."""

    key: str
    start: int  # byte of the first header
    members: dict[str, Member] = field(default_factory=dict)


@dataclass
class _End:
    """State of an archive's end, as in `IndexHeader`: damage, its byte, and the end mark."""

    damage: str | None = None
    at: int = 0
    is_marked: bool = True


class _Builder:
    """Collects the samples of the archive `file`."""

    def __init__(self, file: BinaryIO, options: SourceOptions) -> None:
        self._descriptor = file.fileno()
        self._captions = CaptionReader(options)
        self._texts = text_endings(options)
        self._listed = {*ALWAYS, *self._texts, *IMAGE_EXTENSIONS}
        self._has_columns = bool(options.caption_columns)
        self.unlisted: set[str] = set()
        self.rows: list[tuple[int, ...]] = []
        self.keys = bytearray()
        self.drops: list[Dropped] = []
        self.fingerprint = Fingerprint()

    def read(self, member: Member) -> bytes:
        return os.pread(self._descriptor, member.size, member.offset)

    def finish(self, group: _Group | None) -> None:
        if group is None:
            return
        members = group.members
        endings = tuple(members)
        image = next((members[name] for name in members if name in IMAGE_EXTENSIONS), None)
        if image is None:
            lost = without_image(group.key, endings, len(self.drops))
            for key, reason in lost:
                self.drops.append(Dropped(key, "image_missing", reason, group.start, endings))
            return
        texts = {name: members[name] for name in self._texts if name in members}
        try:
            captions = self._captions.read(texts, members.get("json"), self.read)
        except CaptionError as error:
            reason = str(error)
            if error.kind == "caption_missing" and not self._has_columns:
                reason = without_caption(reason, endings, len(self.drops))
            self.drops.append(Dropped(group.key, error.kind, reason, group.start, endings))
            return
        self.unlisted |= {name for name in endings if name not in self._listed}
        self.keys += group.key.encode("utf-8", "surrogateescape")
        none = Member(0, 0)
        rest = (*ALWAYS[1:], *self._texts)
        found = (image, *(members.get(name, none) for name in rest))
        self.rows.append((*(x for m in found for x in m), len(self.keys), captions.needs_json))
        self.fingerprint.add(group.key, captions.texts)

    def all_drops(self) -> list[tuple[str, str, str, int]]:
        """Returns (key, kind, reason, byte) of everything dropped from the archive."""
        return [drop[:4] for drop in join_apart(self.drops, self._samples())]

    def _samples(self) -> Iterator[Used]:
        names, start = (*ALWAYS, *self._texts), 0
        for *members, end, _ in self.rows:  # (offset, size) of each name
            found = [name for name, at in zip(names, members[::2], strict=True) if at]
            key = self.keys[start:end].decode("utf-8", "surrogateescape")
            yield Used(key, members[0], tuple(found))
            start = end


def make_index(path: str | os.PathLike[str], options: SourceOptions, tag: str) -> bytes:
    """Returns the index of a local archive, as it is written to disk.

    Raises NotATar, and OSError if the archive cannot be read.
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
    left_out = builder.all_drops()
    drops = json.dumps(left_out).encode()
    header = IndexHeader(
        size=size,
        tag=tag,
        count=len(builder.rows),
        key_bytes=len(builder.keys),
        fingerprint=str(builder.fingerprint.value),
        damage=end.damage,
        damage_at=end.at,
        has_end=end.is_marked,
        drop_counts=dict(Counter(kind for _, kind, _, _ in left_out)),
        drop_bytes=len(drops),
        row_bytes=sample_type(text_endings(options)).itemsize,
        texts=text_endings(options),
        unlisted=tuple(sorted(builder.unlisted)[:_MOST_UNLISTED]),
        options=options_key(options),
        content=content,
    )
    table = np.array(builder.rows, sample_type(text_endings(options))).tobytes()
    return pack_index(header, table, bytes(builder.keys), drops)


def _headers(file: BinaryIO, size: int, end: _End) -> Iterator[tarfile.TarInfo]:
    """Yields the readable headers, and records in `end` how the archive ends.

    Raises NotATar if there is none.
    """
    try:
        # "r:" seeks from header to header and refuses compression, which has no offsets.
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except tarfile.TarError as error:
        file.seek(0)
        raise NotATar(_compressed(file.read(_MAGIC_BYTES)) or str(error)) from None
    last = -1
    while True:
        try:
            info = archive.next()
        except tarfile.TarError as error:
            _broken(end, archive.offset, size, f" ({error})")
            return
        except (ValueError, OverflowError, OSError) as error:  # numbers in a broken header
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
    # tarfile silently takes a damaged header for the end of the archive.
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if archive.offset > size or block.strip(b"\0"):
        _broken(end, archive.offset, size)
    elif not block:
        end.is_marked = False
    elif _has_data(file):  # a run of zeros in the middle, or two concatenated archives
        end.at = archive.offset
        end.damage = f"goes on after an end mark at byte {end.at}; the samples before it are used"


def _compressed(beginning: bytes) -> str | None:
    """Returns how to unpack a compressed file, by its first bytes; None for other files."""
    for magic, (name, unpack) in _COMPRESSED.items():
        if beginning.startswith(magic):
            return f"it is compressed by {name}; unpack it first, with {unpack}"
    return None


def _has_data(file: BinaryIO) -> bool:
    """Returns whether anything but zeros follows."""
    return any(piece.strip(b"\0") for piece in iter(partial(file.read, _READ_BYTES), b""))


def _broken(end: _End, at: int, size: int, why: str = "") -> None:
    if at >= size:
        end.at = size
        end.damage = f"is truncated at byte {size}{why}; its complete samples are used"
    else:
        end.at = max(at, 0)
        end.damage = f"is damaged at byte {end.at}{why}; the samples before it are used"


def _is_whole_file(info: tarfile.TarInfo, archive_size: int) -> bool:
    # A sparse member is stored in pieces, so its bytes are not one range of the archive.
    is_plain = info.isreg() and not info.issparse() and info.size <= _LARGEST_MEMBER
    return is_plain and info.offset_data + info.size <= archive_size


def split_name(name: str) -> tuple[str, str]:
    """Splits 'a.b/c.seg.png' into ('a.b/c', 'seg.png'); the key is empty for hidden files."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    if not stem:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()
