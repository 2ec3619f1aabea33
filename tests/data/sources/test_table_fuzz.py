"""600 random tables: every row is read as its writer meant it, or counted; none lost or merged.

Rows are made first and then written by Python's writer (RFC 4180), without quotes between tabs, or
as people and scripts do.
"""

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from clip_jax.data.sources import open_source
from clip_jax.errors import UserError

TABLES = 600
IMAGES = 12  # in the folder; each row of a table has another
WORDS = ["a", "cat", "café", "日本", "\U0001f600", "12", "C:\\pets", "it's", "–", "#0", " ", "  "]
WORDS += ["\t", '"', '""', '"yes"', '12"', ",", ", ", ";", "|", "\x0b", "\x00", "\u2028"]


class Row(NamedTuple):
    image: str
    caption: str
    text: str
    is_certain: bool  # the row must be read; otherwise it may be counted


# (draw, other cells by column) -> (caption, text of the row, whether it is certain)
Write = Callable[[random.Random, dict[str, str]], tuple[str, str, bool]]


def caption_of(draw: random.Random, extra: tuple[str, ...] = (), without: str = "") -> str:
    words = [draw.choice((*WORDS, *extra)) for _ in range(draw.randint(0, 7))]
    text = draw.choice(("", " ")).join(words)
    if draw.random() < 0.002:
        text += "x" * 140_000
    return "".join(character for character in text if character not in without)


def by_the_rules(cells: list[str], delimiter: str, is_quoted: bool) -> str:
    stream = io.StringIO()
    quoting = csv.QUOTE_ALL if is_quoted else csv.QUOTE_MINIMAL
    csv.writer(stream, delimiter=delimiter, quoting=quoting).writerow(cells)
    return stream.getvalue().removesuffix("\r\n")


def rules(delimiter: str, is_quoted: bool) -> Write:
    def write(draw: random.Random, cells: dict[str, str]) -> tuple[str, str, bool]:
        inside = ("\n", "\r\n", "\r", delimiter, "\\")
        caption = caption_of(draw, inside).replace('\\"', '"')
        # One quoted caption tells nothing about a file of tabs; a doubled quote does.
        caption += ' "red"' if delimiter == "\t" else ""
        line = [*(cells | {"caption": caption}).values()]
        return caption, by_the_rules(line, delimiter, is_quoted), True

    return write


def literal(draw: random.Random, cells: dict[str, str]) -> tuple[str, str, bool]:
    caption = caption_of(draw, ("\\",), without="\t")
    if caption.strip().startswith('"') and caption.strip().endswith('"'):
        caption += "."  # all in quotes, it could be what a writer of CSV made
    return caption, "\t".join((cells | {"caption": caption}).values()), True


def sloppy_caption(draw: random.Random, delimiter: str) -> tuple[str, str, bool]:
    """(caption, how a person or a script writes it, whether it must be read)"""
    plain = caption_of(draw, without="\\")
    said = f'"{draw.choice(("Yes", "No"))}" {draw.choice(("she said", "scene", "12"))}'
    unclosed = '"' + caption_of(draw, without='"\t,;|\\') + "."
    inside = f"a cat{delimiter}{draw.choice((' ', ''))}on {caption_of(draw, without=chr(34))}"
    over = f'she said "yes{delimiter} of course" and left'
    wrapped = f'he said "hi{draw.choice(("", delimiter))}" to {draw.choice(("me", "a cat"))}'
    inches = draw.choice(('a 12" pan', 'a 5" by 7" print', 'said "yes" today', 'a 12"'))
    blanks = draw.choice((" ", "  ")) + by_the_rules([plain], delimiter, True)
    backslashes = f'a "red"{plain} cat{delimiter} sitting'
    escaped = '"' + backslashes.replace('"', '\\"') + '"'
    well = caption_of(draw, ("\n", "\r\n", delimiter), without="\\")
    by_rule = (well, by_the_rules([well], delimiter, draw.random() < 0.5), True)
    sure = [(said, said), (inches, inches), (plain, blanks), (backslashes, escaped)]
    perhaps = [(text, text) for text in (unclosed, inside, over)] + [(wrapped, f'"{wrapped}"')]
    return draw.choice(
        [by_rule] * 2 + [(*pair, True) for pair in sure] + [(*pair, False) for pair in perhaps]
    )


def sloppy(delimiter: str) -> Write:
    def write(draw: random.Random, cells: dict[str, str]) -> tuple[str, str, bool]:
        caption, text, is_certain = sloppy_caption(draw, delimiter)
        line = delimiter.join((cells | {"caption": text}).values())
        kind = draw.random()
        if kind < 0.05:
            return caption, cells["filepath"], False  # cells are missing
        if kind < 0.1:
            return caption, f"{line}{delimiter}more", False
        if kind < 0.2:
            # Empty cells, as spreadsheets add them; after a filled one a caption could be cut.
            names = [*cells]
            last = max(names.index("filepath"), names.index("caption"))
            is_certain &= not any(cells[name] for name in names[last + 1 :])
            line += delimiter * draw.randint(1, 3)
        return caption, line, is_certain

    return write


def make_table(number: int) -> tuple[str, str, list[Row]]:
    """(name of the file, its text, its rows)"""
    draw = random.Random(number)
    delimiter, is_quoted = draw.choice(",;|"), draw.random() < 0.3
    ends: tuple[str, ...] = ("\n", "\r\n", "\r")
    write, name = rules(delimiter, is_quoted), "d.csv"
    if number % 6 == 2:
        delimiter, write, name = "\t", rules("\t", is_quoted), "d.tsv"
    elif number % 6 == 3:
        delimiter, write, name, is_quoted = "\t", literal, "d.tsv", False
    elif number % 6 > 3:
        write, ends, is_quoted = sloppy(delimiter), ends[:2], False
    names = ["filepath", "caption", *draw.sample(["id", "note", "source"], draw.randint(0, 2))]
    draw.shuffle(names)
    end = draw.choice(ends)
    parts, rows = [draw.choice(("", "\ufeff")), by_the_rules(names, delimiter, is_quoted), end], []
    for image in draw.sample(range(IMAGES), draw.randint(1, IMAGES)):
        cells = {column: draw.choice(("", "7", "web")) for column in names}
        cells["filepath"] = f"im/{image}.jpg"
        rows.append(Row(cells["filepath"], *write(draw, cells)))
        parts += [draw.choice(("", "", "", end, f"  {end}")), rows[-1].text, end]
    if draw.random() < 0.3:
        parts.pop()  # the last line has no end
    return name, "".join(parts), rows


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
        name, text, rows = make_table(number)
        (folder / name).write_bytes(text.encode())
        found, counted, said = read(folder / name)
        story = f"table {number}:\n{text[:3000]!r}\nread: {found}\ncounted {counted}: {said}"
        for image, caption, _, is_certain in rows:
            if image in found:
                assert found[image] == (caption,), story
            elif caption.strip() and len(caption) < 131_072:
                assert not is_certain, f"{image} is lost; {story}"
        assert len(found) + counted == len(rows), story
