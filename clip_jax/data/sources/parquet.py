"""Parquet files with images as bytes, in Hugging Face's struct, or by path or URL.

A row group is the smallest readable unit, so a global shuffle reads a whole one for each image:
slow, unless the groups are small or fit into `IMAGES_BYTES`.
"""

import logging
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.process_cache import ProcessCache
from clip_jax.data.records import Reader
from clip_jax.data.sources.arrow_rows import ArrowSource, image_kind, import_pyarrow
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    MANY_CAPTION_COLUMNS,
    Columns,
    check_images_exist,
    find_columns,
    local_copy,
)
from clip_jax.data.sources.rows import text_of
from clip_jax.data.sources.splits import source_files
from clip_jax.errors import DecodeError, UserError, one_line
from clip_jax.files.options import RemoteOptions

logger = logging.getLogger(__name__)

_LARGE_GROUP_BYTES = 8 << 20  # of images; reading that takes as long as decoding one image
# Each process caches up to this size of decoded row groups; a larger one is kept alone.
IMAGES_BYTES = 256 << 20
_TEXTS_BYTES = 64 << 20
_FOOTERS_BYTES = 64 << 20


class ParquetSource(ArrowSource):
    """Source of Parquet files, in the order of the files; each row is a record.

    The image is in a column of bytes, of structs {"bytes", "path"}, or of paths (relative to the
    Parquet file) or URLs. Captions are text or lists of texts. The key is the column "key" or the
    path of the image; otherwise FILE:ROW.

    Everything but captions and keys is read by row group into bounded caches.

    Args:
      path: a file, folder, glob, brace pattern or comma list, local or remote.
      options: `image_column` and `caption_column` are column names; by default the first known one
        (`ENCODED_IMAGE_COLUMNS`, `MANY_CAPTION_COLUMNS`), ignoring case.

    Raises:
      UserError: no file, a column missing or of a wrong type, no usable row, or none of the first
        images on disk. An unreadable file is dropped if others are readable.
    """

    def __init__(self, path: str, options: SourceOptions) -> None:
        import_pyarrow()
        super().__init__(options)
        files, self.split = source_files(path, (".parquet",), options)
        self._groups = RowGroups(files, options.remote)
        footers = dict(self._footers())
        schema: Any = ()
        if footers:
            first = next(iter(footers))
            schema = footers[first].schema.to_arrow_schema()
            columns, kind = _columns(files[first], schema, options)
            self._set_columns(columns, {})
            self._path_column = columns.image if kind == "path" else None
        self._find_groups(footers)
        self._select_rows(path, schema, "an image and a caption")
        if self._path_column is not None and len(self):
            image = self._columns.image
            paths = (text_of(self._cells(index)[image]) for index in range(len(self)))
            check_images_exist(self._file(int(self._rows[0])), self._folder(0), paths)

    def _footers(self) -> Iterator[tuple[int, Any]]:
        """Yields (number, footer) of each readable file; drops the others."""
        remote = self._options.remote
        for file, name in enumerate(self._groups.paths):
            try:
                yield file, self._groups.footer(file)
            except _unreadable() as error:
                if "://" in name and remote.on_failure == "stop":
                    raise UserError(f"{one_line(error)} (remote.on_failure=stop)") from error
                self.dropped.add("shard_unreadable", name, one_line(error))

    def _find_groups(self, footers: Mapping[int, Any]) -> None:
        """Numbers the row groups of all files, whose columns must be those of the first."""
        paths, sizes, image_bytes = self._groups.paths, [0], 0
        groups = []  # (file, number in it)
        for file, footer in footers.items():
            names = footer.schema.to_arrow_schema().names
            missing = self._columns.used - set(names)
            if missing:
                raise UserError(
                    f"{paths[file]} has no column {', '.join(sorted(missing))}, which"
                    f" {paths[next(iter(footers))]} has; its columns are: {', '.join(names)}"
                )
            image_bytes += _bytes_of(footer, self._columns.image)
            for group in range(footer.num_row_groups):
                groups.append((file, group))
                sizes.append(footer.row_group(group).num_rows)
        self._group_places = np.asarray(groups, np.int64).reshape(-1, 2)
        self._starts = np.cumsum(np.asarray(sizes, np.int64))
        if self._path_column is None and image_bytes > IMAGES_BYTES:
            average = image_bytes // len(groups)
            if average > _LARGE_GROUP_BYTES:
                logger.warning(
                    "%s: %d MiB of images in a row group on average, all of which are read for each"
                    " image in random order; write it with smaller row groups (such as"
                    " row_group_size=10) or convert it: python -m clip_jax.data convert",
                    paths[0],
                    average >> 20,
                )

    def _pieces(self) -> Iterator[tuple[int, int, Any]]:
        for group, (file, number) in enumerate(self._group_places.tolist()):
            first, end = self._starts[group : group + 2].tolist()
            if first == end:
                continue
            try:
                table = self._groups.read(file, number, self._text_columns)
            except _unreadable() as error:
                name, before = self._origin(first)
                for row in range(before, before + end - first):
                    reason = f"row group {number}: {one_line(error)}"
                    self.dropped.add("shard_unreadable", f"{name}:{row}", reason)
                continue
            yield first, end - first, table

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _file(self, row: int) -> str:
        return self._groups.paths[self._group_places[self._group(row), 0]]

    def _origin(self, row: int) -> tuple[str, int]:
        group = self._group(row)
        first = group - self._group_places[group, 1]  # group of the file
        return os.path.basename(self._file(row)), row - int(self._starts[first])

    def _folder(self, index: int) -> str:
        return os.path.dirname(self._file(int(self._rows[index])))

    def _table(self, row: int, columns: Sequence[str]) -> tuple[Any, int]:
        group = self._group(row)
        file, number = self._group_places[group].tolist()
        try:
            if columns == [self._columns.image]:
                table = self._groups.images(file, number, columns)
            else:
                table = self._groups.texts(file, number, columns)
        except _unreadable() as error:
            raise DecodeError(one_line(error), "shard_unreadable") from error
        return table, row - int(self._starts[group])


class RowGroups:
    """Tables of row groups of several files; picklable, safe in threads and after a fork.

    No file stays open; the footers, which are expensive to read, are cached.
    """

    def __init__(self, paths: Sequence[str], remote: RemoteOptions) -> None:
        self.paths = list(paths)
        self._remote = remote
        self._images = ProcessCache(IMAGES_BYTES, operator.attrgetter("nbytes"))
        self._texts = ProcessCache(_TEXTS_BYTES, operator.attrgetter("nbytes"))
        self._footers = ProcessCache(_FOOTERS_BYTES, _parsed_bytes)

    def images(self, file: int, group: int, columns: Sequence[str]) -> Any:
        """Returns a Table of the image column. All methods raise OSError and ArrowException."""
        return self._images.get((file, group), lambda: self.read(file, group, columns))

    def texts(self, file: int, group: int, columns: Sequence[str]) -> Any:
        """Returns a Table of small columns."""
        key = (file, group, tuple(columns))
        return self._texts.get(key, lambda: self.read(file, group, columns))

    def read(self, file: int, group: int, columns: Sequence[str]) -> Any:
        """Returns a Table, without caching it."""
        with self._open(file, self.footer(file)) as opened:
            # The caller has threads; pyarrow's own would not survive a fork.
            return opened.read_row_group(group, columns=list(columns), use_threads=False)

    def footer(self, file: int) -> Any:
        """Returns the FileMetaData of a file."""

        def read() -> Any:
            with self._open(file) as opened:
                return opened.metadata

        return self._footers.get(file, read)

    def _open(self, file: int, footer: Any = None) -> Any:
        _, parquet = import_pyarrow()
        for attempts_left in (1, 0):
            try:
                # With a memory map, a file truncated while it is read would kill the process.
                local = local_copy(self.paths[file], self._remote)
                return parquet.ParquetFile(local, metadata=footer, memory_map=False)
            except FileNotFoundError:  # the cache may have evicted the copy
                if not attempts_left:
                    raise
        raise AssertionError("unreachable")


def _parsed_bytes(footer: Any) -> int:
    # A parsed footer takes several times its serialized size.
    return 4 * footer.serialized_size


def _columns(path: str, schema: Any, options: SourceOptions) -> tuple[Columns, str]:
    """Returns (columns, how the images are stored). Raises UserError."""
    columns = find_columns(path, schema.names, options, ENCODED_IMAGE_COLUMNS, MANY_CAPTION_COLUMNS)
    kind = image_kind(schema.field(columns.image).type)
    if kind is None:
        raise UserError(
            f"{path}: column {columns.image!r} has {schema.field(columns.image).type}; accepted for"
            " images are bytes, structs with a field bytes, and paths; name one with image_column"
        )
    return columns, kind


def _table_columns(path: Path, options: SourceOptions) -> tuple[list[str], tuple[str, ...]]:
    pyarrow, parquet = import_pyarrow()
    try:
        names = parquet.read_schema(path).names
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no readable Parquet file") from error
    found = find_columns(str(path), names, options, ENCODED_IMAGE_COLUMNS, MANY_CAPTION_COLUMNS)
    return names, found.captions


def _unreadable() -> tuple[type[Exception], ...]:
    """Returns the errors that reading may raise; not all of pyarrow's derive from OSError."""
    return (OSError, import_pyarrow()[0].ArrowException)


def _bytes_of(footer: Any, column: str) -> int:
    """Returns the uncompressed bytes of a column with its subfields, in all row groups."""
    total = 0
    for number in range(footer.num_columns):
        name = footer.schema.column(number).path
        if name == column or name.startswith(f"{column}."):
            for group in range(footer.num_row_groups):
                total += footer.row_group(group).column(number).total_uncompressed_size
    return total


READER = Reader(
    "parquet",
    ParquetSource,
    endings=("parquet",),
    signs=(("*.parquet",),),
    rank=1,
    table_columns=_table_columns,
    named_tables=("parquet",),
)
