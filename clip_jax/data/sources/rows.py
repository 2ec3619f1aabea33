"""Base of sources that read each record from a row of cells: Arrow tables and examples."""

import contextlib
import datetime
import types
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.data.records import CaptionError, Record
from clip_jax.data.sources.base import BaseSource
from clip_jax.data.sources.columns import (
    Captions,
    Columns,
    caption_of_class,
    captions_of,
    read_image,
)
from clip_jax.errors import DecodeError


class RowSource(BaseSource):
    """Base of sources of rows; a subclass finds a record's cells, place and folder."""

    _columns = Columns("", (), None)
    _key_column: str | None = None
    _classes: Mapping[str, Sequence[str]] = types.MappingProxyType({})

    def _set_columns(self, columns: Columns, classes: Mapping[str, Sequence[str]]) -> None:
        """Sets the columns to read.

        Args:
          classes: column of class numbers -> names of the classes. As a caption, a name is put into
            `caption_template`, and is `metadata["class"]`.

        Raises UserError if a template is needed and has no `{}`.
        """
        self._columns = columns
        self._key_column = columns.key
        self._classes = dict(classes)
        if set(columns.captions) & set(classes):
            caption_of_class(self._options.caption_template, "class")

    def _cells(self, index: int, has_image: bool = False) -> Mapping[str, Any]:
        """Returns a record's cells by column: captions, key and, if wanted, the image.

        Raises DecodeError if they cannot be read.
        """
        raise NotImplementedError

    def _place(self, index: int) -> str:
        """Returns file (or split) and row of a record, such as "a.parquet:7"."""
        raise NotImplementedError

    def _folder(self, index: int) -> str:
        """Returns the folder that a record's image path is relative to."""
        return ""

    def __getitem__(self, index: int) -> Record:
        cells = self._cells(index, has_image=True)
        captions, weights = self._captions_in(cells)
        image = self._image_in(index, cells.get(self._columns.image))
        return Record(self._key_in(cells) or self._place(index), image, captions, weights)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions_in(self._cells(index))[0]

    def key(self, index: int) -> str:
        # The message about an unreadable record needs a name, too.
        with contextlib.suppress(DecodeError):
            return self._key_in(self._cells(index)) or self._place(index)
        return self._place(index)

    def _key_in(self, cells: Mapping[str, Any]) -> str:
        """Returns the key in a record's cells; "" if there is none."""
        return text_of(cells.get(self._key_column)) if self._key_column is not None else ""

    def _captions_in(self, cells: Mapping[str, Any]) -> Captions:
        found = []
        for name in self._columns.captions:
            value = cells.get(name)
            if name in self._classes and value is not None:
                class_name = self._class_name(name, value)
                if class_name is None and self._options.needs_captions:
                    raise CaptionError(f"label {value} has no class name", "caption_missing")
                template = self._options.caption_template
                value = None if class_name is None else caption_of_class(template, class_name)
            found.append(value)
        return captions_of(found, self._options)

    def _class_name(self, column: str, number: Any) -> str | None:
        names = self._classes.get(column, ())
        is_known = isinstance(number, int) and 0 <= number < len(names)
        return names[number] if is_known else None

    def _metadata_of(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """Returns metadata of the cells, with names for class numbers; "class" for a caption's."""
        found: dict[str, Any] = {}
        for name, value in cells.items():
            class_name = self._class_name(name, value)
            value = value if class_name is None else class_name
            if name in self._columns.captions and name in self._classes:
                found["class"] = value
            if name == self._columns.label:
                found[name] = value
            elif name not in self._columns.captions:
                found[name] = _plain(value)
        return found

    def _image_in(self, index: int, value: Any) -> bytes:
        """Returns the image in a cell: bytes, a path, or a mapping with one of these.

        Raises DecodeError if there is none, or it cannot be read.
        """
        path = None
        if isinstance(value, Mapping):
            value, path = value.get("bytes"), value.get("path")
        elif isinstance(value, str):
            value, path = None, value
        if not value and path:
            return read_image(self._folder(index), path, self._options.remote)
        if not value or not isinstance(value, bytes):
            raise DecodeError(f"{self._place(index)}: no image", "image_missing")
        return value


def text_of(value: Any) -> str:
    """Returns a cell as text; "" for an empty one."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Returns a value as JSON can hold it."""
    if value is None or isinstance(value, (str, int, float, bool, list)):
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return text_of(value)
