"""Files of JSON lines, or of a list of JSON objects, with image paths and captions."""

import json
import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.sources.columns import (
    MANY_CAPTION_COLUMNS,
    Columns,
    find_columns,
    find_label_column,
)
from clip_jax.data.sources.path_rows import ImageRows, PathSource
from clip_jax.errors import UserError
from clip_jax.files.text_encoding import utf16_problem

_LOOKED_AT_ROWS = 100  # for field names: a row may lack some


class JsonLinesSource(PathSource):
    """Source of objects with an image path and captions; paths are relative to the file.

    A caption field is text or a list of texts. Objects with the same image make one record with
    several captions. The other fields, from the image's first object, are its metadata. The key is
    the path as written in the file.

    Args:
      path: a file, glob, brace pattern or comma list, or a folder of them. UTF-8; one object per
        line, or one list of objects, whatever the ending.
      options: `image_column` and `caption_column` are field names; by default the first known one
        (`IMAGE_COLUMNS`, `MANY_CAPTION_COLUMNS`), ignoring case.
      elsewhere: as in `TableSource`.

    Raises:
      UserError: file missing, not JSON, a field missing, no usable row, or none of the first images
        on disk. Lines that are not JSON objects are dropped.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
        elsewhere: tuple[str, ...] = (),
    ) -> None:
        super().__init__(path, options, (".jsonl", ".ndjson", ".json"), elsewhere)

    def _read(self, name: str, path: Path, rows: ImageRows) -> None:
        objects = _objects(name, path, rows.drop)
        first = list(islice(objects, _LOOKED_AT_ROWS))
        if not first:
            return
        names = _names(first)
        columns = find_columns(name, names, self._options, caption_columns=MANY_CAPTION_COLUMNS)
        label = find_label_column(names, self._options)
        used = {columns.image, *columns.captions} - {label}
        for row, fields in chain(first, objects):
            rest = {field: value for field, value in fields.items() if field not in used}
            packed = json.dumps(rest) if rest else ""
            cells = [fields.get(column) for column in columns.captions]
            rows.add(row, fields.get(columns.image), cells, packed, _label(fields, label))

    def _fields(self, index: int) -> dict[str, Any]:
        packed = self._store.rest[index]
        return json.loads(packed) if packed else {}


def read_fields(name: str, path: Path, options: SourceOptions) -> tuple[list[str], Columns]:
    """Returns (names, columns) of the first objects. Raises UserError if there is no field for
    images or captions, and OSError."""
    names = _names(list(islice(_objects(name, path, lambda *_: None), _LOOKED_AT_ROWS)))
    return names, find_columns(name, names, options, caption_columns=MANY_CAPTION_COLUMNS)


def _names(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(field for _, fields in rows for field in fields))


def _label(fields: dict[str, Any], column: str | None) -> Any:
    label = fields.get(column) if column is not None else None
    return (label.strip() or None) if isinstance(label, str) else label


def _objects(
    name: str, path: Path, drop: Callable[[str, str, str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name of the row, its fields); calls `drop(kind, row, reason)` for non-objects."""
    with open(path, "rb") as file:
        start = file.read(4096)
        problem = utf16_problem(start)
        if problem is not None:
            raise UserError(f"{name} {problem}")
        file.seek(0)
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            values = enumerate(_whole(name, file.read()), start=1)
            for number, value in values:
                yield from _checked(f"item {number}", value, drop)
            return
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not line:
                continue
            try:
                value = json.loads(line.decode())
            except UnicodeDecodeError as error:
                reason = f"not UTF-8 (byte {error.start + 1})"
                drop("caption_not_utf8", f"line {number}", reason)
                continue
            except (ValueError, RecursionError) as error:
                drop("row_malformed", f"line {number}", f"no JSON: {error}")
                continue
            yield from _checked(f"line {number}", value, drop)


def _checked(
    row: str, value: Any, drop: Callable[[str, str, str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield row, value
    else:
        reason = f"{type(value).__name__} instead of an object with fields"
        drop("row_malformed", row, reason)


def _whole(name: str, data: bytes) -> list[Any]:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name} line {line} is not UTF-8 (byte 0x{data[error.start]:02x} at"
            f" {error.start}); save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is no JSON: {error}") from None
