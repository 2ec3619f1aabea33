"""Parquet files with images as bytes, in Hugging Face's struct, or by path or URL."""

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import CaptionError, Drops, Record, fingerprint_of
from clip_jax.data.sources import row_groups
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    MANY_CAPTION_COLUMNS,
    Captions,
    Columns,
    captions_of,
    check_images_exist,
    find_columns,
    read_image,
)
from clip_jax.data.sources.row_groups import RowGroups, import_pyarrow
from clip_jax.data.sources.splits import source_files
from clip_jax.errors import DecodeError, UserError, one_line

logger = logging.getLogger(__name__)

_LARGE_GROUP_BYTES = 8 << 20  # of images; reading that takes as long as decoding one image


class ParquetSource:
    """Source of Parquet files, in the order of the files; each row is a record.

    The image is in a column of bytes, of structs {"bytes", "path"}, or of paths (relative to the
    Parquet file) or URLs. Captions are text or lists of texts. Other scalar columns are metadata.
    The key is the column "key" or the path of the image; otherwise FILE:ROW.

    Opening reads the columns of captions and keys once, and keeps only the numbers of rows with a
    caption. Everything else is read by row group into bounded caches (`row_groups.py`).

    Args:
      path: a file, folder, glob, brace pattern or comma list, local or remote.
      options: `image_column` and `caption_column` are column names; by default the first known one
        (`ENCODED_IMAGE_COLUMNS`, `MANY_CAPTION_COLUMNS`), ignoring case.

    Raises:
      UserError: no file, a column missing or of a wrong type, no usable row, or none of the first
        images on disk. An unreadable file is dropped if others are readable.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        import_pyarrow()
        self._options = options
        files, self.split = source_files(os.fspath(path), ".parquet", options)
        self._groups = RowGroups(files, options.remote)
        self.dropped = Drops(options.listed_drops)
        self._columns: Columns
        self._metadata_columns: list[str] = []
        self._image_kind = ""  # "bytes", "struct" or "path"
        self._find_groups()
        kept: list[np.ndarray] = []
        self.fingerprint = fingerprint_of(self._usable_rows(kept))
        self._rows = np.concatenate([*kept, np.empty(0, np.int64)])
        if not len(self._rows) and not (options.skip_unreadable and self.dropped.total):
            why = next(iter(self.dropped.items()), None)
            raise UserError(
                f"{path} has no row with an image and a caption"
                + (f" ({self.dropped.total} dropped; {why[0]}: {why[1]})" if why else "")
                + "; give at least one"
            )
        if self._image_kind == "path" and len(self._rows):
            self._check_images()

    def _find_groups(self) -> None:
        """Finds the row groups of all files, and the columns, which the first file defines."""
        files, numbers, sizes, image_bytes = [], [], [0], 0
        first = None
        for file, path in enumerate(self._groups.paths):
            try:
                footer = self._groups.footer(file)
            except _unreadable() as error:
                self._shard_failed(path, error)
                continue
            schema = footer.schema.to_arrow_schema()
            if first is None:
                first = path
                self._find_columns(path, schema)
            missing = self._columns.used - set(schema.names)
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(sorted(missing))}, which {first} has;"
                    f" its columns are: {', '.join(schema.names)}"
                )
            image_bytes += _bytes_of(footer, self._columns.image)
            for group in range(footer.num_row_groups):
                files.append(file)
                numbers.append(group)
                sizes.append(footer.row_group(group).num_rows)
        self._file_of_group = np.asarray(files, np.int64)
        self._number_of_group = np.asarray(numbers, np.int64)
        self._starts = np.cumsum(np.asarray(sizes, np.int64))
        if self._image_kind != "path" and image_bytes > row_groups.IMAGES_BYTES:
            self._warn_of_large_groups(image_bytes // len(files))

    def _warn_of_large_groups(self, image_bytes: int) -> None:
        if image_bytes > _LARGE_GROUP_BYTES:
            logger.warning(
                "%s: %d MiB of images in a row group on average, all of which are read for each"
                " image in random order; write it with smaller row groups (such as"
                " row_group_size=10) or convert it: python -m clip_jax.data convert",
                self._groups.paths[0],
                image_bytes >> 20,
            )

    def _find_columns(self, path: str, schema: Any) -> None:
        pyarrow, _ = import_pyarrow()
        types = pyarrow.types
        self._columns = find_columns(
            path, schema.names, self._options, ENCODED_IMAGE_COLUMNS, MANY_CAPTION_COLUMNS
        )
        kind = schema.field(self._columns.image).type
        if _is_bytes(types, kind):
            self._image_kind = "bytes"
        elif types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            self._image_kind = "struct"
        elif _is_text(types, kind):
            self._image_kind = "path"
        else:
            raise UserError(
                f"{path}: column {self._columns.image!r} has {kind}; accepted for images are bytes,"
                " structs with a field bytes, and paths; name one with image_column"
            )
        self._metadata_columns = [
            field.name
            for field in schema
            if (field.name not in self._columns.used and _is_scalar(types, field.type))
            or field.name == self._columns.label
        ]

    def _usable_rows(self, kept: list[np.ndarray]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields (key, captions) of each usable row, and appends their numbers to `kept`."""
        for group in range(len(self._file_of_group)):
            file, number = int(self._file_of_group[group]), int(self._number_of_group[group])
            size = int(self._starts[group + 1] - self._starts[group])
            try:
                table = self._groups.read(file, number, self._text_columns)
            except _unreadable() as error:
                for row in range(size):
                    reason = f"row group {number}: {one_line(error)}"
                    self.dropped.add("shard_unreadable", self._place(group, row), reason)
                continue
            cells = [_values(table.column(name)) for name in self._columns.captions]
            keys = self._keys_of(table, group, size)
            usable = []
            for row, (key, *texts) in enumerate(zip(keys, *cells, strict=True)):
                try:
                    if key is None:
                        raise CaptionError("image path is empty", "image_missing")
                    captions, _ = captions_of(texts, self._options)
                except CaptionError as error:
                    self.dropped.add(error.kind, key or self._place(group, row), str(error))
                    continue
                usable.append(row)
                yield key, captions
            kept.append(self._starts[group] + np.asarray(usable, np.int64))

    @property
    def _text_columns(self) -> list[str]:
        named = [*self._columns.captions]
        named += [self._columns.key] if self._columns.key is not None else []
        named += [self._columns.image] if self._image_kind == "path" else []
        return list(dict.fromkeys(named))

    def _keys_of(self, table: Any, group: int, size: int) -> list[str | None]:
        """Returns the key of each row; None for an empty image path."""
        paths = [""] * size
        if self._image_kind == "path":
            paths = [_text(value) for value in _values(table.column(self._columns.image))]
        names = paths
        if self._columns.key is not None:
            names = [_text(value) for value in _values(table.column(self._columns.key))]
        file, before = self._origin(group)
        return [
            None if self._image_kind == "path" and not path else name or f"{file}:{before + row}"
            for row, (path, name) in enumerate(zip(paths, names, strict=True))
        ]

    def _origin(self, group: int) -> tuple[str, int]:
        """Returns (name of the file, number of rows in it before the group)."""
        file = self._file_of_group[group]
        first = int(np.searchsorted(self._file_of_group, file))
        before = int(self._starts[group] - self._starts[first])
        return os.path.basename(self._groups.paths[file]), before

    def _place(self, group: int, row: int) -> str:
        """Returns FILE:ROW, counted from 0 in the file."""
        file, before = self._origin(group)
        return f"{file}:{before + row}"

    def _shard_failed(self, path: str, error: Exception) -> None:
        from_store = "://" in path
        if from_store and self._options.remote.on_failure == "stop":
            raise UserError(f"{one_line(error)} (remote.on_failure=stop)") from error
        self.dropped.add("shard_unreadable", path, one_line(error))

    def _check_images(self) -> None:
        file = self._groups.paths[self._file_of_group[self._group(0)[0]]]
        paths = (self._path(index) for index in range(len(self)))
        check_images_exist(file, os.path.dirname(file), paths)

    def _group(self, index: int) -> tuple[int, int]:
        """Returns (row group, row in it) of a record."""
        row = int(self._rows[index])
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return group, row - int(self._starts[group])

    def _cells(self, index: int, columns: list[str]) -> list[Any]:
        """Reads a record's cells in small columns. Raises DecodeError if they are unreadable."""
        group, row = self._group(index)
        file, number = int(self._file_of_group[group]), int(self._number_of_group[group])
        try:
            table = self._groups.texts(file, number, columns)
        except _unreadable() as error:
            raise DecodeError(one_line(error), "shard_unreadable") from error
        return [_value(table.column(name)[row]) for name in columns]

    def _captions(self, index: int) -> Captions:
        columns = self._text_columns
        cells = dict(zip(columns, self._cells(index, columns), strict=True))
        return captions_of([cells[name] for name in self._columns.captions], self._options)

    def _path(self, index: int) -> str:
        columns = self._text_columns
        return _text(self._cells(index, columns)[columns.index(self._columns.image)])

    def _image(self, index: int) -> bytes:
        group, row = self._group(index)
        file, number = int(self._file_of_group[group]), int(self._number_of_group[group])
        folder = os.path.dirname(self._groups.paths[file])
        if self._image_kind == "path":
            return read_image(folder, self._path(index), self._options.remote)
        try:
            value = self._groups.images(file, number, self._columns.image)[row].as_py()
        except _unreadable() as error:
            raise DecodeError(one_line(error), "shard_unreadable") from error
        if self._image_kind == "struct" and value is not None:
            path = value.get("path")
            value = value["bytes"]
            if not value and path:
                return read_image(folder, path, self._options.remote)
        if not value:
            raise DecodeError(f"{self._place(group, row)}: no image", "image_missing")
        return value

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        captions, weights = self._captions(index)
        return Record(self.key(index), self._image(index), captions, weights)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions(index)[0]

    def metadata(self, index: int) -> dict[str, Any]:
        columns = self._metadata_columns
        values = self._cells(index, columns) if columns else []
        return {
            name: value if name == self._columns.label else _plain(value)
            for name, value in zip(columns, values, strict=True)
        }

    def key(self, index: int) -> str:
        column = self._columns.key or (self._columns.image if self._image_kind == "path" else None)
        name = ""
        if column is not None:
            columns = self._text_columns
            # The message about an unreadable record needs a name, too.
            with contextlib.suppress(DecodeError):
                name = _text(self._cells(index, columns)[columns.index(column)])
        return name or self._place(*self._group(index))


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


def _is_bytes(types: Any, kind: Any) -> bool:
    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_text(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _is_scalar(types: Any, kind: Any) -> bool:
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_temporal)
    return _is_text(types, kind) or types.is_decimal(kind) or any(test(kind) for test in tests)


def _values(column: Any) -> list[Any]:
    """Returns the Python values of a ChunkedArray of text; bytes for texts that are not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if hasattr(scalar, "as_buffer"):
            return scalar.as_buffer().to_pybytes()
        if hasattr(scalar, "dictionary"):
            return _value(scalar.value)
        return [_value(item) for item in scalar.values]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Returns the value as JSON can hold it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)
