"""WebDataset archives: uncompressed tar files whose neighbouring members share a key.

The headers are read once, as a stream; nothing is ever extracted to disk, and links, folders and
devices in an archive are not followed. Images are then read by offset, in any order, which is what
lets a plain tar file be shuffled globally and a run resume at any batch.
"""

import glob
import json
import logging
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import (
    IMAGE_EXTENSIONS,
    CaptionError,
    DecodeError,
    Drops,
    Record,
    decode_caption,
    fingerprint_of,
)
from clip_jax.errors import UserError

logger = logging.getLogger(__name__)

CAPTION_FIELDS = ("caption", "text")  # of a .json, where there is no .txt

_MAX_TEXT_BYTES = 4 << 20  # a "caption" beyond this is an accident or an attack
_MAX_OPEN_FILES = 256  # well below the usual limit of 1,024 a process


class _Member(NamedTuple):
    shard: int
    offset: int
    size: int


@dataclass
class _Group:
    """Neighbouring members of one key, by lower-case extension."""

    key: str
    members: dict[str, _Member] = field(default_factory=dict)


class _Shards:
    """Positional reads from the archives; picklable, safe in threads and after a fork."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self._reset()

    def _reset(self) -> None:
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.paths = state["paths"]
        self._reset()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def read(self, member: _Member) -> bytes:
        """The member's bytes. Raises OSError; also where the file has become shorter."""
        # pread has no file position, so threads and forked children may share a descriptor.
        descriptor = self._descriptors.get(member.shard)
        if descriptor is not None:
            data = os.pread(descriptor, member.size, member.offset)
        else:
            data = self._open_and_read(member)
        if len(data) != member.size:
            raise OSError(f"{self.paths[member.shard]} ends before offset {member.offset}")
        return data

    def _open_and_read(self, member: _Member) -> bytes:
        with self._lock:
            descriptor = self._descriptors.get(member.shard)
            keep = len(self._descriptors) < _MAX_OPEN_FILES
            if descriptor is None and keep:
                descriptor = os.open(self.paths[member.shard], os.O_RDONLY)
                self._descriptors[member.shard] = descriptor
        if descriptor is not None:
            return os.pread(descriptor, member.size, member.offset)
        # Closing a kept descriptor could hit a thread that reads from it; this one is our own.
        with open(self.paths[member.shard], "rb") as file:
            file.seek(member.offset)
            return file.read(member.size)


class WebDatasetSource:
    """Samples of tar files, in the order of the archives.

    A key is a member's name up to the first dot of its last component, the rest its extension.
    Of a sample are read: the image (`IMAGE_EXTENSIONS`), `.txt` as the caption (a `.json` with
    a field of `CAPTION_FIELDS` where there is none), `.json` as metadata (left out where invalid)
    and `.cls` as `metadata["cls"]`. A sample without image, or whose caption is missing, blank or
    not UTF-8, goes to `dropped`. A truncated archive gives its complete samples and a warning.

    Raises:
      UserError: a file is missing, is no uncompressed tar, or no sample is usable.
    """

    def __init__(
        self,
        path: str,
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        paths = expand_paths(path)
        self._shards = _Shards(paths)
        self._keys: list[str] = []
        self._captions: list[tuple[str, ...]] = []
        self._members: list[tuple[_Member, _Member | None, _Member | None]] = []
        self.dropped = Drops()
        for shard, path in enumerate(paths):
            self._index(shard, path)
        if not self._keys:
            why = next(iter(self.dropped.items()), None)
            raise UserError(
                f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: no sample"
                f" with an image and a caption"
                + (f" ({self.dropped.total} dropped; {why[0]}: {why[1]})" if why else "")
                + "; give tars with KEY.jpg and KEY.txt members"
            )
        self.fingerprint = fingerprint_of(zip(self._keys, self._captions, strict=True))

    def _index(self, shard: int, path: str) -> None:
        try:
            size = os.path.getsize(path)
            # "r:" seeks from header to header and refuses compression, which has no offsets.
            with tarfile.open(path, "r:") as archive:
                group: _Group | None = None
                for info in _headers(archive, path, size):
                    key, extension = _split_name(info.name)
                    if not key or info.isdir():
                        continue
                    if group is None or key != group.key or extension in group.members:
                        self._finish(group)
                        group = _Group(key)
                    if _is_whole_file(info, size):
                        group.members[extension] = _Member(shard, info.offset_data, info.size)
                self._finish(group)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        except tarfile.TarError as error:
            raise UserError(f"{path} is not an uncompressed tar file: {error}") from None

    def _finish(self, group: _Group | None) -> None:
        if group is None:
            return
        members = group.members
        image = next((members[name] for name in members if name in IMAGE_EXTENSIONS), None)
        if image is None:
            self.dropped.add("image_missing", group.key, "no complete image member")
            return
        try:
            caption = self._caption(members)
        except CaptionError as error:
            self.dropped.add(error.kind, group.key, str(error))
            return
        self._keys.append(group.key)
        self._captions.append((caption,))
        self._members.append((image, members.get("json"), members.get("cls")))

    def _caption(self, members: dict[str, _Member]) -> str:
        """The caption; ValueError with the reason where there is none."""
        if "txt" in members:
            if members["txt"].size > _MAX_TEXT_BYTES:
                raise CaptionError(f"caption of {members['txt'].size} bytes", "caption_too_long")
            return decode_caption(self._shards.read(members["txt"]))
        if "json" in members:
            fields = self._json(members["json"])
            for name in CAPTION_FIELDS:
                if isinstance(fields.get(name), str) and fields[name].strip():
                    return fields[name]
        reason = "caption is missing (no .txt, no .json with caption or text)"
        raise CaptionError(reason, "caption_missing")

    def _json(self, member: _Member) -> dict[str, Any]:
        if member.size > _MAX_TEXT_BYTES:
            return {}
        try:
            value = json.loads(self._shards.read(member).decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        try:
            image = self._shards.read(self._members[index][0])
        except OSError as error:
            raise DecodeError(f"{self._keys[index]} cannot be read: {error}") from error
        return Record(self._keys[index], image, self._captions[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index]

    def metadata(self, index: int) -> dict[str, Any]:
        _, json_member, cls_member = self._members[index]
        fields = self._json(json_member) if json_member is not None else {}
        if cls_member is not None and cls_member.size <= _MAX_TEXT_BYTES:
            fields["cls"] = self._shards.read(cls_member).decode("utf-8", "replace").strip()
        return fields

    def key(self, index: int) -> str:
        return self._keys[index]


def _headers(archive: tarfile.TarFile, path: str, size: int) -> Iterator[tarfile.TarInfo]:
    """The headers that can be read; says so where the archive ends early."""
    while True:
        try:
            info = archive.next()
        except tarfile.TarError as error:
            logger.warning("%s is truncated (%s); its complete samples are used", path, error)
            return
        if info is None:
            break
        # tarfile keeps every header otherwise.
        archive.members.clear()  # type: ignore[attr-defined]
        yield info
    # tarfile takes a damaged header for the end of the archive without a word.
    with open(path, "rb") as file:
        file.seek(archive.offset)
        block = file.read(tarfile.BLOCKSIZE)
    if archive.offset < size and block.strip(b"\0"):
        logger.warning(
            "%s is damaged at byte %d; the samples before it are used", path, archive.offset
        )


def _is_whole_file(info: tarfile.TarInfo, archive_size: int) -> bool:
    # A sparse member is stored as pieces: its bytes are not one range of the archive.
    return info.isreg() and not info.issparse() and info.offset_data + info.size <= archive_size


def _split_name(name: str) -> tuple[str, str]:
    """'a.b/c.seg.png' -> ('a.b/c', 'seg.png'); the key is empty for hidden files."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    if not stem:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def expand_paths(pattern: str) -> list[str]:
    """The tar files of a file, folder, glob, brace pattern `{00000..00006}`, or comma list.

    Raises UserError where any part of it names no file.
    """
    paths: list[str] = []
    # What exists under that very name is meant, whatever signs are in it.
    parts = [pattern] if os.path.exists(pattern) else _split_commas(pattern)
    for part in parts:
        for name in [part] if os.path.exists(part) else _expand_braces(part):
            if os.path.isdir(name):
                found = sorted(str(path) for path in Path(name).glob("*.tar"))
            elif os.path.isfile(name):
                found = [name]
            else:
                found = sorted(glob.glob(name))
            if not found:
                raise UserError(
                    f"data path {name}: no tar file there; give a .tar file, a folder of them,"
                    " a glob, a brace pattern such as {00000..00006}.tar or a comma list"
                )
            paths.extend(found)
    return paths


def _split_commas(pattern: str) -> list[str]:
    """Splits at the commas outside braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", pattern) if part.strip()]


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{n:0{width}d}" for n in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in _expand_braces(f"{head}{choice}{tail}")]
