"""Quotes, delimiters and line ends of CSV and TSV files, each as people and programs write them."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import pytest
from dataset_tools_runs import run
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


@pytest.mark.parametrize("head", ["caption,path", "id,caption,path,note"])
def test_a_quote_without_end_where_the_image_comes_last(tmp_path: Path, head: str) -> None:
    def row(image: int, caption: str) -> str:
        cells = {"id": "7", "path": f"{image}.jpg", "caption": caption, "note": "web"}
        return ",".join(cells[name] for name in head.split(","))

    texts = ["zero", '"one', "two", '"three\nlines, no\nmore"', "four", 'a 12" pan']
    source = opened(tmp_path, "\n".join([head, *(row(n, text) for n, text in enumerate(texts))]))
    assert list(source.dropped) == ["row 3"]
    assert captions(source) == {
        **{"0.jpg": "zero", "2.jpg": "two", "3.jpg": "three\nlines, no\nmore"},
        **{"4.jpg": "four", "5.jpg": 'a 12" pan'},
    }


def test_rows_are_named_by_their_lines(tmp_path: Path) -> None:
    text = '\npath,caption\n\n0.jpg,"two\nlines"\n1.jpg,a,b\n  \n2.jpg\n3.jpg,"open\n4.jpg,four\n'
    source = opened(tmp_path, text)
    assert dict(source.dropped) == {
        "row 6": "3 cells where the header has 2 (quotes missing?)",
        "row 8": "1 of 2 columns",
        "row 9": "a quote is never closed, or not where a cell ends",
    }
    assert captions(source) == {"0.jpg": "two\nlines", "4.jpg": "four"}


def test_lines_of_a_caption_that_look_like_rows_are_read_as_rows(tmp_path: Path) -> None:
    source = opened(tmp_path, 'path,caption\n0.jpg,"see\n1.jpg,one\n2.jpg,a 12"\n3.jpg,three\n')
    assert captions(source) == {"1.jpg": "one", "2.jpg": 'a 12"', "3.jpg": "three"}
    assert list(source.dropped) == ["row 2"]


def test_what_is_left_of_a_broken_caption_is_no_row(tmp_path: Path) -> None:
    text = 'path,caption\n0.jpg,"he said "hi"\nand left, slowly"\n1.jpg,one\n'
    source = opened(tmp_path, text)
    assert captions(source) == {"1.jpg": "one"}
    assert source.dropped.counts == {"row_malformed": 2}


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ("1.jpg,a cat,web", "a cat"),
        ("1.jpg,a cat", "a cat"),
        ("1.jpg,a cat,,", "a cat"),
        ("1.jpg,a cat, on a mat,web", None),
        ("1.jpg,a cat, on a mat,", None),  # its source is empty
        ("1.jpg", None),
        ("a cat,web", "nothing"),  # no image of this name, which is found when it is read
    ],
)
def test_optional_columns(tmp_path: Path, row: str, read: str | None) -> None:
    source = opened(tmp_path, f"path,caption,source\n0.jpg,zero,web\n{row}\n")
    if read == "nothing":
        assert (source.key(1), source.dropped.total) == ("a cat", 0)
        return
    assert captions(source).get("1.jpg") == read
    assert source.dropped.total == (read is None)


LITERAL = [
    ('"Twin Peaks" scene, part one', '"unclosed quote', 'said "yes" today'),
    ('"Twin Peaks"', "a cat", "a dog"),
    ('"', '""', "a cat"),
    ('"a" "b"', '"c', 'd"'),
    (' "a cat"', '" ', "a\rdog"),
    ('a \\"red\\" cat', '"a \\"', "x"),
    ('5"', '"7"" wide', '12" x 12"'),
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["d.tsv", "d.csv", "d.txt"])
@pytest.mark.parametrize("texts", LITERAL)
def test_tabs_are_read_literally(
    tmp_path: Path, texts: tuple[str, ...], name: str, end: str
) -> None:
    rows = ["filepath\ttitle", *(f"{n}.jpg\t{text}" for n, text in enumerate(texts))]
    source = opened(tmp_path, end.join([*rows, ""]), name)
    assert captions(source) == {f"{n}.jpg": text for n, text in enumerate(texts)}
    assert source.dropped.total == 0


QUOTED = [
    ('"Twin Peaks" scene', "a cat", "a dog"),
    ("a\tcat", "a dog", "said no"),
    ("two\nlines", "a dog", "more"),
    ('"', '""', 'a 12" pan'),
    ('a "red" cat', "two\r\nlines\tand more", '"'),
]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("texts", [*QUOTED, ("a", "b", "c")])
def test_tabs_with_plain_quotes_are_read_as_csv(
    tmp_path: Path, texts: tuple[str, ...], quoting: Any
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", quoting=quoting, lineterminator="\n")
    writer.writerow(["id", "filepath", "title"])
    writer.writerows((n, f"{n}.jpg", text) for n, text in enumerate(texts))
    source = opened(tmp_path, stream.getvalue(), "d.tsv")
    assert captions(source) == {f"{n}.jpg": text for n, text in enumerate(texts)}
    assert source.metadata(1) == {"id": "1"}


def test_one_stray_quote_leaves_a_quoted_file_of_tabs_quoted(tmp_path: Path) -> None:
    rows = [
        '0.jpg\t"a ""red"" cat"',
        '1.jpg\t"open',
        '2.jpg\t"a\tb"',
        "3.jpg\tthree",
        "4.jpg\ta\tb",
    ]
    source = opened(tmp_path, "\n".join(["path\ttitle", *rows]), "d.tsv")
    assert captions(source) == {"0.jpg": 'a "red" cat', "2.jpg": "a\tb", "3.jpg": "three"}
    assert list(source.dropped) == ["row 3", "row 6"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_line_ends_and_delimiters(tmp_path: Path, end: str, delimiter: str, bom: str) -> None:
    rows = ["path,caption", "0.jpg,zero", "", "1.jpg,one", "   ", "2.jpg,two"]
    text = bom + end.join(rows).replace(",", delimiter)
    source = opened(tmp_path, text)
    assert captions(source) == {"0.jpg": "zero", "1.jpg": "one", "2.jpg": "two"}
    assert source.dropped.total == 0


def test_other_line_ends_in_the_same_file(tmp_path: Path) -> None:
    source = opened(tmp_path, "path,caption\n0.jpg,a\r\n1.jpg,b\r2.jpg,c\r3.jpg,d\n4.jpg,e\rf\n")
    assert list(captions(source).values()) == ["a", "b", "c", "d", "e\rf"]


HEADERS = [
    '"path","caption"',
    " path , caption ",
    "\n \npath,caption",
    '"path", "caption"',
    '"path","caption","a; b; c; d"',
    "a;b|path,caption",
]


@pytest.mark.parametrize("header", HEADERS[:5])
def test_headers(tmp_path: Path, header: str) -> None:
    source = opened(tmp_path, f"{header}\n0.jpg,zero\n1.jpg,one\n")
    assert captions(source) == {"0.jpg": "zero", "1.jpg": "one"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADERS[5], "its columns are: a;b|path, caption"),
        ('path,"caption', 'its columns are: path, "caption'),
        ("", r"its columns are: \(none\)"),
        ("\n\n", r"its columns are: \(none\)"),
    ],
)
def test_bad_headers(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(tmp_path, f"{header}\n" if header.strip() else header)


def test_a_tsv_that_has_commas(tmp_path: Path) -> None:
    assert captions(opened(tmp_path, "path,caption\n0.jpg,zero\n", "d.tsv")) == {"0.jpg": "zero"}


UTF16 = ["utf-16", "utf-16-le", "utf-16-be"]


@pytest.mark.parametrize("encoding", UTF16)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", "filepath,caption\n0.jpg,日本の猫が座っている\n"),
        ("d.tsv", "filepath\tcaption\n0.jpg\ta cat\n"),
        ("d.jsonl", '{"image": "0.jpg", "caption": "日本"}\n'),
        ("d.json", '[{"image": "0.jpg", "caption": "a cat"}]'),
        ("d.txt", "0.jpg#0\ta cat\n"),
    ],
)
def test_utf16_is_named(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    message = r"d\.\w+ is UTF-16; save it as UTF-8 \(iconv -f UTF-16(LE|BE)? -t UTF-8\)"
    with pytest.raises(UserError, match=message):
        opened(tmp_path, text.encode(encoding), name)


@pytest.mark.parametrize("row", ['1.jpg,"never closed', "1.jpg,a cat, on a mat", "1.jpg"])
def test_verify_names_the_row(tmp_path: Path, row: str, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path, f"path,caption\n0.jpg,zero\n{row}\n2.jpg,two\n")
    ended = run(capsys, "verify", f"--data={tmp_path / 'd.csv'}", "--workers=0")
    assert ended.code == 1
    assert "bad: row 3: " in ended.out
    assert "3 samples: 2 good, 1 bad (1 row_malformed)" in ended.out


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
def test_labels(tmp_path: Path, name: str) -> None:
    rows = [
        *[("0.jpg", "dog", "Dog"), ("0.jpg", "dog again", "Dog"), ("0.jpg", "a cat", "Cat")],
        *[("1.jpg", "", "Cat"), ("0.jpg", "no label", ""), ("1.jpg", "", "Dog")],
    ]
    if name == "d.csv":
        text = "image,caption,Label\n" + "".join(",".join(row) + "\n" for row in rows)
    else:
        text = "".join(
            f'{{"image": "{image}", "caption": "{caption}", "Label": "{label}"}}\n'
            for image, caption, label in rows
        )
    source = opened(tmp_path, text, name, label_column="label", needs_captions=False)
    assert [source.captions(0), source.captions(1)] == [("dog", "dog again", "no label"), ()]
    assert [source.metadata(index)["label"] for index in range(2)] == ["Dog", "Cat"]
    assert source.dropped.counts == {"row_malformed": 2}
    reasons = list(source.dropped.values())
    assert reasons == [
        "label 'Cat' where the image's first row has 'Dog'",
        "label 'Dog' where the image's first row has 'Cat'",
    ]
    # Captions may be the labels, and labels may be missing.
    source = opened(tmp_path, text, name, label_column="caption", needs_captions=False)
    assert source.metadata(0)["caption"] == "dog"
    assert "nothing" not in opened(tmp_path, text, name, label_column="nothing").metadata(0)


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
def test_tables_without_captions(tmp_path: Path, name: str) -> None:
    text = "image,label\n0.jpg,dog\n1.jpg,\n"
    if name == "d.jsonl":
        text = '{"image": "0.jpg", "label": "dog"}\n{"image": "1.jpg"}\n'
    source = opened(tmp_path, text, name, needs_captions=False)
    assert [source.captions(index) for index in range(2)] == [(), ()]
    assert source[0].captions == ()
    assert source.metadata(0) == {"label": "dog"}
    with pytest.raises(UserError, match="none of caption"):
        opened(tmp_path, text, name)


def test_lines_that_are_given_back_come_again() -> None:
    lines = Lines(["a", "b", "c"])
    assert [next(lines), next(lines), lines.number] == ["a", "b", 2]
    lines.give_back(["a", "b"])
    assert [next(lines), lines.number, *lines] == ["a", 1, "b", "c"]


@pytest.mark.parametrize(
    ("header", "row", "read"),
    [
        ("filepath,caption,", "0.jpg,a cat, on a mat", None),
        ("filepath,caption,", "0.jpg,a cat,", "a cat"),
        ("filepath,caption,", "0.jpg,a cat", "a cat"),
        ("filepath,caption, ,", "0.jpg,a cat, on a mat", None),
        ('filepath,caption,""', '0.jpg,"a cat, on a mat",', "a cat, on a mat"),
        ("caption;filepath;", "a cat;0.jpg;", "a cat"),
        (",filepath,caption,", "7,0.jpg,a cat, on a mat", None),
        (",filepath,caption", "7,0.jpg,a cat", "a cat"),
    ],
)
def test_a_delimiter_after_the_header_names_no_column(
    tmp_path: Path, header: str, row: str, read: str | None
) -> None:
    delimiter = ";" if ";" in header else ","
    last = "dog;1.jpg" if header.startswith("caption") else "1.jpg,dog"
    last = f"8,{last}" if header.startswith(",") else last
    source = opened(tmp_path, f"{header}\n{row}\n{last}{delimiter}\n", needs_captions=True)
    expected = {"1.jpg": "dog"} if read is None else {"0.jpg": read, "1.jpg": "dog"}
    assert captions(source) == expected
    assert source.dropped.counts == ({"row_malformed": 1} if read is None else {})


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


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "names.txt", "0.txt"])
@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be", "big-endian mark"])
def test_utf32_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    text = "image,caption\n0.jpg,a cat\n" if name[0] == "d" else "a cat\nlarge dog\n"
    if name.endswith("jsonl"):
        text = '{"image": "0.jpg", "caption": "a cat"}\n'
    data = text.encode("utf-32-be" if "big" in encoding else encoding)
    data = (b"\0\0\xfe\xff" if "big" in encoding else b"") + data
    (tmp_path / "0.jpg").write_bytes(JPEG)
    (tmp_path / name).write_bytes(data)
    read = read_lines if name == "names.txt" else open_source
    path = tmp_path if name == "0.txt" else tmp_path / name
    message = rf"{name}:? .*is UTF-32; save it as UTF-8 \(iconv -f UTF-32"
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_line_ends_of_a_file_of_names(tmp_path: Path, end: str) -> None:
    (tmp_path / "names.txt").write_bytes(end.join(["cat", "a\x0bdog", "hen", ""]).encode())
    assert read_classnames(tmp_path / "names.txt") == ("cat", "a\x0bdog", "hen")
    (tmp_path / "names.txt").write_bytes(end.join(["cat", "", "hen"]).encode())
    with pytest.raises(UserError, match="line 2: empty"):
        read_classnames(tmp_path / "names.txt")
