"""Tolerant parser of CSV and TSV rows.

A line without quotes is split at its delimiters, and a line quoted as in RFC 4180 goes through
`csv`. Any other line is examined for blanks around a quoted cell, backslashes before quotes, a cell
of several lines, or a stray quote. A row that cannot be read in exactly one way is `Broken`, and
does not affect the rows after it.
"""

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

# A longer cell must have lost its end. This is the limit of `csv`, for unquoted cells too.
MAX_CELL = 131_072
_MAX_LINES = 200  # of one row
_MAX_ROW = 32 * MAX_CELL
_ESCAPED_QUOTE = re.compile(r'(?<!\\)(?:\\\\)*\\"')
_LINE_END = re.compile("[\r\n]")


class Broken(NamedTuple):
    """The reason why a row cannot be used; `by_quotes`: its quotes are the reason."""

    reason: str
    by_quotes: bool = False


class Row(NamedTuple):
    """A row of a table: the number of its first line, and its cells or what is wrong with it."""

    line: int
    cells: list[str] | Broken
    text: str  # as in the file, without the last line end


class Lines:
    """Iterator of lines that can be put back; `number` is that of the last line, from 1."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._returned: deque[str] = deque()
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._lines)
        self.number += 1
        return line

    def give_back(self, lines: list[str]) -> None:
        """Puts back `lines`, the last ones read, to be read again."""
        self._returned.extendleft(reversed(lines))
        self.number -= len(lines)

    def split(self, pieces: list[str]) -> None:
        """Puts back the last line as several, `pieces`."""
        self._returned.extendleft(reversed(pieces))
        self.number -= 1


@dataclass(frozen=True)
class Shape:
    """Requirements on a row: `needed` to `width` cells, of which cell `image_at` could name an
    image according to `is_image`."""

    width: int
    needed: int
    image_at: int
    is_image: Callable[[str], bool]

    def fitted(self, cells: list[str]) -> list[str] | Broken:
        """Returns the cells without empty ones beyond the header, or why they do not fit.

        Extra cells are cut only if all cells after the needed ones are empty; otherwise a caption
        may contain a delimiter.
        """
        count = len(cells)
        if count > self.width and not any(map(str.strip, cells[self.needed :])):
            cells = cells[: self.width]
        if len(cells) > self.width:
            return Broken(f"{count} cells where the header has {self.width} (quotes missing?)")
        if count < self.needed:
            return Broken(f"{count} of {self.width} columns")
        return cells

    def is_row(self, cells: list[str]) -> bool:
        """Returns whether these are surely the cells of a row (perhaps too many), not a line of a
        caption."""
        return len(cells) >= self.needed and self.is_image(cells[self.image_at])


class Quoting:
    """Parser of quoted cells between delimiters."""

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        apart = re.escape(delimiter)
        blanks = "[ ]*" if delimiter == "\t" else r"[ \t]*"
        self._opening = re.compile(rf'(?:^|{apart}){blanks}"')
        self._opening_late = re.compile(rf'(?:^|{apart})(?!"){blanks}"')
        # Quotes inside a cell are doubled, or have a backslash before each.
        insides = (r'[^"]*(?:""[^"]*)*', r'[^"\\]*(?:\\.[^"\\]*)*')
        self._doubled_unclosed, self._backslash_unclosed = (
            re.compile(rf'{blanks}"{inner}\Z', re.DOTALL) for inner in insides
        )
        self._doubled, self._backslash = (
            re.compile(
                rf'(?:{blanks}"(?P<quoted>{inner})"{blanks}'
                rf'|(?P<plain>(?!{blanks}")[^{apart}\n]*))(?P<end>{apart}|\Z)',
                re.DOTALL,
            )
            for inner in insides
        )

    def has_blanks(self, text: str) -> bool:
        """Returns whether there are blanks before the opening quote of a cell."""
        may_have = ' "' in text or '\t"' in text
        return may_have and self._opening_late.search(text) is not None

    def opens(self, text: str) -> bool:
        """Returns whether a cell of `text` begins with a quote, perhaps after blanks."""
        return self._opening.search(text) is not None

    def doubled(self, text: str) -> list[str] | None:
        """Returns the cells if all are plain or quoted with doubled quotes inside, else None."""
        return _cells(self._doubled, text, lambda cell: cell.replace('""', '"'))

    def readings(self, text: str) -> list[list[str]]:
        """Returns the cells in each possible reading, at most two."""
        found = [self.doubled(text)]
        if _ESCAPED_QUOTE.search(text):
            backslash = _cells(
                self._backslash, text, lambda cell: re.sub(r'\\(["\\])', r"\1", cell)
            )
            found += [backslash] if backslash not in found else []
        return [cells for cells in found if cells is not None]

    def is_open(self, text: str) -> bool:
        """Returns whether `text` ends inside a quoted cell, which more lines may complete."""
        return any(
            unclosed.match(text, _end_of_cells(pattern, text)) is not None
            for pattern, unclosed in (
                (self._doubled, self._doubled_unclosed),
                (self._backslash, self._backslash_unclosed),
            )
        )

    def literal(self, text: str) -> list[str] | None:
        """Returns the cells if every opening quote is surely literal, as in `"Yes" she said`."""
        cells = text.split(self.delimiter)
        if _go_over_cells(cells):
            return None
        for cell in map(str.strip, cells):
            if cell.startswith('"') and (
                cell.endswith('"') or cell.count('"') % 2 or '""' in cell or '\\"' in cell
            ):
                return None
        return cells


def _cells(pattern: re.Pattern[str], text: str, unquote: Callable[[str], str]) -> list[str] | None:
    cells: list[str] = []
    plain: list[str] = []
    at = 0
    while True:
        match = pattern.match(text, at)
        if match is None:
            return None
        if match["quoted"] is None:
            plain.append(match["plain"])
            cells.append(match["plain"])
        else:
            cells.append(unquote(match["quoted"]))
        if not match["end"]:
            return None if _go_over_cells(plain) else cells
        at = match.end()


def _end_of_cells(pattern: re.Pattern[str], text: str) -> int:
    """Returns the position of the first cell that `pattern` does not match."""
    at = 0
    while (match := pattern.match(text, at)) is not None and match["end"]:
        at = match.end()
    return at


def _go_over_cells(plain: list[str]) -> bool:
    """Returns whether a delimiter may be inside quotes: `she said "yes, of course", and left`."""
    return sum(cell.count('"') % 2 for cell in plain) > 1


def read_rows(
    lines: Lines, delimiter: str, shape: Shape, *, is_quoted: bool = True
) -> Iterator[Row]:
    """Yields the rows after the header, skipping blank lines.

    Args:
      is_quoted: False: every character but the delimiter and the line end is literal.
    """
    return _Reader(lines, delimiter, shape, is_quoted).rows()


class _Reader:
    def __init__(self, lines: Lines, delimiter: str, shape: Shape, is_quoted: bool) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self._shape = shape
        self._is_quoted = is_quoted
        self._quoting = Quoting(delimiter)
        self._in_doubt = False  # after an unclosed quote: lines may still belong to its cell

    def rows(self) -> Iterator[Row]:
        """Yields the rows that can be read; the others are counted with their line and reason."""
        lines, delimiter, shape = self._lines, self._delimiter, self._shape
        for line in lines:
            text = line.rstrip("\r\n")
            if "\r" in text and self._is_several(text):
                continue
            number = lines.number
            cells: list[str] | Broken
            if self._is_quoted and '"' in text:
                cells, text = self._quoted(line, text)
            else:
                cells = text.split(delimiter)
                if len(cells) == 1 and not text.strip():
                    continue
                # The common case is tested inline because this loop runs over millions of rows.
                if not shape.needed <= len(cells) <= shape.width:
                    cells = shape.fitted(cells)
            if len(text) > MAX_CELL or self._in_doubt:
                cells = self._checked(cells)
            yield Row(number, cells, text)

    def _checked(self, cells: list[str] | Broken) -> list[str] | Broken:
        if isinstance(cells, Broken):
            return cells
        if any(len(cell) > MAX_CELL for cell in cells):
            return Broken(f"a cell of more than {MAX_CELL:,} characters")
        if self._in_doubt and not self._shape.is_row(cells):
            return Broken("follows a quote that is never closed, and names no image")
        self._in_doubt = False
        return cells

    def _is_several(self, text: str) -> bool:
        """Returns whether the line is several rows that end in "\\r"; puts them back if so."""
        pieces = [piece for piece in text.split("\r") if piece.strip()]
        if len(pieces) > 1 and all(self._looks_like_row(piece) for piece in pieces):
            self._lines.split(pieces)
            return True
        return False

    def _looks_like_row(self, text: str) -> bool:
        cells = self._quoting.doubled(text) if self._is_quoted else None
        return self._shape.is_row(cells or text.split(self._delimiter))

    def _quoted(self, line: str, text: str) -> tuple[list[str] | Broken, str]:
        """Returns (cells, text of all their lines) of the row that begins with `line`."""
        usual = self._as_usual(text)
        if usual is not None:
            fits = self._shape.needed <= len(usual) <= self._shape.width
            return usual if fits else self._shape.fitted(usual), text
        readings = self._quoting.readings(text)
        fitting = self._fitting(readings)
        if len(fitting) == 1:
            return fitting[0], text
        if len(fitting) > 1:
            return Broken("its quotes can be read in two ways", by_quotes=True), text
        doubled = self._quoting.doubled(text)
        if doubled is not None:
            return self._shape.fitted(doubled), text
        literal = self._fitting([self._quoting.literal(text) or []])
        if literal and len(literal[0]) == self._shape.width:
            return literal[0], text
        return self._of_several_lines(line, text)

    def _as_usual(self, text: str) -> list[str] | None:
        """Returns the cells of a line if `csv`'s reading is the only possible one, else None."""
        if text.count('"') % 2 or '\\"' in text or self._quoting.has_blanks(text):
            return None
        try:
            cells = next(csv.reader((text,), delimiter=self._delimiter, strict=True))
        except csv.Error:
            return None
        return None if any(cell.count('"') % 2 for cell in cells) else cells

    def _fitting(self, readings: list[list[str]]) -> list[list[str]]:
        fitted = (self._shape.fitted(list(cells)) for cells in readings)
        return [cells for cells in fitted if not isinstance(cells, Broken)]

    def _of_several_lines(self, line: str, text: str) -> tuple[list[str] | Broken, str]:
        """Does what `_quoted` does for a row whose first line seems to end inside a quoted cell."""
        first, whole = text, line
        has_image = self._shape.is_row(text.split(self._delimiter))
        more: list[str] = []
        # Most broken rows are known by their first line; reading on for each would take quadratic
        # time.
        for more_line in self._lines if self._quoting.is_open(line.rstrip("\r\n")) else ():
            more.append(more_line)
            swallows = self._looks_like_row(more_line.rstrip("\r\n"))
            if swallows and has_image:
                break
            whole += more_line
            if '"' in more_line:
                text = whole.rstrip("\r\n")
                readings = self._quoting.readings(text)
                found = self._fitting(readings) or readings[:1]
                if len(found) == 1 and self._completes(found[0], has_image):
                    return self._shape.fitted(found[0]), text
                if not self._quoting.is_open(text):
                    break
            if swallows or len(more) >= _MAX_LINES or len(whole) > _MAX_ROW:
                break
        self._lines.give_back(more)
        self._in_doubt = True
        reason = "a quote is never closed, or not where a cell ends"
        return Broken(reason, by_quotes=True), first

    def _completes(self, cells: list[str], has_image: bool) -> bool:
        """Returns whether cells of several lines are a row; `has_image`: the first line could be a
        row on its own."""
        if has_image or len(cells) < self._shape.needed:
            return self._shape.is_row(cells)
        return True


def is_plainly_quoted(rows: Iterable[Row], delimiter: str) -> bool:
    """Returns whether a tab-separated table is quoted like CSV; the large caption sets are not.

    It is if more rows need their quotes (for a delimiter, line end or quote inside) than have a
    cell that begins with a literal quote, or if every row is quoted. A single caption entirely in
    quotes proves nothing: `"Twin Peaks"` keeps its quotes.

    Args:
      rows: all rows of the table, as `read_rows` finds them with `is_quoted`.
    """
    quoting = Quoting(delimiter)
    needed = wrapped = stray = total = 0
    for row in rows:
        if isinstance(row.cells, Broken):
            total += row.cells.by_quotes
            stray += row.cells.by_quotes
            needed += not row.cells.by_quotes and _LINE_END.search(row.text) is not None
            continue
        total += 1
        if '"' not in row.text or not quoting.opens(row.text):
            continue
        literal = row.text.split(delimiter)
        if row.cells == literal:
            stray += 1
        elif row.cells == [_unwrapped(cell) for cell in literal] and not re.search(
            "[\r\n]", row.text
        ):
            wrapped += 1
        else:
            needed += 1
    return needed > stray or (not stray and wrapped + needed == total)


def _unwrapped(cell: str) -> str:
    bare = cell.strip(" ")
    return bare[1:-1] if len(bare) > 1 and bare[0] == bare[-1] == '"' else cell
