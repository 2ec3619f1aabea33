"""A CSV or TSV file of image paths and captions."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.path_rows import ImageRows, PathSource
from clip_jax.data.tabular import find_columns
from clip_jax.errors import UserError


class TableSource(PathSource):
    """Rows (image path, caption, anything else); relative paths are relative to the file.

    Rows with the same image are one record with several captions. The other columns, from the
    image's first row, are its metadata. The key is the path as the file has it.

    Args:
      path: a file, glob, brace pattern or comma list, or a folder of them. UTF-8, with a header
        line. `.tsv` is split at tabs; otherwise the delimiter is the one
        of `,` tab `;` `|` that the header has most of.
      options: `image_column` and `caption_column` are names in the header; by default the first
        known one (`IMAGE_COLUMNS`, `CAPTION_COLUMNS`), upper or lower case.

    Raises:
      UserError: file missing, not UTF-8, a column missing, no usable row, or none of the first
        images on disk.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._rest_columns: list[tuple[str, ...]] = []  # of each file
        super().__init__(path, options, (".csv", ".tsv"))

    def _read(self, name: str, path: Path, rows: ImageRows) -> None:
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                delimiter = _delimiter(name, file.readline())
                file.seek(0)
                self._read_rows(name, csv.reader(file, delimiter=delimiter), rows)
        except UnicodeDecodeError:
            raise UserError(f"{name} {_where_not_utf8(path)}") from None

    def _read_rows(self, name: str, lines: Iterator[list[str]], rows: ImageRows) -> None:
        try:
            header = [column.strip() for column in next(lines, [])]
        except csv.Error as error:
            raise UserError(f"{name} is not a readable table: {error}") from None
        columns = find_columns(name, header, self._options)
        image_at = header.index(columns.image)
        captions_at = [header.index(column) for column in columns.captions]
        used = {image_at, *captions_at}
        rest_at = [at for at in range(len(header)) if at not in used]
        self._rest_columns.append(tuple(header[at] for at in rest_at))
        number = 1
        while True:
            number += 1
            try:
                row = next(lines)
            except StopIteration:
                return
            except csv.Error as error:  # such as a quote that is never closed; the next row is good
                rows.drop("row_malformed", f"row {number}", str(error))
                continue
            if not row:
                continue
            if len(row) <= max(used):
                reason = f"{len(row)} of {len(header)} columns"
                rows.drop("row_malformed", f"row {number}", reason)
                continue
            rest = ""
            if rest_at:
                cells = [row[at] for at in rest_at if at < len(row)]
                rest = json.dumps(cells, ensure_ascii=False)
            rows.add(f"row {number}", row[image_at], [row[at] for at in captions_at], rest)

    def metadata(self, index: int) -> dict[str, Any]:
        rest = self._store.rest[index]
        columns = self._rest_columns[self._file(index)]
        return dict(zip(columns, json.loads(rest), strict=False)) if rest else {}


def _delimiter(path: str, header: str) -> str:
    if path.lower().endswith(".tsv"):
        return "\t"
    return max((",", "\t", ";", "|"), key=header.count)


def _where_not_utf8(path: Path) -> str:
    """What is wrong with a file of another encoding, and what to do."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    return "is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
                return (
                    f"line {number} is not UTF-8 (byte 0x{line[error.start]:02x} at position"
                    f" {error.start + 1}); save it as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8)"
                )
    return "is not UTF-8; save it as UTF-8"
