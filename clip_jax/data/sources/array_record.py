"""ArrayRecord files of serialized tf.train.Example messages: random access and writing."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.process_cache import ProcessCache
from clip_jax.data.records import Drops, Reader
from clip_jax.data.sources.base import Parts
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    MANY_CAPTION_COLUMNS,
    Columns,
    find_columns,
    local_copy,
)
from clip_jax.data.sources.rows import RowSource
from clip_jax.data.sources.splits import source_files
from clip_jax.data.sources.tf_example import Feature, make_example, parse_example
from clip_jax.errors import DecodeError, UserError, one_line
from clip_jax.files.disk import replacing
from clip_jax.files.options import RemoteOptions
from clip_jax.files.patterns import is_remote

METADATA_FEATURE = "json"  # written by `write_array_records`: one JSON object

# Readahead is off because records are read in random order.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_BYTES = 32 << 10
# A group is the unit of reading, so each has one record. Encoded images do not compress further.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_MAX_OPEN_FILES = 128  # per process
_LOOKED_AT_RECORDS = 20  # for feature names: a record may lack some
_MAX_METADATA_BYTES = 64 << 10  # per value


@dataclass(frozen=True)
class Shard:
    """Records [first, first + count) of a file."""

    path: str
    first: int
    count: int


class ExampleSource(RowSource):
    """Source of tf.train.Example records of several shards; base class of the formats with these.

    A bad record raises `DecodeError` when it is read; opening reads only the first and the last.
    """

    def __init__(self, shards: Sequence[Shard], options: SourceOptions, dropped: Drops) -> None:
        super().__init__(options)
        self.dropped = dropped
        self._shards = [shard for shard in shards if shard.count > 0]
        self._parts = Parts(shard.count for shard in self._shards)
        self._readers = ProcessCache(_MAX_OPEN_FILES)

    def _set_columns(self, columns: Columns, classes: Mapping[str, Sequence[str]]) -> None:
        """Also sets the fingerprint.

        Raises UserError if a file has vanished, or the first or last record cannot be read.
        """
        super()._set_columns(columns, classes)
        try:
            self.fingerprint = self._digest()
        except OSError as error:
            raise UserError(one_line(error)) from error

    def _digest(self) -> str:
        """Returns a hash of the shards' names, sizes and counts, the first and last record, and
        the columns.

        Hashing the captions would mean reading all images, which are in the same records.
        """
        digest = hashlib.blake2b(digest_size=16)
        for shard in self._shards:
            name, size = os.path.basename(shard.path), _size(shard.path, self._options.remote)
            digest.update(f"{name}\n{shard.first}\n{shard.count}\n{size}\n".encode())
        for index in (0, len(self) - 1):
            digest.update(self._bytes(index))
        digest.update("\n".join((self._columns.image, *self._columns.captions)).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._parts)

    def _find(self, index: int) -> tuple[Shard, int]:
        """Returns (shard, number of the record in its file)."""
        part, number = self._parts.find(index)
        return self._shards[part], self._shards[part].first + number

    def _place(self, index: int) -> str:
        shard, number = self._find(index)
        return f"{os.path.basename(shard.path)}:{number}"

    def _bytes(self, index: int) -> bytes:
        shard, number = self._find(index)
        try:
            reader = self._readers.get(
                shard.path, lambda: open_reader(shard.path, self._options.remote)
            )
            data: bytes = reader.read([number])[0]
            return data
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            reason = f"{self._place(index)} cannot be read: {one_line(error)}"
            raise DecodeError(reason, "shard_unreadable") from error

    def _features(self, index: int) -> dict[str, Feature]:
        """Returns the features of a record. Raises DecodeError."""
        data = self._bytes(index)
        try:
            return parse_example(data)
        except ValueError as error:
            reason = f"{self._place(index)} is no tf.train.Example: {error}"
            raise DecodeError(reason, "row_malformed") from error

    def _cells(self, index: int, has_image: bool = False) -> dict[str, Any]:
        cells: dict[str, Any] = dict(self._features(index))
        for name, values in cells.items():
            is_single = name in (self._columns.image, self._columns.key)
            if len(values) == 1 or (is_single and values):
                cells[name] = values[0]
            elif is_single:
                cells[name] = None
        return cells

    def metadata(self, index: int) -> dict[str, Any]:
        cells = self._cells(index)
        more = _json(cells.pop(METADATA_FEATURE, None))
        used = self._columns.used - {self._columns.label, *self._classes}
        texts = {name: _readable(value) for name, value in cells.items() if name not in used}
        return {**self._metadata_of({k: v for k, v in texts.items() if v is not None}), **more}


class ArrayRecordSource(ExampleSource):
    """Source of ArrayRecord files, in the order of the files.

    Each record is a tf.train.Example with an encoded image and one or several captions, as bytes
    (`ENCODED_IMAGE_COLUMNS`, `MANY_CAPTION_COLUMNS`, or the features that the options name). The
    key is the feature "key", otherwise FILE:RECORD. Metadata is the other small features and the
    object in `METADATA_FEATURE`.

    Only whole files are in `dropped`. Reading a caption reads the whole record, image included.
    Remote files are copied when the source is opened. Files may have TFDS's names
    (`train.array_record-00000-of-00008`).

    Raises UserError for no file, no record, or a missing feature.
    """

    def __init__(self, path: str, options: SourceOptions) -> None:
        shards, dropped = [], Drops(options.listed_drops)
        files, self.split = source_files(path, (".array_record",), options)
        for name in files:
            try:
                shards.append(Shard(name, 0, open_reader(name, options.remote).num_records()))
            except (OSError, ValueError, RuntimeError) as error:
                if is_remote(name) and options.remote.on_failure == "stop":
                    raise UserError(f"{one_line(error)} (remote.on_failure=stop)") from error
                dropped.add("shard_unreadable", name, one_line(error))
        super().__init__(shards, options, dropped)
        self._check_not_empty(f"{path} has no record", "give ArrayRecord files with at least one")
        where, names = shards[0].path, self._names()
        columns = find_columns(where, names, options, ENCODED_IMAGE_COLUMNS, MANY_CAPTION_COLUMNS)
        self._set_columns(columns, {})

    def _names(self) -> list[str]:
        """Returns the feature names in the first records. Raises UserError if these are no
        examples."""
        names: dict[str, None] = {}
        problem = f"{self._place(0)} has no features"
        for index in range(min(len(self), _LOOKED_AT_RECORDS)):
            try:
                names.update(dict.fromkeys(self._features(index)))
            except DecodeError as error:
                problem = str(error)
        if not names:
            raise UserError(f"{problem}; accepted are serialized tf.train.Example messages")
        return sorted(names)


def write_array_records(
    path: str | os.PathLike[str],
    records: Iterable[tuple[str, bytes, Sequence[str], Mapping[str, Any]]],
) -> int:
    """Writes one file of (key, encoded image, captions, metadata); returns the number of records.

    The file gets its name when it is complete. Features: "key", "image", "caption" (one value per
    caption) and "json" (the metadata, if there is any).

    Raises UserError if the file cannot be written.
    """
    array_record_module = _import_array_record()
    count = 0
    try:
        with replacing(Path(path)) as aside:
            writer = array_record_module.ArrayRecordWriter(str(aside), _WRITER_OPTIONS)
            for key, image, captions, metadata in records:
                features = {
                    "key": [key.encode("utf-8", "surrogatepass")],
                    "image": [image],
                    "caption": [caption.encode() for caption in captions],
                }
                if metadata:
                    features[METADATA_FEATURE] = [json.dumps(metadata).encode()]
                writer.write(make_example(features))
                count += 1
            writer.close()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{os.fspath(path)} cannot be written: {one_line(error)}") from error
    return count


def _import_array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:  # there is no wheel for every platform
        raise UserError(
            "ArrayRecord files need another package: pip install array_record"
        ) from error
    return array_record_module


def open_reader(path: str, remote: RemoteOptions) -> Any:
    """Opens a reader of one file. Raises OSError, ValueError or RuntimeError if unreadable."""
    array_record_module = _import_array_record()
    reader = array_record_module.ArrayRecordReader(
        str(local_copy(path, remote)),
        options=_READER_OPTIONS,
        file_reader_buffer_size=_READER_BUFFER_BYTES,
    )
    if not reader.ok():
        raise OSError(f"{path} is no ArrayRecord file, or is cut off or gone")
    return reader


def _readable(value: Any) -> Any:
    """Returns a feature with text in place of bytes; None if it is not text, such as a mask."""
    if isinstance(value, list):
        found = [_readable(item) for item in value]
        return None if None in found else found
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode() if len(value) <= _MAX_METADATA_BYTES else None
    except UnicodeDecodeError:
        return None


def _json(value: Any) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _size(path: str, remote: RemoteOptions) -> int:
    if not is_remote(path):
        return os.path.getsize(path)
    from clip_jax.files.stores import stat

    return stat(path, remote).size


READER = Reader(
    "array_record",
    ArrayRecordSource,
    endings=("array_record", "arrayrecord"),
    signs=(("*.array_record*",),),
)
