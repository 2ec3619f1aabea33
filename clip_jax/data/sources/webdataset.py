"""WebDataset archives: uncompressed tar files whose adjacent members share a key.

The headers are read once into an index, which is kept (`clip_jax.data.tars.index`). Nothing is
extracted to disk; links, folders and devices in an archive are not followed. Samples are then read
by offset, in any order, so that plain tar files can be shuffled globally and a run can resume at
any batch.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from clip_jax.data.options import SourceOptions
from clip_jax.data.process_cache import ProcessCache
from clip_jax.data.records import IMAGE_EXTENSIONS, Drop, Fingerprint, Reader, Record
from clip_jax.data.sources.base import BaseSource, Parts
from clip_jax.data.sources.splits import source_files
from clip_jax.data.tars.captions import MAX_TEXT_BYTES, CaptionReader, Captions, Member, read_json
from clip_jax.data.tars.collection import IndexSummary, Shard, build_indexes
from clip_jax.data.tars.index import NO_END, Sample, Table, read_drops
from clip_jax.data.tars.reads import ShardFiles
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.stores import Stat

logger = logging.getLogger(__name__)

_OPEN_TABLES = 256  # each holds a file handle
_SHOWN_SECONDS = 5.0  # slower indexing shows a progress bar


class WebDatasetSource(BaseSource):
    """Source of samples in tar files, in the order of the archives.

    A key is a member's name up to the first dot of its last component; the rest is its extension.
    A sample has an image (`IMAGE_EXTENSIONS`), captions (see `CaptionReader`), `.json` as metadata
    (ignored if invalid) and `.cls` as `metadata["cls"]`. A sample without image, or whose caption
    is missing, blank or not UTF-8, goes to `dropped`. A truncated archive gives its complete
    samples and a warning, and is listed and counted in `dropped`, too.

    Attributes:
      damaged: archive -> why some or all of its samples are missing, or may be.

    Raises:
      UserError: a named file is missing, or no sample is usable. Also if an archive is unreadable
        or not an uncompressed tar, and it is the only one or `remote.on_failure` is "stop"; but not
        with `options.skip_unreadable`.
    """

    def __init__(self, path: str, options: SourceOptions) -> None:
        super().__init__(options)
        self._captions_of = CaptionReader(options)
        self.damaged: dict[str, str] = {}
        paths, self.split = source_files(path, (".tar",), options)
        summary = _indexed(paths, options)
        for failed, reason in summary.failed.items():
            self._fail(failed, reason, is_only=len(paths) == 1)
        self._shards = summary.shards
        self._parts = Parts(shard.header.count for shard in self._shards)
        self.fingerprint = self._look_at_headers()
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        wanted = "an image and a caption" if options.needs_captions else "an image"
        self._check_not_empty(
            f"{paths[0]}{more}: no sample with {wanted}",
            "give tars with KEY.jpg and KEY.txt members",
            because=next((f" ({path}: {why})" for path, why in self.damaged.items()), ""),
        )
        self._files = ShardFiles(
            [shard.path for shard in self._shards],
            [Stat(shard.header.size, shard.header.tag) for shard in self._shards],
            options.remote,
        )
        self._tables = ProcessCache(_OPEN_TABLES)

    def _fail(self, path: str, reason: str, is_only: bool) -> None:
        is_fatal = is_only or self._options.remote.on_failure == "stop"
        if is_fatal and not self._options.skip_unreadable:
            raise UserError(reason)
        logger.warning("archive left out: %s", reason)
        self.damaged[path] = reason
        self.dropped.add("shard_unreadable", path, reason)

    def _look_at_headers(self) -> str:
        """Collects the drops of all archives; returns the fingerprint of the whole set."""
        fingerprint = Fingerprint()
        endless: list[str] = []
        for shard in self._shards:
            header = shard.header
            self.dropped.counts.update(header.drop_counts)
            if header.drop_counts and len(self.dropped.listed) < self.dropped.room:
                self.dropped.list(_drops(shard))
            if header.damage is not None:
                logger.warning("%s %s", shard.path, header.damage)
                self.damaged[shard.path] = header.damage
                where = f"{shard.path}:{header.damage_at}"
                self.dropped.add("shard_damaged", shard.path, header.damage, where)
            elif not header.has_end:
                endless.append(shard.path)
                self.damaged[shard.path] = NO_END
            fingerprint.extend(Fingerprint(int(header.fingerprint), header.count))
        if endless:
            more = f" (and {len(endless) - 1} more)" if len(endless) > 1 else ""
            logger.warning("%s%s %s", endless[0], more, NO_END)
        return fingerprint.hexdigest()

    def _table(self, number: int) -> Table:
        shard = self._shards[number]

        def open_table() -> Table:
            with _reading_index(shard):
                return Table(shard.index, shard.header, shard.table_start)

        table: Table = self._tables.get(number, open_table)
        return table

    def _sample(self, index: int) -> tuple[int, Sample]:
        shard, number = self._parts.find(index)
        return shard, self._table(shard)[number]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Record:
        shard, sample = self._sample(index)
        image = self._read(shard, sample, sample.image)
        captions = self._captions(shard, sample)
        return Record(sample.key, image, captions.texts, captions.weights)

    def _read(self, shard: int, sample: Sample, member: Member) -> bytes:
        try:
            return self._files.read(shard, member)
        except OSError as error:
            if self._options.remote.on_failure == "stop":
                raise UserError(f"{error}; config.data.remote.on_failure is 'stop'") from error
            path = self._shards[shard].path
            reason = f"{sample.key} cannot be read: {error}"
            raise DecodeError(reason, "shard_unreadable", path) from error

    def _reader(self, shard: int, sample: Sample) -> Callable[[Member], bytes]:
        return lambda member: self._read(shard, sample, member)

    def _captions(self, shard: int, sample: Sample) -> Captions:
        # Reading a .json that does not affect the caption would cost a read per sample.
        json_member = sample.json if sample.needs_json else None
        return self._captions_of.read(sample.texts, json_member, self._reader(shard, sample))

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions(*self._sample(index)).texts

    def metadata(self, index: int) -> dict[str, Any]:
        shard, sample = self._sample(index)
        read = self._reader(shard, sample)
        fields = read_json(sample.json, read)
        label = self._options.label_column
        member = None if label is None else sample.texts.get(label.lower())
        if label is not None and member is not None and member.size <= MAX_TEXT_BYTES:
            fields[label] = read(member)
        if sample.cls is not None and sample.cls.size <= MAX_TEXT_BYTES:
            data = read(sample.cls)
            # Labels stay bytes, so that their readers can see whether they are text.
            fields["cls"] = data if label == "cls" else data.decode("utf-8", "replace").strip()
        return fields

    def key(self, index: int) -> str:
        shard, number = self._parts.find(index)
        return self._table(shard).key(number)

    def position(self, index: int) -> str:
        """Returns archive and byte offset of the sample's image, such as "00000.tar:10240"."""
        shard, sample = self._sample(index)
        return f"{self._shards[shard].path}:{sample.image.offset}"


def _drops(shard: Shard) -> list[tuple[str, Drop]]:
    with _reading_index(shard):
        drops = read_drops(shard.index, shard.header, shard.table_start)
    return [(key, Drop(kind, why, f"{shard.path}:{start}")) for key, kind, why, start in drops]


@contextlib.contextmanager
def _reading_index(shard: Shard) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shard.index}: the index of {shard.path} vanished or changed ({error});"
            " start again, and it is made anew"
        ) from error


def _indexed(paths: list[str], options: SourceOptions) -> IndexSummary:
    with tqdm(
        desc="indexing", unit="tar", delay=_SHOWN_SECONDS, disable=not sys.stderr.isatty()
    ) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        workers = os.cpu_count() or 1
        return build_indexes(paths, workers=workers, options=options, progress=progress)


READER = Reader(
    "webdataset",
    WebDatasetSource,
    endings=("tar",),
    signs=(("*.tar",),),
    rank=2,  # img2dataset leaves a Parquet file of metadata beside each tar
    no_columns=f"the image is the member that ends in {', '.join(IMAGE_EXTENSIONS)}",
)
