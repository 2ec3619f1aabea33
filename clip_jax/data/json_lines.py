"""JSON lines, or a list of JSON objects, of image paths and captions."""

import json
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.path_rows import ImageRows, PathSource
from clip_jax.data.tabular import MANY_CAPTION_COLUMNS, find_columns
from clip_jax.errors import UserError

_LOOKED_AT_ROWS = 100  # for the names of the fields: not every row need have all of them


class JsonLinesSource(PathSource):
    """Objects with an image path and captions; relative paths are relative to the file.

    A caption field is text or a list of texts. Objects with the same image are one record with
    several captions. The other fields, from the image's first object, are its metadata. The key is
    the path as the file has it.

    Args:
      path: a file, glob, brace pattern or comma list, or a folder of them. UTF-8; an object a
        line, or one list of objects, whatever the ending.
      options: `image_column` and `caption_column` are names of fields; by default the first known
        one (`IMAGE_COLUMNS`, `MANY_CAPTION_COLUMNS`), upper or lower case.

    Raises:
      UserError: file missing, no JSON, a field missing, no usable row, or none of the first images
        on disk. Lines that are no JSON objects are dropped.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(path, options, (".jsonl", ".ndjson", ".json"))

    def _read(self, name: str, path: Path, rows: ImageRows) -> None:
        objects = self._objects(name, path, rows)
        first = list(islice(objects, _LOOKED_AT_ROWS))
        if not first:
            return
        names = list(dict.fromkeys(field for _, fields in first for field in fields))
        columns = find_columns(name, names, self._options, caption_columns=MANY_CAPTION_COLUMNS)
        used = {columns.image, *columns.captions}
        for row, fields in chain(first, objects):
            rest = {field: value for field, value in fields.items() if field not in used}
            packed = json.dumps(rest) if rest else ""
            cells = [fields.get(column) for column in columns.captions]
            rows.add(row, fields.get(columns.image), cells, packed)

    def _objects(
        self, name: str, path: Path, rows: ImageRows
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name of the row, its fields); what is no object is dropped."""
        with open(path, "rb") as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            file.seek(0)
            if start.startswith(b"["):
                values = enumerate(_whole(name, file.read()), start=1)
                for number, value in values:
                    yield from _checked(f"item {number}", value, rows)
                return
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf").strip()
                if not line:
                    continue
                try:
                    value = json.loads(line.decode())
                except UnicodeDecodeError as error:
                    reason = f"not UTF-8 (byte {error.start + 1})"
                    rows.drop("caption_not_utf8", f"line {number}", reason)
                    continue
                except (ValueError, RecursionError) as error:
                    rows.drop("row_malformed", f"line {number}", f"no JSON: {error}")
                    continue
                yield from _checked(f"line {number}", value, rows)

    def metadata(self, index: int) -> dict[str, Any]:
        packed = self._store.rest[index]
        return json.loads(packed) if packed else {}


def _checked(row: str, value: Any, rows: ImageRows) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield row, value
    else:
        reason = f"{type(value).__name__} instead of an object with fields"
        rows.drop("row_malformed", row, reason)


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
