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


class _Builder:
    """Collects the samples of the archive `file`."""

    def __init__(self, file: BinaryIO, size: int, options: SourceOptions) -> None:
        self._file = file
        self._size = size
        # The end of the archive, as in `IndexHeader`.
        self.damage: str | None = None
        self.damage_at = 0
        self.has_end = True
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
        return os.pread(self._file.fileno(), member.size, member.offset)

    def finish(self, group: _Group | None) -> None:
        """Adds the sample of a group of members, or counts why it is none."""
        if group is None:
            return
        members = group.members
        endings = tuple(members)
        image = next((members[name] for name in members if name in IMAGE_EXTENSIONS), None)
        if image is None:
            for key, reason in without_image(group.key, endings, len(self.drops)):
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
        names = (*ALWAYS[1:], *self._texts)
        found = (image, *(members.get(name, Member(0, 0)) for name in names))
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

    def headers(self) -> Iterator[tarfile.TarInfo]:
        """Yields the readable headers, and notes how the archive ends.

        Raises NotATar if there is none.
        """
        file = self._file
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
            except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
                self._broken(archive.offset, f" ({error})")  # such as numbers in a broken header
                return
            if info is None:
                break
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header
            if info.size < 0 or info.offset_data <= last:  # a broken header may lead back
                self._broken(info.offset)
                return
            last = info.offset_data
            yield info
        # tarfile silently takes a damaged header for the end of the archive.
        file.seek(archive.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if archive.offset > self._size or block.strip(b"\0"):
            self._broken(archive.offset)
        elif not block:
            self.has_end = False
        elif any(piece.strip(b"\0") for piece in iter(partial(file.read, _READ_BYTES), b"")):
            # A run of zeros in the middle, or two concatenated archives.
            at = self.damage_at = archive.offset
            self.damage = f"goes on after an end mark at byte {at}; the samples before it are used"

    def _broken(self, at: int, why: str = "") -> None:
        self.damage_at = at = min(max(at, 0), self._size)
        if at == self._size:
            self.damage = f"is truncated at byte {at}{why}; its complete samples are used"
        else:
            self.damage = f"is damaged at byte {at}{why}; the samples before it are used"


def make_index(path: str | os.PathLike[str], options: SourceOptions, tag: str) -> bytes:
    """Returns the index of a local archive, as it is written to disk.

    Raises NotATar, and OSError if the archive cannot be read.
    """
    with open(path, "rb") as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        content = content_digest(size, lambda at, end: os.pread(descriptor, end - at, at))
        builder = _Builder(file, size, options)
        group: _Group | None = None
        for info in builder.headers():
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
    row = sample_type(text_endings(options))
    header = IndexHeader(
        size=size,
        tag=tag,
        count=len(builder.rows),
        key_bytes=len(builder.keys),
        fingerprint=str(builder.fingerprint.value),
        damage=builder.damage,
        damage_at=builder.damage_at,
        has_end=builder.has_end,
        drop_counts=dict(Counter(kind for _, kind, _, _ in left_out)),
        drop_bytes=len(drops),
        row_bytes=row.itemsize,
        texts=text_endings(options),
        unlisted=tuple(sorted(builder.unlisted)[:_MOST_UNLISTED]),
        options=options_key(options),
        content=content,
    )
    return pack_index(header, np.array(builder.rows, row).tobytes(), bytes(builder.keys), drops)


def _compressed(beginning: bytes) -> str | None:
    """Returns how to unpack a compressed file, by its first bytes; None for other files."""
    for magic, (name, unpack) in _COMPRESSED.items():
        if beginning.startswith(magic):
            return f"it is compressed by {name}; unpack it first, with {unpack}"
    return None


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
