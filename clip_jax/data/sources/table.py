"""CSV or TSV files of image paths and captions."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import IMAGE_EXTENSIONS, Reader
from clip_jax.data.sources.columns import Columns, find_columns, find_label_column, image_place
from clip_jax.data.sources.delimited import (
    Broken,
    Lines,
    Quoting,
    Row,
    Shape,
    is_plainly_quoted,
    read_rows,
)
from clip_jax.data.sources.path_rows import PathSource
from clip_jax.errors import UserError
from clip_jax.files.patterns import is_remote
from clip_jax.files.text_encoding import utf16_problem

_DELIMITERS = (",", "\t", ";", "|")
_START_BYTES = 1 << 16  # enough to detect the encoding and the line end
_IMAGE_NAME = re.compile(rf"[^\r\n]+\.({'|'.join(IMAGE_EXTENSIONS)})(#\d+)?", re.IGNORECASE)
# Lines of Flickr8k's and Flickr30k's token files look like this; these files have no header.
_TOKEN_LINE = re.compile(rf"(?P<image>[^\t]+\.({'|'.join(IMAGE_EXTENSIONS)}))#\d+\t", re.IGNORECASE)


@dataclass(frozen=True)
class Head:
    """Format and columns of a table, from its first line."""

    delimiter: str
    names: list[str]  # of the columns
    columns: Columns
    has_quoted_names: bool = False
    is_token_file: bool = False  # `image.jpg#0<TAB>caption`, and no header

    @property
    def image_at(self) -> int:
        """Returns the position of the column of image paths."""
        return self.names.index(self.columns.image)

    @property
    def captions_at(self) -> list[int]:
        """Returns the positions of the columns of captions."""
        return [self.names.index(column) for column in self.columns.captions]


class TableSource(PathSource):
    """Source of rows (image path, caption, anything else), UTF-8 with a header line, or of lines
    `image.jpg#0<TAB>caption`.

    A row with more cells than the header, or with ambiguous quotes, is dropped and listed by line
    number. `.tsv` is split at tabs; otherwise the delimiter is the one of `,` tab `;` `|` that is
    most frequent in the header. A tab-separated file is read without quoting, unless it is plainly
    quoted (`delimited.is_plainly_quoted`).

    Raises UserError if a file is not UTF-8 or lacks a column (`IMAGE_COLUMNS`, `CAPTION_COLUMNS`,
    or those of the options), and as `PathSource`.
    """

    def __init__(self, path: str, options: SourceOptions) -> None:
        self._rest_columns: list[tuple[str, ...]] = []  # per file
        super().__init__(path, options, (".csv", ".tsv"))

    def _read(self, name: str, path: Path) -> None:
        try:
            head = read_head(name, path, self._options)
            needed = 1 + max(head.image_at, *head.captions_at, 0)
            is_image = _image_test(os.path.dirname(name))
            shape = Shape(len(head.names), needed, head.image_at, is_image)
            is_quoted = head.delimiter != "\t" or _is_quoted(path, head, shape)
            with _lines(path, head) as lines:
                self._add_rows(head, read_rows(lines, head.delimiter, shape, is_quoted=is_quoted))
        except UnicodeDecodeError:
            raise UserError(f"{name} {_where_not_utf8(path)}") from None

    def _add_rows(self, head: Head, rows: Iterator[Row]) -> None:
        label = find_label_column(head.names, self._options)
        label_at = -1 if label is None else head.names.index(label)
        used = {head.image_at, *head.captions_at} - {label_at}
        rest_at = [at for at in range(len(head.names)) if at not in used]
        self._rest_columns.append(tuple(head.names[at] for at in rest_at))
        image_at, captions_at = head.image_at, head.captions_at
        for line, row, _ in rows:
            where = f"row {line}"
            if isinstance(row, Broken):
                self._drop("row_malformed", where, row.reason)
                continue
            if head.is_token_file:
                row[0] = row[0].rpartition("#")[0]
            rest = ""
            if rest_at:
                cells = [row[at] for at in rest_at if at < len(row)]
                rest = json.dumps(cells, ensure_ascii=False)
            given = row[label_at].strip() if 0 <= label_at < len(row) else None
            self._add(where, row[image_at], [row[at] for at in captions_at], rest, given or None)

    def _fields(self, index: int) -> dict[str, Any]:
        rest = self._store.rest[index]
        columns = self._rest_columns[self._file(index)]
        return dict(zip(columns, json.loads(rest), strict=False)) if rest else {}


def read_head(name: str, path: Path, options: SourceOptions) -> Head:
    """Reads the columns of the table called `name`, whose local copy is `path`.

    Raises UserError if there is none for images or captions, and UnicodeDecodeError or OSError if
    the beginning cannot be read.
    """
    with open(path, "rb") as file:
        problem = utf16_problem(file.read(_START_BYTES))
    if problem is not None:
        raise UserError(f"{name} {problem}")
    with _lines(path) as lines:
        line = next((line for line in lines if line.strip()), "").rstrip("\r\n")
    if _TOKEN_LINE.match(line):
        names = ["image", "caption"]
        return Head("\t", names, find_columns(name, names, options), is_token_file=True)
    # Delimiters in a quoted name do not count.
    bare = re.sub(r'"[^"]*"', "", line)
    delimiters = sorted(_DELIMITERS, key=bare.count, reverse=True)
    if name.lower().endswith(".tsv"):
        delimiters.sort(key=lambda delimiter: delimiter != "\t")
    error = None
    for delimiter in delimiters:
        cells = Quoting(delimiter).doubled(line) or line.split(delimiter)
        names = [cell.strip() for cell in cells]
        # A trailing delimiter in the header is no column; if it were, a row with a comma in its
        # caption would fit.
        while names and not names[-1]:
            names.pop()
        is_quoted = all(f'"{column}"' in line for column in names)
        try:
            return Head(delimiter, names, find_columns(name, names, options), is_quoted)
        except UserError as mistake:
            error = error or mistake
    assert error is not None
    raise error


@contextmanager
def _lines(path: Path, head: Head | None = None) -> Iterator[Lines]:
    """Opens all lines of a file, or with `head` those after the header.

    The line end is the header's, `\\n` or `\\r`. The other character may be part of a caption, or
    another program's line end; `read_rows` decides that.
    """
    with open(path, "rb") as binary:
        first = re.search(rb"\r*\n|\r", binary.read(_START_BYTES))
    newline = "\r" if first is not None and first[0] == b"\r" else "\n"
    with open(path, encoding="utf-8-sig", newline=newline) as file:
        lines = Lines(file)
        if head is not None and not head.is_token_file:
            next((line for line in lines if line.strip()), None)
        yield lines


def _is_quoted(path: Path, head: Head, shape: Shape) -> bool:
    """Returns whether a tab-separated file is quoted like CSV."""
    if head.has_quoted_names:
        return True
    with _lines(path, head) as lines:
        return is_plainly_quoted(read_rows(lines, head.delimiter, shape), head.delimiter)


def _image_test(folder: str) -> Callable[[str], bool]:
    """Returns a test whether a cell could name an image: by its ending, or an existing file."""

    def is_image(cell: str) -> bool:
        cell = cell.strip()
        if _IMAGE_NAME.fullmatch(cell):
            return True
        place = image_place(folder, cell)
        if is_remote(place):
            return len(cell.split()) == 1
        return bool(cell) and os.path.isfile(place.removeprefix("file://"))

    return is_image


def _where_not_utf8(path: Path) -> str:
    """Returns the place of a file's first non-UTF-8 byte, and what to do."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return (
                    f"line {number} is not UTF-8 (byte 0x{line[error.start]:02x} at position"
                    f" {error.start + 1}); save it as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8)"
                )
    return "is not UTF-8; save it as UTF-8"


def _table_columns(path: Path, options: SourceOptions) -> tuple[list[str], tuple[str, ...]]:
    head = read_head(str(path), path, options)
    return head.names, head.columns.captions


READER = Reader(
    "csv",
    TableSource,
    endings=("csv", "tsv", "txt"),  # such as Flickr8k's captions.txt
    table_columns=_table_columns,
    tables=("csv", "tsv"),
    named_tables=("txt", "token"),
    files="images",
    in_memory=True,
)
