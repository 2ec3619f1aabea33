"""Quotes, delimiters and line ends of CSV and TSV files, each as people and programs write them."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import pytest
from pictures import encode, photo

from clip_jax.data.records import Source
from clip_jax.data.sources import open_source
from clip_jax.data.sources.delimited import Broken, Lines, Shape, read_rows
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import read_classnames, read_lines

JPEG = encode(photo(8, 6), "JPEG")


def opened(folder: Path, text: str | bytes, name: str = "d.csv", **options: Any) -> Source:
    for number in range(9):
        (folder / f"{number}.jpg").write_bytes(JPEG)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(folder / name, **options)


def captions(source: Source) -> dict[str, str]:
    return {source.key(index): source.captions(index)[0] for index in range(len(source))}


# In the second of three rows: how it is written, and what is read; None where it is counted.
CELLS = [
    ("a cat", "a cat"),
    ('"a cat, on a mat"', "a cat, on a mat"),
    ('"a ""red"" cat, on a mat"', 'a "red" cat, on a mat'),
    ('"""Twin Peaks"", a scene"', '"Twin Peaks", a scene'),
    ('"two\nlines"', "two\nlines"),
    ('"two\r\n\r\nlines, and more"', "two\r\n\r\nlines, and more"),
    (' "a cat, on a mat"', "a cat, on a mat"),
    ('\t"a cat, on a mat"  ', "a cat, on a mat"),
    (' "two\nlines"', "two\nlines"),
    ('"a cat, on a mat" ', "a cat, on a mat"),
    (r'"a \"red\" cat, sitting"', 'a "red" cat, sitting'),
    (r'"\"Twin Peaks\", a scene"', '"Twin Peaks", a scene'),
    (r'"a \"red\" C:\\pets"', 'a "red" C:\\pets'),
    ('"a \\"red\\" cat,\nsitting"', 'a "red" cat,\nsitting'),
    (r'"in C:\pets\"', "in C:\\pets\\"),
    (r'"in C:\\pets"', "in C:\\\\pets"),
    ('said "yes" today', 'said "yes" today'),
    ('a 12" pan', 'a 12" pan'),
    ('a 5" by 7" print', 'a 5" by 7" print'),
    ('"Twin Peaks" scene', '"Twin Peaks" scene'),
    (' "Twin Peaks" scene', ' "Twin Peaks" scene'),
    ("a cat\ron a mat", "a cat\ron a mat"),
    ("a cat\0on a mat", "a cat\0on a mat"),
    ("a cat\u2028on a mat\x0c\x85", "a cat\u2028on a mat\x0c\x85"),
    ("a cat,", "a cat"),
    ("a cat,,, ", "a cat"),
    ("a cat, on a mat", None),
    ("a cat, on a mat,", None),
    ('said "yes, of course" and left', None),
    ('"Twin Peaks" scene, part one', None),
    ('"Twin Peaks", a scene', None),
    ('"a "red" cat"', None),
    ('"a "red" cat, sitting"', None),
    ('"never closed', None),
    ('"never closed, of two', None),
    (' "never closed', None),
    ('"', None),
    ('"a 12"" pan', None),
    ('"' + "x" * 131_073 + '"', None),
    ("x" * 131_073, None),
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("written", "read"), CELLS, ids=[cell[0][:20] for cell in CELLS])
def test_a_cell_is_read_as_it_was_meant_or_counted(
    tmp_path: Path, written: str, read: str | None, end: str
) -> None:
    rows = ["path,caption", "0.jpg,zero", f"1.jpg,{written}", '2.jpg,"two, of two"', "3.jpg,three"]
    source = opened(tmp_path, end.join([*rows, ""]))
    meant = {"0.jpg": "zero", "1.jpg": read, "2.jpg": "two, of two", "3.jpg": "three"}
    assert captions(source) == {image: text for image, text in meant.items() if text is not None}
    assert source.dropped.counts == ({} if read is not None else {"row_malformed": 1})
    if read is None:
        assert list(source.dropped) == ["row 3"]


P, Q = "path,caption\n", "filepath,caption"
HEADERS = ('"path","caption"', " path , caption ", "\n \npath,caption", '"path", "caption"')
# Text of a table; captions by image; rows that are counted.
TABLES: list[tuple[str, dict[int, str], list[int]]] = [
    # Rows are named by their lines.
    (
        '\npath,caption\n\n0.jpg,"two\nlines"\n1.jpg,a,b\n  \n2.jpg\n3.jpg,"open\n4.jpg,four\n',
        {0: "two\nlines", 4: "four"},
        [6, 8, 9],
    ),
    # Lines of a caption that look like rows are read as rows.
    (P + '0.jpg,"see\n1.jpg,one\n2.jpg,a 12"\n3.jpg,x\n', {1: "one", 2: 'a 12"', 3: "x"}, [2]),
    # The rest of a broken caption is no row.
    (P + '0.jpg,"he said "hi"\nand left, slowly"\n1.jpg,one\n', {1: "one"}, [2, 3]),
    # A quote without end before the path.
    (
        'caption,path\nzero,0.jpg\n"one,1.jpg\ntwo,2.jpg\n"three\nno,\nmore",3.jpg\na 12",4.jpg',
        {0: "zero", 2: "two", 3: "three\nno,\nmore", 4: 'a 12"'},
        [3],
    ),
    (
        'id,caption,path,note\n7,zero,0.jpg,web\n7,"one,1.jpg,web\n7,two,2.jpg,web\n',
        {0: "zero", 2: "two"},
        [3],
    ),
    # Columns after the caption may be missing or empty.
    ("path,caption,source\n1.jpg,a cat,web\n", {1: "a cat"}, []),
    ("path,caption,source\n1.jpg,a cat\n", {1: "a cat"}, []),
    ("path,caption,source\n1.jpg,a cat,,\n", {1: "a cat"}, []),
    ("path,caption,source\n1.jpg,a cat, on a mat,web\n2.jpg,x", {2: "x"}, [2]),
    ("path,caption,source\n1.jpg,a cat, on a mat,\n2.jpg,x", {2: "x"}, [2]),  # or no source
    ("path,caption,source\n1.jpg\n2.jpg,x", {2: "x"}, [2]),
    ('path,caption,source\n1.jpg,"a\\"",b"\n2.jpg,x', {2: "x"}, [2]),  # one cell or two
    # One stray quote leaves a quoted file of tabs quoted.
    (
        'path\ttitle\n0.jpg\t"a ""red"" cat"\n1.jpg\t"open\n2.jpg\t"a\tb"\n3.jpg\tx\n4.jpg\ta\tb',
        {0: 'a "red" cat', 2: "a\tb", 3: "x"},
        [3, 6],
    ),
    # Other line ends, also in the same file.
    ((P + "0.jpg,a\n\n1.jpg,b\n   \n").replace("\n", "\r\r\n"), {0: "a", 1: "b"}, []),
    (
        P + "0.jpg,a\r\n1.jpg,b\r2.jpg,c\r3.jpg,d\n4.jpg,e\rf\n",
        {0: "a", 1: "b", 2: "c", 3: "d", 4: "e\rf"},
        [],
    ),
    # Headers; a delimiter after one names no column.
    *((f"{header}\n0.jpg,zero\n1.jpg,one\n", {0: "zero", 1: "one"}, []) for header in HEADERS),
    ('"path","caption","a; b; c; d"\n0.jpg,zero\n', {0: "zero"}, []),
    (f"{Q},\n0.jpg,a cat, on a mat\n1.jpg,dog,\n", {1: "dog"}, [2]),
    (f"{Q},\n0.jpg,a cat,\n1.jpg,dog,\n", {0: "a cat", 1: "dog"}, []),
    (f"{Q},\n0.jpg,a cat\n1.jpg,dog,\n", {0: "a cat", 1: "dog"}, []),
    (f"{Q}, ,\n0.jpg,a cat, on a mat\n1.jpg,dog,\n", {1: "dog"}, [2]),
    (f'{Q},""\n0.jpg,"a cat, on a mat",\n', {0: "a cat, on a mat"}, []),
    ("caption;filepath;\na cat;0.jpg;\n", {0: "a cat"}, []),
    (f",{Q},\n7,0.jpg,a cat, on a mat\n8,1.jpg,dog,\n", {1: "dog"}, [2]),
    (f",{Q}\n7,0.jpg,a cat\n", {0: "a cat"}, []),
]


@pytest.mark.parametrize(("text", "read", "counted"), TABLES)
@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
def test_a_table_is_read_as_it_was_meant(
    tmp_path: Path, name: str, text: str, read: dict[int, str], counted: list[int]
) -> None:
    source = opened(tmp_path, text, name)
    assert captions(source) == {f"{image}.jpg": caption for image, caption in read.items()}
    assert list(source.dropped) == [f"row {row}" for row in counted]


def test_the_reasons_of_rows(tmp_path: Path) -> None:
    rows = ["1.jpg,a,b", "2.jpg", '3.jpg,"open', "4.jpg,four", "a cat,web"]
    source = opened(tmp_path, P + "\n".join(rows))
    assert dict(source.dropped) == {
        "row 2": "3 cells where the header has 2 (quotes missing?)",
        "row 3": "1 of 2 columns",
        "row 4": "a quote is never closed, or not where a cell ends",
    }
    assert source.key(1) == "a cat"  # no image of this name, which is found when it is read


LITERAL = [
    ('"Twin Peaks" scene, part one', '"unclosed quote', 'said "yes" today'),
    ('"', '""', "a cat"),
    (' "a cat"', '" ', "a\rdog"),
    ('a \\"red\\" cat', '"a \\"', "x"),
    ('5"', '"7"" wide', '12" x 12"'),
]
QUOTED = [("a\tcat", "a dog", "said no"), ('a "red" cat', "two\r\nlines\tand more", '"')]


@pytest.mark.parametrize("texts", [*LITERAL, *QUOTED])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tabs_are_read_literally_or_as_csv(
    tmp_path: Path, texts: tuple[str, ...], end: str
) -> None:
    stream = io.StringIO()
    if texts in QUOTED:
        writer = csv.writer(stream, delimiter="\t", lineterminator=end)
        writer.writerows([("filepath", "title"), *((f"{n}.jpg", t) for n, t in enumerate(texts))])
    else:
        lines = ["filepath\ttitle", *(f"{n}.jpg\t{text}" for n, text in enumerate(texts)), ""]
        stream.write(end.join(lines))
    for name in ("d.tsv", "d.csv", "d.txt"):
        source = opened(tmp_path, stream.getvalue(), name)
        assert captions(source) == {f"{n}.jpg": text for n, text in enumerate(texts)}
        assert source.dropped.total == 0


BROKEN = [
    'id{},"unclosed "a" 5 quote',
    'id{},"unclosed',
    'id{},"a ""b"" c',
    'id{}, "x \\" y',
    'id{},"a\nsay ""yes"" and',
    'id{},"a ""b"", c\nd, ""e""',
]


@pytest.mark.parametrize("row", BROKEN)
def test_many_broken_rows_take_a_time_that_grows_with_their_number(row: str) -> None:
    shape = Shape(width=2, needed=2, image_at=0, is_image=lambda cell: cell.endswith(".jpg"))
    text = "".join(f"{row.format(number)}\n" for number in range(3000))
    start = time.process_time()
    rows = list(read_rows(Lines(io.StringIO(text)), ",", shape))
    assert time.process_time() - start < 2
    assert len(rows) == text.count("\n")
    assert all(isinstance(row.cells, Broken) for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", "filepath,caption\n0.jpg,日本の猫が座っている\n"),
        ("d.tsv", "filepath\tcaption\n0.jpg\ta cat\n"),
        ("d.jsonl", '{"image": "0.jpg", "caption": "日本"}\n'),
        ("d.json", '[{"image": "0.jpg", "caption": "a cat"}]'),
        ("d.txt", "0.jpg#0\ta cat\n"),
        ("names.txt", "a cat\nlarge dog\n"),  # of classes
        ("0.txt", "a cat\nlarge dog\n"),  # beside its image
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named(
    tmp_path: Path, name: str, text: str, encoding: str, mark: str
) -> None:
    (tmp_path / "0.jpg").write_bytes(JPEG)
    (tmp_path / name).write_bytes((mark + text).encode(encoding))
    read = read_lines if name == "names.txt" else open_source
    known = encoding[:6].upper()
    message = rf"{name}:? .*is {known}; save it as UTF-8 \(iconv -f {known}.* -t UTF-8"
    with pytest.raises(UserError, match=message):
        read(tmp_path if name == "0.txt" else tmp_path / name)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_line_ends_of_a_file_of_names(tmp_path: Path, end: str) -> None:
    (tmp_path / "names.txt").write_bytes(end.join(["cat", "a\x0bdog", "hen", ""]).encode())
    assert read_classnames(tmp_path / "names.txt") == ("cat", "a\x0bdog", "hen")
    (tmp_path / "names.txt").write_bytes(end.join(["cat", "", "hen"]).encode())
    with pytest.raises(UserError, match="line 2: empty"):
        read_classnames(tmp_path / "names.txt")
