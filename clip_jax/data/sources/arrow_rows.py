"""Base of sources whose rows are in Arrow tables: Parquet files and Hugging Face datasets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax.data.records import CaptionError, fingerprint_of
from clip_jax.data.sources.rows import RowSource
from clip_jax.errors import UserError


def import_pyarrow() -> tuple[Any, Any]:
    """Returns (pyarrow, pyarrow.parquet). Raises UserError if pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow: pip install 'clip_jax[parquet]'") from error
    return pyarrow, pyarrow.parquet


class ArrowSource(RowSource):
    """Base of sources of Arrow tables; a subclass reads the tables.

    Opening reads the columns of captions and keys once, and keeps only the numbers of rows with a
    caption. The other columns of single values are metadata.
    """

    _path_column: str | None = None  # of image paths, if these are the keys without a key column

    def _select_rows(self, path: str, schema: Any, wanted: str) -> None:
        """Finds the usable rows. Raises UserError, which says what is `wanted`, for none."""
        self._key_column = self._columns.key or self._path_column
        named = [*self._columns.captions, self._columns.key, self._path_column]
        self._text_columns = list(dict.fromkeys(name for name in named if name is not None))
        used = self._columns.used - set(self._classes)
        self._metadata_columns = [
            field.name
            for field in schema
            if (field.name not in used and _is_scalar(field.type))
            or field.name == self._columns.label
        ]
        kept: list[np.ndarray] = []
        self.fingerprint = fingerprint_of(self._usable_rows(kept))
        self._rows = np.concatenate([*kept, np.empty(0, np.int64)])
        self._check_not_empty(f"{path} has no row with {wanted}", "give at least one")

    def _pieces(self) -> Iterator[tuple[int, int, Any]]:
        """Yields (first row, number of rows, table of the text columns) of all readable rows; each
        piece is of one file."""
        raise NotImplementedError

    def _table(self, row: int, columns: Sequence[str]) -> tuple[Any, int]:
        """Returns (a table with these columns, number in it of a row). Raises DecodeError.

        The columns are the image's alone, or without it.
        """
        raise NotImplementedError

    def _origin(self, row: int) -> tuple[str, int]:
        """Returns (name of the file or split, number in it) of a row."""
        raise NotImplementedError

    def _usable_rows(self, kept: list[np.ndarray]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields (key, captions) of each usable row, and appends their numbers to `kept`."""
        names = self._text_columns
        for first, count, table in self._pieces():
            columns = [_values(table.column(name)) for name in names]
            file, before = self._origin(first)
            usable = []
            for row, values in enumerate(zip(*columns, strict=True) if names else [()] * count):
                cells = dict(zip(names, values, strict=True))
                place = f"{file}:{before + row}"
                key = self._key_in(cells) or place
                try:
                    if self._path_column is not None and not cells[self._path_column]:
                        key = place
                        raise CaptionError("image path is empty", "image_missing")
                    captions, _ = self._captions_in(cells)
                except CaptionError as error:
                    self.dropped.add(error.kind, key, str(error))
                    continue
                usable.append(row)
                yield key, captions
            kept.append(first + np.asarray(usable, np.int64))

    def _cells(self, index: int, has_image: bool = False) -> dict[str, Any]:
        cells = self._read(index, self._text_columns)
        if has_image and self._columns.image not in cells:
            cells |= self._read(index, [self._columns.image])
        return cells

    def _read(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        if not columns:
            return {}
        table, row = self._table(int(self._rows[index]), columns)
        return {name: _value(table.column(name)[row]) for name in columns}

    def _place(self, index: int) -> str:
        file, row = self._origin(int(self._rows[index]))
        return f"{file}:{row}"

    def __len__(self) -> int:
        return len(self._rows)

    def metadata(self, index: int) -> dict[str, Any]:
        return self._metadata_of(self._read(index, self._metadata_columns))


def image_kind(kind: Any) -> str | None:
    """Returns how cells of an Arrow type hold images: "bytes", "struct" or "path"; None if none."""
    types = import_pyarrow()[0].types
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "struct"
    return "path" if _is_text(kind) else None


def _is_text(kind: Any) -> bool:
    types = import_pyarrow()[0].types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _is_scalar(kind: Any) -> bool:
    types = import_pyarrow()[0].types
    return types.is_primitive(kind) or types.is_decimal(kind) or _is_text(kind)


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
