"""Files of JSON lines, or of a list of JSON objects, with image paths and captions."""

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Reader
from clip_jax.data.sources.columns import MANY_CAPTION_COLUMNS, find_columns
from clip_jax.data.sources.path_rows import PathSource
from clip_jax.errors import UserError
from clip_jax.files.text_encoding import utf16_problem

_LOOKED_AT_ROWS = 100  # for field names: a row may lack some


class JsonLinesSource(PathSource):
    """Source of objects with an image path and captions, each of which is text or a list of texts.

    Files are UTF-8, with one object per line, or one list of objects, whatever the ending. Lines
    that are not JSON objects are dropped.

    Raises UserError if a file is not JSON or lacks a field (`IMAGE_COLUMNS`, `MANY_CAPTION_COLUMNS`
    or those of the options), and as `PathSource`.
    """

    def __init__(self, path: str, options: SourceOptions) -> None:
        super().__init__(path, options, (".jsonl", ".ndjson", ".json"))

    def _read(self, name: str, path: Path) -> None:
        objects = _objects(name, path, self._drop)
        first = list(islice(objects, _LOOKED_AT_ROWS))
        if not first:
            return
        names = _names(first)
        columns = find_columns(name, names, self._options, caption_columns=MANY_CAPTION_COLUMNS)
        used = {columns.image, *columns.captions} - {columns.label}
        for row, fields in chain(first, objects):
            rest = {field: value for field, value in fields.items() if field not in used}
            packed = json.dumps(rest) if rest else ""
            cells = [fields.get(column) for column in columns.captions]
            label = fields.get(columns.label or "")
            label = (label.strip() or None) if isinstance(label, str) else label
            self._add(row, fields.get(columns.image), cells, packed, label)

    def _fields(self, index: int) -> dict[str, Any]:
        packed = self._store.rest[index]
        return json.loads(packed) if packed else {}


def _table_columns(path: Path, options: SourceOptions) -> tuple[list[str], tuple[str, ...]]:
    names = _names(list(islice(_objects(str(path), path, lambda *_: None), _LOOKED_AT_ROWS)))
    found = find_columns(str(path), names, options, caption_columns=MANY_CAPTION_COLUMNS)
    return names, found.captions


def _names(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(field for _, fields in rows for field in fields))


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
            rows: Iterator[tuple[str, Any]] = (
                (f"item {number}", value)
                for number, value in enumerate(_whole(name, file.read()), start=1)
            )
        else:
            rows = _parsed_lines(file, drop)
        for row, value in rows:
            if isinstance(value, dict):
                yield row, value
            else:
                reason = f"{type(value).__name__} instead of an object with fields"
                drop("row_malformed", row, reason)


def _parsed_lines(
    file: BinaryIO, drop: Callable[[str, str, str], None]
) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf").strip()
        if not line:
            continue
        try:
            yield f"line {number}", json.loads(line.decode())
        except UnicodeDecodeError as error:
            drop("caption_not_utf8", f"line {number}", f"not UTF-8 (byte {error.start + 1})")
        except (ValueError, RecursionError) as error:
            drop("row_malformed", f"line {number}", f"no JSON: {error}")


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


READER = Reader(
    "jsonl",
    JsonLinesSource,
    endings=("jsonl", "ndjson", "json"),
    table_columns=_table_columns,
    tables=("jsonl", "ndjson"),
    named_tables=("json",),
    files="images",
    in_memory=True,
)
