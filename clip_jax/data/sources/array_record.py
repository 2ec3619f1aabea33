"""ArrayRecord files of serialized tf.train.Example messages: random access and writing."""

import hashlib
import json
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops, Record
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    MANY_CAPTION_COLUMNS,
    Captions,
    Columns,
    captions_of,
    find_columns,
    local_copy,
)
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


class Examples:
    """Records of several shards, by number; picklable, safe in threads and after a fork."""

    def __init__(self, shards: Sequence[Shard], remote: RemoteOptions) -> None:
        self._shards = [shard for shard in shards if shard.count > 0]
        self._ends = list(accumulate(shard.count for shard in self._shards))
        self._remote = remote
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._readers: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        names = ("_shards", "_ends", "_remote")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _find(self, index: int) -> tuple[Shard, int]:
        """Returns (shard, number of the record in its file)."""
        number = bisect_right(self._ends, index)
        shard = self._shards[number]
        return shard, shard.first + index - (self._ends[number] - shard.count)

    def place(self, index: int) -> str:
        """Returns FILE:RECORD, counted from 0 in the file."""
        shard, number = self._find(index)
        return f"{os.path.basename(shard.path)}:{number}"

    def read(self, index: int) -> dict[str, Feature]:
        """Returns the features of a record. Raises DecodeError."""
        data = self._bytes(index)
        try:
            return parse_example(data)
        except ValueError as error:
            reason = f"{self.place(index)} is no tf.train.Example: {error}"
            raise DecodeError(reason, "row_malformed") from error

    def _bytes(self, index: int) -> bytes:
        shard, number = self._find(index)
        try:
            return self._reader(shard.path).read([number])[0]
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            reason = f"{self.place(index)} cannot be read: {one_line(error)}"
            raise DecodeError(reason, "shard_unreadable") from error

    def _reader(self, path: str) -> Any:
        if self._process != os.getpid():  # another thread may have held the lock at the fork
            self._reset()
        reader = self._readers.get(path)
        if reader is None:
            with self._lock:
                reader = self._readers.get(path)
                if reader is None:
                    if len(self._readers) >= _MAX_OPEN_FILES:
                        # It is not closed, because another thread may be reading from it.
                        self._readers.pop(next(iter(self._readers)))
                    reader = self._readers[path] = open_reader(path, self._remote)
        return reader

    def fingerprint(self, *of_options: str) -> str:
        """Returns a hash of the shards' names, sizes and counts, the first and last record, and
        the options.

        Hashing the captions would mean reading all images, which are in the same records.
        """
        digest = hashlib.blake2b(digest_size=16)
        for shard in self._shards:
            name, size = os.path.basename(shard.path), _size(shard.path, self._remote)
            digest.update(f"{name}\n{shard.first}\n{shard.count}\n{size}\n".encode())
        for index in (0, len(self) - 1):
            digest.update(self._bytes(index))
        digest.update("\n".join(of_options).encode())
        return digest.hexdigest()


class ExampleSource:
    """Source of tf.train.Example records; base class of the formats that store them.

    Raises UserError if a file has vanished, or the first or last record cannot be read.
    """

    def __init__(
        self, examples: Examples, columns: Columns, options: SourceOptions, dropped: Drops
    ) -> None:
        self._examples = examples
        self._columns = columns
        self._options = options
        self.dropped = dropped
        try:
            self.fingerprint = examples.fingerprint(columns.image, *columns.captions)
        except OSError as error:
            raise UserError(one_line(error)) from error

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        example = self._examples.read(index)
        captions, weights = self._captions(example)
        place = self._examples.place(index)
        image = _image_of(example.get(self._columns.image), place)
        return Record(self._key(index, example), image, captions, weights)

    def _captions(self, example: Mapping[str, Feature]) -> Captions:
        cells = [self._caption_cell(name, example.get(name)) for name in self._columns.captions]
        return captions_of(cells, self._options)

    def _caption_cell(self, name: str, values: Feature | None) -> Any:
        """Returns the cell that `captions_of` takes, from the values of a feature."""
        return values

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions(self._examples.read(index))[0]

    def metadata(self, index: int) -> dict[str, Any]:
        example = self._examples.read(index)
        used = {*self._columns.used, METADATA_FEATURE} - {self._columns.label}
        rest = {name: values for name, values in example.items() if name not in used}
        return {**_plain_features(rest), **_json(example.get(METADATA_FEATURE))}

    def key(self, index: int) -> str:
        try:
            return self._key(index, self._examples.read(index))
        except DecodeError:  # the message about an unreadable record needs a name
            return self._examples.place(index)

    def _key(self, index: int, example: Mapping[str, Feature]) -> str:
        values = example.get(self._columns.key) if self._columns.key is not None else None
        if values and isinstance(values[0], bytes):
            return values[0].decode("utf-8", "replace")
        return str(values[0]) if values else self._examples.place(index)


class ArrayRecordSource(ExampleSource):
    """Source of ArrayRecord files, in the order of the files.

    Each record is a tf.train.Example with an encoded image and one or several captions, as bytes.
    The key is the feature "key", otherwise FILE:RECORD. Metadata is the other small features and
    the object in `METADATA_FEATURE`.

    Opening reads only the files' record counts, so `dropped` lists only whole files: a record
    without a caption raises `DecodeError` when it is read. Reading a caption reads the whole
    record, image included. Remote files are copied when the source is opened.

    Args:
      path: a file, folder, glob, brace pattern or comma list, local or remote; also with TFDS's
        names (`train.array_record-00000-of-00008`).
      options: `image_column` and `caption_column` are feature names; by default the first known
        one (`ENCODED_IMAGE_COLUMNS`, `MANY_CAPTION_COLUMNS`).

    Raises:
      UserError: no file, no record, or a missing feature.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        shards, dropped = [], Drops(options.listed_drops)
        files, self.split = source_files(os.fspath(path), ".array_record", options)
        for name in files:
            try:
                shards.append(Shard(name, 0, open_reader(name, options.remote).num_records()))
            except (OSError, ValueError, RuntimeError) as error:
                if is_remote(name) and options.remote.on_failure == "stop":
                    raise UserError(f"{one_line(error)} (remote.on_failure=stop)") from error
                dropped.add("shard_unreadable", name, one_line(error))
        examples = Examples(shards, options.remote)
        if not len(examples):
            why = next(iter(dropped.items()), None)
            raise UserError(
                f"{path} has no record"
                + (f" ({why[0]}: {why[1]})" if why else "")
                + "; give ArrayRecord files with at least one"
            )
        columns = find_columns(
            shards[0].path, _names(examples), options, ENCODED_IMAGE_COLUMNS, MANY_CAPTION_COLUMNS
        )
        super().__init__(examples, columns, options, dropped)


def _names(examples: Examples) -> list[str]:
    """Returns the feature names in the first records. Raises UserError if they are no examples."""
    names: dict[str, None] = {}
    problem = None
    for index in range(min(len(examples), _LOOKED_AT_RECORDS)):
        try:
            names.update(dict.fromkeys(examples.read(index)))
        except DecodeError as error:
            problem = error
    if not names:
        raise UserError(
            f"{problem or examples.place(0) + ' has no features'};"
            " accepted are serialized tf.train.Example messages"
        )
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


def _image_of(values: Feature | None, place: str) -> bytes:
    """Returns the image in a feature. Raises DecodeError if there is none."""
    if not values or not isinstance(values[0], bytes) or not values[0]:
        raise DecodeError(f"{place}: no image", "image_missing")
    return values[0]


def _plain_features(features: Mapping[str, Feature]) -> dict[str, Any]:
    """Returns the features that JSON can hold, text and numbers; several values as a list."""
    found: dict[str, Any] = {}
    for name, values in features.items():
        try:
            items = [_plain(value) for value in values]
        except ValueError:  # bytes that are not text, such as a mask
            continue
        found[name] = items[0] if len(items) == 1 else items
    return found


def _plain(value: bytes | float | int) -> str | float | int:
    if not isinstance(value, bytes):
        return value
    if len(value) > _MAX_METADATA_BYTES:
        raise ValueError("too long")
    return value.decode()


def _json(values: Feature | None) -> dict[str, Any]:
    try:
        value = json.loads(values[0]) if values else {}  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _size(path: str, remote: RemoteOptions) -> int:
    if not is_remote(path):
        return os.path.getsize(path)
    from clip_jax.files.stores import stat

    return stat(path, remote).size
