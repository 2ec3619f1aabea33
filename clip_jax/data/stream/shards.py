"""Streaming source of remote tar files, read one after the other with no index of the whole set.

This module copies and reads the shards; `clip_jax.data.stream.shard_order` decides their order.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.process_cache import ProcessCache
from clip_jax.data.records import Drops, Record, fingerprint_of
from clip_jax.data.sources.splits import source_files
from clip_jax.data.sources.webdataset import WebDatasetSource
from clip_jax.data.tars.collection import Shard, build_indexes
from clip_jax.data.tars.index import read_drops
from clip_jax.data.tars.reads import FORGIVEN_SECONDS
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.disk import aside_of, writing

logger = logging.getLogger(__name__)

SHIFT = 32  # record number = shard << SHIFT | place in the shard
_OPEN_SHARDS = 128
_TRIED_SHARDS = 64  # at opening, in search of one with samples; each may cost all attempts


@dataclass(frozen=True)
class Held:
    """Contents of a shard in one epoch."""

    count: int  # samples; 0 if the shard is unreadable
    drops: dict[str, int]  # kind -> dropped samples
    lost: str | None = None  # why the shard is unreadable
    first: str | None = None  # for a shard without samples: its first drop, and why


class StreamingSource:
    """Source of records by (shard, place); a shard's contents are found when it is copied.

    `len` is an estimate, from the first shard that has samples. A shard that is unreadable or not a
    tar counts as empty. `dropped` is empty: drops are found while reading.

    Raises:
      UserError: there is no shard, or none of the first ones has a usable sample.
    """

    def __init__(
        self,
        path: str,
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._options = options
        self.paths, self.split = source_files(path, (".tar",), options)
        self.dropped = Drops()
        self.fingerprint = fingerprint_of((path, ()) for path in self.paths)
        # Workers agree on each shard's contents through this folder: the first to know writes it.
        with writing(Path(tempfile.gettempdir())):
            self.folder = Path(tempfile.mkdtemp(prefix="clip_jax_stream_"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._failed: dict[int, tuple[float, str]] = {}
        self._open = ProcessCache(_OPEN_SHARDS)
        self._estimate = self._first_count() * len(self.paths)

    def _first_count(self) -> int:
        tried = self.paths[:_TRIED_SHARDS]
        for shard, path in enumerate(tried):
            held = self.held(shard, 0)
            if held.count:
                return held.count
            drops = ", ".join(f"{count} x {kind}" for kind, count in held.drops.items())
            details = f"{drops or 'it is empty'}{f'; {held.first}' if held.first else ''}"
            reason = held.lost or f"{path} has no sample that could be used ({details})"
            logger.warning("left out: %s", reason)
        more = f"; nor has any of the first {len(tried)}" if len(tried) > 1 else ""
        raise UserError(f"{reason}{more}; give tars with KEY.jpg and KEY.txt members")

    def held(self, shard: int, epoch: int) -> Held:
        """Copies a shard and returns its contents.

        Raises UserError if it is unreadable and `remote.on_failure` is "stop".
        """
        verdict = self.folder / f"{epoch}-{shard}"
        known = _read(verdict)
        if known is not None:
            return known
        path = self.paths[shard]
        summary = build_indexes([path], options=self._options)
        lost = summary.failed.get(path)
        if lost is not None and self._options.remote.on_failure == "stop":
            raise UserError(f"{lost}; config.data.remote.on_failure is 'stop'")
        held = Held(0, {}, lost)
        for found in summary.shards:
            header = found.header
            drops = header.drop_counts | ({"shard_damaged": 1} if header.damage else {})
            held = Held(header.count, drops, None, None if header.count else _first_drop(found))
        aside = aside_of(verdict)
        with writing(self.folder):
            aside.write_text(json.dumps(asdict(held)))
            try:
                os.link(aside, verdict)  # the first wins
            except FileExistsError:
                held = _read(verdict) or held
            aside.unlink()
        return held

    def is_lost(self, shard: int) -> bool:
        """Returns whether this process recently failed to read the shard."""
        return time.monotonic() < self._failed.get(shard, (0.0, ""))[0]

    def _lose(self, shard: int, reason: str) -> DecodeError:
        if self._options.remote.on_failure == "stop":
            raise UserError(f"{reason}; config.data.remote.on_failure is 'stop'")
        self._failed[shard] = (time.monotonic() + FORGIVEN_SECONDS, reason)
        return DecodeError(reason, "shard_unreadable", self.paths[shard])

    def _shard(self, shard: int) -> WebDatasetSource:
        def open_shard() -> WebDatasetSource:
            if self.is_lost(shard):
                reason = self._failed[shard][1]
                raise DecodeError(reason, "shard_unreadable", self.paths[shard])
            try:
                return WebDatasetSource(self.paths[shard], self._options)
            except UserError as error:  # it was readable when its samples were counted
                raise self._lose(shard, str(error)) from error

        source: WebDatasetSource = self._open.get(shard, open_shard)
        return source

    def _find(self, number: int) -> tuple[WebDatasetSource, int]:
        """Returns (opened shard, place in it). Raises DecodeError if it is no longer readable."""
        shard, place = number >> SHIFT, number & (1 << SHIFT) - 1
        source = self._shard(shard)
        if place >= len(source):
            raise self._lose(shard, f"{self.paths[shard]} has fewer samples than it had")
        return source, place

    def __len__(self) -> int:
        return self._estimate

    def __getitem__(self, number: int) -> Record:
        source, place = self._find(number)
        try:
            return source[place]
        except DecodeError as error:
            if error.shard is not None:
                raise self._lose(number >> SHIFT, str(error)) from error
            raise

    def captions(self, number: int) -> tuple[str, ...]:
        source, place = self._find(number)
        return source.captions(place)

    def metadata(self, number: int) -> dict[str, Any]:
        source, place = self._find(number)
        return source.metadata(place)

    def key(self, number: int) -> str:
        with contextlib.suppress(DecodeError):  # it may be gone by now
            source, place = self._find(number)
            return source.key(place)
        return f"{self.paths[number >> SHIFT]}:{number & (1 << SHIFT) - 1}"

    def sample_numbers(self, shards: int) -> Iterator[int]:
        """Yields the record numbers of about `shards` shards, spread over the set."""
        step = max(1, len(self.paths) // shards)
        for shard in range(0, len(self.paths), step):
            for place in range(self.held(shard, 0).count):
                yield shard << SHIFT | place


def _first_drop(shard: Shard) -> str | None:
    """Returns key and reason of a shard's first drop."""
    with contextlib.suppress(OSError, ValueError):  # its index may be gone by now
        for key, _, reason, _ in read_drops(shard.index, shard.header, shard.table_start):
            return f"{key}: {reason}"
    return None


def _read(verdict: Path) -> Held | None:
    try:
        return Held(**json.loads(verdict.read_text()))
    except FileNotFoundError:
        return None
