"""3,000 random tables: every row is read as its writer meant it, or counted; none lost or merged.

Rows are made first and then written in one of several ways, by writers of this file. Tables by the
rules (RFC 4180, or tabs and no quotes) are also read by a reader of this file that knows nothing
but these rules; both readers must find the same.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from clip_jax.data.sources import open_source
from clip_jax.errors import UserError

TABLES = 3000
IMAGES = 12  # in the folder; each row of a table has another
WORDS = (
    *(
        "a",
        "cat",
        "café",
        "日本",
        "\U0001f600",
        "12",
        "C:\\pets",
        "it's",
        "–",
        "#0",
        " ",
        "  ",
        "\t",
    ),
    *('"', '""', '"yes"', '12"', ",", ", ", ";", "|", "\x0b", "\x00", "\u2028"),
)
LINE_ENDS = ("\n", "\r\n", "\r")


class Row(NamedTuple):
    cells: dict[str, str]
    text: str
    is_certain: bool  # the row must be read; otherwise it may be counted


class Table(NamedTuple):
    name: str
    text: str
    rows: list[Row]


def caption_of(draw: random.Random, extra: tuple[str, ...] = (), without: str = "") -> str:
    words = [draw.choice((*WORDS, *extra)) for _ in range(draw.randint(0, 7))]
    text = draw.choice(("", " ")).join(words)
    if draw.random() < 0.002:
        text += "x" * 140_000
    for character in without:
        text = text.replace(character, "")
    return text


def quoted(cell: str, escaped: str = '""') -> str:
    return '"' + cell.replace('"', escaped) + '"'


def by_the_rules(cell: str, delimiter: str, always: bool) -> str:
    needs = any(character in cell for character in (delimiter, '"', "\n", "\r"))
    return quoted(cell) if always or needs else cell


# Sloppy writers: each makes the text of one caption, as people and scripts do.


def closed_inside(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    said = draw.choice(("Yes", "Twin Peaks", "No"))
    text = f'"{said}" {draw.choice(("she said", "scene", "12"))}'
    return text, text, True


def never_closed(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    text = '"' + caption_of(draw, without='"\t,;|\\') + "."
    return text, text, False


def delimiter_inside(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    text = f"a cat{delimiter}{draw.choice((' ', ''))}on {caption_of(draw, without=chr(34))}"
    return text, text, False


def quotes_over_delimiters(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    text = f'she said "yes{delimiter} of course" and left'
    return text, text, False


def wrapped_only(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    text = f'he said "hi{draw.choice(("", delimiter))}" to {draw.choice(("me", "a cat"))}'
    return text, f'"{text}"', False


def inches(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    text = draw.choice(('a 12" pan', 'a 5" by 7" print', 'said "yes" today', 'a 12"'))
    return text, text, True


def blanks_around(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    text = caption_of(draw, without="\\")
    return text, f"{draw.choice((' ', '  '))}{quoted(text)}{draw.choice(('', ' '))}", True


def backslashes(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    text = f'a "red"{caption_of(draw, without=chr(92))} cat{delimiter} sitting'
    return text, quoted(text, '\\"'), True


def well_quoted(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    text = caption_of(draw, ("\n", "\r\n", delimiter), without="\\")
    return text, by_the_rules(text, delimiter, draw.random() < 0.5), True


SLOPPY: tuple[Callable[[random.Random, str], tuple[str, str, bool]], ...] = (
    *(closed_inside, never_closed, delimiter_inside, quotes_over_delimiters, wrapped_only),
    *(inches, blanks_around, backslashes, well_quoted, well_quoted),
)


def columns_of(draw: random.Random) -> list[str]:
    names = ["filepath", "caption", *draw.sample(["id", "note", "source"], draw.randint(0, 2))]
    draw.shuffle(names)
    return names


def make_rows(
    draw: random.Random, names: list[str], write: Callable[[dict[str, str]], tuple[str, str, bool]]
) -> list[Row]:
    """Rows of the columns `names`; `write` makes (caption, text of the row, whether certain)."""
    rows = []
    for image in draw.sample(range(IMAGES), draw.randint(1, IMAGES)):
        cells = {name: draw.choice(("", "7", "web")) for name in names}
        cells["filepath"] = f"im/{image}.jpg"
        cells["caption"], text, is_certain = write(cells)
        rows.append(Row(cells, text, is_certain))
    return rows


def by_the_rules_table(draw: random.Random, delimiter: str) -> Table:
    names, always = columns_of(draw), draw.random() < 0.3
    inside = ("\n", "\r\n", delimiter, "\r", "\\")

    def line(cells: list[str]) -> str:
        return delimiter.join(by_the_rules(cell, delimiter, always) for cell in cells)

    def write(cells: dict[str, str]) -> tuple[str, str, bool]:
        caption = caption_of(draw, inside).replace('\\"', '"')
        return caption, line([(cells | {"caption": caption})[name] for name in names]), True

    rows = make_rows(draw, names, write)
    if delimiter == "\t" and not always and not any('""' in row.text for row in rows):
        # One quoted caption tells nothing about a file of tabs; a doubled quote does.
        caption = 'a "red" cat'
        cells = rows[0].cells | {"caption": caption}
        rows[0] = Row(cells, line([cells[name] for name in names]), True)
    end = draw.choice(LINE_ENDS)
    text = written(draw, line(names), rows, end)
    found = read_by_the_rules(text, delimiter)
    expected = [names, *([row.cells[name] for name in names] for row in rows)]
    assert [cells for cells in found if cells != [""]] == expected, text
    return Table("d.tsv" if delimiter == "\t" else "d.csv", text, rows)


def literal_table(draw: random.Random) -> Table:
    names = columns_of(draw)

    def write(cells: dict[str, str]) -> tuple[str, str, bool]:
        caption = caption_of(draw, ("\\",), without="\t")
        if caption.strip().startswith('"') and caption.strip().endswith('"'):
            caption += "."  # all in quotes, it could be what a writer of CSV made
        cells = cells | {"caption": caption}
        return caption, "\t".join(cells[name] for name in names), True

    rows = make_rows(draw, names, write)
    end = draw.choice(LINE_ENDS)
    text = written(draw, "\t".join(names), rows, end)
    lines = [line.split("\t") for line in text.removeprefix("\ufeff").split(end) if line.strip(" ")]
    assert lines == [names, *([row.cells[name] for name in names] for row in rows)]
    return Table("d.tsv", text, rows)


def sloppy_table(draw: random.Random, delimiter: str) -> Table:
    names = columns_of(draw)

    def write(cells: dict[str, str]) -> tuple[str, str, bool]:
        caption, text, is_certain = draw.choice(SLOPPY)(draw, delimiter)
        written = delimiter.join((cells | {"caption": text})[name] for name in names)
        kind = draw.random()
        if kind < 0.05:
            return caption, cells["filepath"], False  # cells are missing
        if kind < 0.1:
            return caption, f"{written}{delimiter}more", False
        if kind < 0.2:
            # Empty cells, as spreadsheets add them; after a filled one a caption could be cut.
            last = max(names.index("filepath"), names.index("caption"))
            is_certain &= not any(cells[name] for name in names[last + 1 :])
            written += delimiter * draw.randint(1, 3)
        return caption, written, is_certain

    rows = make_rows(draw, names, write)
    text = written(draw, delimiter.join(names), rows, draw.choice(("\n", "\r\n")))
    return Table("d.csv", text, rows)


def written(draw: random.Random, header: str, rows: list[Row], end: str) -> str:
    parts = [draw.choice(("", "\ufeff")), header, end]
    for row in rows:
        parts += [draw.choice(("", "", "", end, f"  {end}")), row.text, end]
    if draw.random() < 0.3:
        parts.pop()  # the last line has no end
    return "".join(parts)


def read_by_the_rules(text: str, delimiter: str) -> list[list[str]]:
    """The rows of a table in RFC 4180: character by character, with nothing but its rules."""
    rows: list[list[str]] = []
    cells, cell, is_open, at = [], "", False, 0
    text = text.removeprefix("\ufeff")
    while at < len(text):
        character = text[at]
        at += 1
        if is_open:
            if character != '"':
                cell += character
            elif text[at : at + 1] == '"':
                cell += '"'
                at += 1
            else:
                is_open = False
        elif character == '"':
            assert not cell
            is_open = True
        elif character == delimiter:
            cells.append(cell)
            cell = ""
        elif character in "\r\n":
            if text[at - 1 : at + 1] == "\r\n":
                at += 1
            rows.append([*cells, cell])
            cells, cell = [], ""
        else:
            cell += character
    if cells or cell:
        rows.append([*cells, cell])
    return [row for row in rows if "".join(row).strip(" ") or len(row) > 1]


def make_table(number: int) -> Table:
    draw = random.Random(number)
    kind = number % 6
    if kind < 2:
        return by_the_rules_table(draw, draw.choice(",;|"))
    if kind == 2:
        return by_the_rules_table(draw, "\t")
    if kind == 3:
        return literal_table(draw)
    return sloppy_table(draw, draw.choice(",;|"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "im").mkdir()
    for image in range(IMAGES):
        (folder / "im" / f"{image}.jpg").touch()
    return folder


def read(path: Path) -> tuple[dict[str, tuple[str, ...]], int, str]:
    """(captions by key, number of counted rows, what was said)"""
    try:
        source = open_source(path)
    except UserError as error:
        counted = str(error).partition("(")[2].partition(" dropped")[0]
        return {}, int(counted or 0), str(error)
    found = {source.key(index): source.captions(index) for index in range(len(source))}
    assert len(found) == len(source)
    return found, source.dropped.total, str(dict(source.dropped))


@pytest.mark.parametrize("part", range(6))
def test_every_row_is_read_as_it_was_meant_or_counted(folder: Path, part: int) -> None:
    for number in range(part, TABLES, 6):
        table = make_table(number)
        path = folder / table.name
        path.write_bytes(table.text.encode())
        found, counted, said = read(path)
        story = f"table {number}:\n{table.text[:3000]!r}\nread: {found}\ncounted {counted}: {said}"
        for row in table.rows:
            image, caption = row.cells["filepath"], row.cells["caption"]
            if image in found:
                assert found[image] == (caption,), story
            elif caption.strip() and len(caption) < 131_072:
                assert not row.is_certain, f"{image} is lost; {story}"
        assert len(found) + counted == len(table.rows), story
