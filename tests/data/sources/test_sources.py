"""Folders, tables and archives made on the spot, good and bad."""

import io
import json
import logging
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.sources import open_source
from clip_jax.errors import DecodeError, UserError
from clip_jax.images.decoding import decode


def png(colour=(200, 30, 30), size=(8, 6)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def write(path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_tar(path, members, format=tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def keys(source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


class TestFolder:
    def test_captions_beside_images_win_over_the_class(self, tmp_path):
        write(tmp_path / "b" / "2.png", png())
        write(tmp_path / "b" / "2.txt", "a cat\n\n  a small cat \n")
        write(tmp_path / "tabby_cat-x" / "1.PNG", png())
        write(tmp_path / "a.jpg", png())
        write(tmp_path / "a.txt", "\ufeffan apple")
        write(tmp_path / "notes.md", "not an image")
        write(tmp_path / ".hidden" / "x.png", png())
        source = open_source(tmp_path)
        assert keys(source) == ["a.jpg", "b/2.png"]
        assert source.captions(0) == ("an apple",)
        assert source.captions(1) == ("a cat", "a small cat")
        assert source.metadata(1) == {}
        assert source[1].image == png()
        # The other images have captions, so that its folder is no class.
        assert source.dropped.counts == {"caption_missing": 1}
        assert "2 other images have" in source.dropped["tabby_cat-x/1.PNG"]

    def test_classes(self, tmp_path):
        write(tmp_path / "tabby_cat-x" / "1.PNG", png())
        write(tmp_path / "dog" / "2.png", png())
        source = open_source(tmp_path)
        assert keys(source) == ["dog/2.png", "tabby_cat-x/1.PNG"]
        assert source.captions(1) == ("a photo of a tabby cat x.",)
        assert source.metadata(1) == {"class": "tabby cat x"}

    def test_template(self, tmp_path):
        write(tmp_path / "dog" / "1.png", png())
        assert open_source(tmp_path, caption_template="{}, a pet").captions(0) == ("dog, a pet",)
        with pytest.raises(UserError, match="caption_template 'a pet'"):
            open_source(tmp_path, caption_template="a pet")

    def test_without_caption_dropped(self, tmp_path, caplog):
        write(tmp_path / "root.png", png())
        write(tmp_path / "dog" / "1.png", png())
        write(tmp_path / "dog" / "1.txt", "a dog")
        write(tmp_path / "dog" / "2.png", png())
        write(tmp_path / "dog" / "2.txt", " \n")
        write(tmp_path / "dog" / "3.png", png())
        write(tmp_path / "dog" / "3.txt", b"caf\xe9")
        with caplog.at_level(logging.WARNING):
            source = open_source(tmp_path)
        assert keys(source) == ["dog/1.png"]
        assert set(source.dropped) == {"root.png", "dog/2.png", "dog/3.png"}
        assert "UTF-8" in source.dropped["dog/3.png"]
        assert "1 samples kept, 3 dropped" in caplog.text

    def test_missing_empty_and_useless(self, tmp_path):
        with pytest.raises(UserError, match=r"nowhere.*does not exist"):
            open_source(tmp_path / "nowhere")
        with pytest.raises(UserError, match="not a folder"):
            open_source(tmp_path / "nowhere", format="folder")
        with pytest.raises(UserError, match="no image with a caption"):
            open_source(tmp_path)
        write(tmp_path / "root.png", png())
        with pytest.raises(UserError, match=r"root\.png"):
            open_source(tmp_path)

    def test_links_in_a_circle_end(self, tmp_path):
        write(tmp_path / "dog" / "1.png", png())
        os.symlink(tmp_path, tmp_path / "dog" / "again")
        assert len(open_source(tmp_path)) == 1

    def test_image_that_vanished_is_a_decode_error(self, tmp_path):
        write(tmp_path / "dog" / "1.png", png())
        source = open_source(tmp_path)
        (tmp_path / "dog" / "1.png").unlink()
        with pytest.raises(DecodeError, match=r"1\.png"):
            source[0]


class TestTable:
    def test_rows_of_one_image_are_one_record(self, tmp_path):
        write(tmp_path / "images" / "1.png", png())
        write(tmp_path / "images" / "2.png", png())
        table = (
            'id,Image,caption\n7,images/1.png,a cat\n8,images/2.png,"a, dog"\n9,images/1.png,two\n'
        )
        write(tmp_path / "data.csv", "\ufeff" + table)
        source = open_source(tmp_path / "data.csv")
        assert keys(source) == ["images/1.png", "images/2.png"]
        assert source.captions(0) == ("a cat", "two")
        assert source[1].captions == ("a, dog",)
        assert source.metadata(0) == {"id": "7"}
        assert source[0].image == png()

    @pytest.mark.parametrize(("name", "tab"), [("d.tsv", "\t"), ("d.csv", "\t"), ("e.csv", ";")])
    def test_delimiters_and_named_columns(self, tmp_path, name, tab):
        write(tmp_path / "1.png", png())
        write(tmp_path / name, f"where{tab}what{tab}title\n1.png{tab}a, b{tab}other\n")
        source = open_source(tmp_path / name, image_column="where", caption_column="what")
        assert source.captions(0) == ("a, b",)
        assert source.metadata(0) == {"title": "other"}

    def test_bad_rows_dropped(self, tmp_path):
        write(tmp_path / "1.png", png())
        write(tmp_path / "d.csv", "path,text\n1.png,  \n,lonely\n1.png\n1.png,good\n\n")
        source = open_source(tmp_path / "d.csv")
        assert source.captions(0) == ("good",)
        assert list(source.dropped) == ["row 2", "row 3", "row 4"]

    def test_bad_tables(self, tmp_path):
        write(tmp_path / "1.png", png())
        cases: dict[str, tuple[str | bytes, str]] = {
            "a.csv": ("photo,caption\n1.png,x\n", "photo, caption"),
            "b.csv": ("path,words\n1.png,x\n", "path, words"),
            "c.csv": ("", "columns are"),
            "d.csv": ("path,caption\n", "no row"),
            "e.csv": ("path,caption\nmissing.png,x\n", r"missing\.png"),
            "f.csv": ("path,caption\nhttps://example.org/1.png,x\n", "download"),
            "g.csv": (b"path,caption\n1.png,caf\xe9\n", "UTF-8"),
        }
        for name, (content, message) in cases.items():
            write(tmp_path / name, content)
            with pytest.raises(UserError, match=message):
                open_source(tmp_path / name)
        with pytest.raises(UserError, match=r"'nope'.*photo, caption"):
            open_source(tmp_path / "a.csv", image_column="nope")


class TestWebDataset:
    def test_members(self, tmp_path):
        members = [
            ("x/0.jpg", png((1, 2, 3))),
            ("x/0.txt", b"zero"),
            ("x/0.json", b'{"class": "nought"}'),
            ("1.cls", b"5\n"),
            ("1.mask.png", b"not this one"),
            ("1.PNG", png((4, 5, 6))),
            ("1.json", b'{"caption": "one", "n": 1}'),
            ("2.webp", png()),
            ("2.txt", b"two"),
            ("2.json", b"{broken"),
            ("ü" * 120 + "/3.png", png()),
            ("ü" * 120 + "/3.txt", b"three"),
            ("4.png", png()),
            ("4.txt", b"\xff\xfe"),
            ("5.txt", b"five"),
            ("6.png", png()),
        ]
        for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            write_tar(tmp_path / "a.tar", members, format)
            source = open_source(tmp_path / "a.tar")
            assert keys(source) == ["x/0", "1", "2", "ü" * 120 + "/3"]
            assert source.captions(0) == ("zero",)
            assert source.metadata(0) == {"class": "nought"}
            assert source[1].image == png((4, 5, 6))
            assert source.captions(1) == ("one",)
            assert source.metadata(1) == {"caption": "one", "n": 1, "cls": "5"}
            assert source.metadata(2) == {}
            assert set(source.dropped) == {"4", "5", "6"}

    def test_same_key_is_two_samples(self, tmp_path):
        first, second = png((9, 0, 0)), png((0, 9, 0))
        write_tar(
            tmp_path / "a.tar",
            [("0.png", first), ("0.txt", b"a"), ("0.png", second), ("0.txt", b"b")],
        )
        source = open_source(tmp_path / "a.tar")
        assert [(r.captions, r.image) for r in (source[0], source[1])] == [
            (("a",), first),
            (("b",), second),
        ]

    def test_paths(self, tmp_path):
        for shard in range(12):
            sample = f"{shard:03d}"
            members = [(f"{sample}.png", png()), (f"{sample}.txt", b"a")]
            write_tar(tmp_path / f"{shard:05d}.tar", members)
        everything = [f"{shard:03d}" for shard in range(12)]
        assert keys(open_source(tmp_path)) == everything
        assert keys(open_source(f"{tmp_path}/*.tar")) == everything
        assert keys(open_source(f"{tmp_path}/{{00008..00010}}.tar")) == everything[8:11]
        assert keys(open_source(f"{tmp_path}/{{00001,00003}}.tar")) == ["001", "003"]
        odd = tmp_path / "a,b{1..2}"
        odd.mkdir()
        (tmp_path / "00004.tar").rename(odd / "x.tar")
        assert keys(open_source(odd)) == keys(open_source(odd / "x.tar")) == ["004"]
        both = f"{tmp_path}/00007.tar,{tmp_path}/00002.tar"
        assert keys(open_source(both)) == ["007", "002"]
        with pytest.raises(UserError, match=r"00012\.tar"):
            open_source(f"{tmp_path}/{{00010..00012}}.tar")

    def test_truncated_archive_keeps_what_is_complete(self, tmp_path, caplog):
        members = [
            (f"{n}.{e}", png() if e == "png" else b"a") for n in range(4) for e in ("png", "txt")
        ]
        write_tar(tmp_path / "a.tar", members)
        whole = (tmp_path / "a.tar").read_bytes()
        # In the data of 3.png, in its header, and before any end mark: 1,024 bytes a member.
        for cut, kept in ((6 * 1024 + 600, 3), (6 * 1024 + 100, 3), (2 * 1024 + 520, 1)):
            (tmp_path / "a.tar").write_bytes(whole[:cut])
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                source = open_source(tmp_path / "a.tar")
            assert keys(source) == [str(n) for n in range(kept)]
            assert "a.tar is" in caplog.text
        (tmp_path / "a.tar").write_bytes(whole[: 8 * 1024])  # no end mark: common, and complete
        caplog.clear()
        source = open_source(tmp_path / "a.tar")
        assert (len(source), source.dropped.total) == (4, 0)
        assert "a.tar has no end mark and may be cut off" in caplog.text
        (tmp_path / "a.tar").write_bytes(whole[: 4 * 1024] + bytes(1024) + whole[5 * 1024 :])
        source = open_source(tmp_path / "a.tar")
        assert keys(source) == ["0", "1"]
        assert source.dropped.counts == {"shard_damaged": 1}
        assert "a.tar goes on after an end mark at byte 4096" in caplog.text

    def test_damaged_header_is_reported(self, tmp_path, caplog):
        members = [
            (f"{n}.{e}", png() if e == "png" else b"a") for n in range(4) for e in ("png", "txt")
        ]
        write_tar(tmp_path / "a.tar", members)
        data = bytearray((tmp_path / "a.tar").read_bytes())
        data[4 * 1024 : 4 * 1024 + 300] = b"\x55" * 300
        (tmp_path / "a.tar").write_bytes(bytes(data))
        with caplog.at_level(logging.WARNING):
            source = open_source(tmp_path / "a.tar")
        assert keys(source) == ["0", "1"]
        assert "damaged at byte 4096" in caplog.text

    def test_links_are_not_followed(self, tmp_path):
        write(tmp_path / "secret.png", png())
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo(f"{kind.decode()}.png")
                info.type, info.linkname = kind, str(tmp_path / "secret.png")
                archive.addfile(info)
                info = tarfile.TarInfo(f"{kind.decode()}.txt")
                info.size = 1
                archive.addfile(info, io.BytesIO(b"a"))
        with pytest.raises(UserError, match="no sample"):
            open_source(tmp_path / "a.tar")

    def test_no_tar(self, tmp_path):
        write(tmp_path / "a.tar", b"something else" * 100)
        with pytest.raises(UserError, match="not an uncompressed tar"):
            open_source(tmp_path / "a.tar")
        with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("x.txt"))
        with pytest.raises(UserError, match="not an uncompressed tar"):
            open_source(tmp_path / "b.tar")
        write(tmp_path / "c.tar", b"")
        with pytest.raises(UserError, match=r"c\.tar"):
            open_source(tmp_path / "c.tar")

    def test_archive_that_shrank_is_a_decode_error(self, tmp_path):
        write_tar(tmp_path / "a.tar", [("0.txt", b"a"), ("0.png", png())])
        source = open_source(tmp_path / "a.tar")
        os.truncate(tmp_path / "a.tar", 1024)
        with pytest.raises(DecodeError, match="0 cannot be read"):
            source[0]


def test_unknown_paths_and_formats(tmp_path):
    with pytest.raises(UserError, match=r"'excel'.*webdataset"):
        open_source(tmp_path, format="excel")
    write(tmp_path / "data.bin", b"x")
    with pytest.raises(UserError, match=r"data\.bin"):
        open_source(tmp_path / "data.bin")
    with pytest.raises(UserError, match="clip_jax\\[gcs\\]"):
        open_source("gs://bucket/a.tar")
    with pytest.raises(UserError, match="empty"):
        open_source("")


@pytest.fixture(params=["folder", "csv", "webdataset"])
def any_source(request, tmp_path):
    write(tmp_path / "pets" / "1.png", png((1, 1, 1)))
    write(tmp_path / "pets" / "2.png", png((2, 2, 2)))
    if request.param == "csv":
        write(tmp_path / "pets" / "d.csv", "path,caption\n1.png,a\n2.png,b\n")
        return open_source(tmp_path / "pets" / "d.csv")
    if request.param == "webdataset":
        members = [
            ("1.png", png((1, 1, 1))),
            ("1.txt", b"a"),
            ("2.png", png((2, 2, 2))),
            ("2.txt", b"b"),
        ]
        write_tar(tmp_path / "d.tar", members)
        return open_source(tmp_path / "d.tar")
    return open_source(tmp_path)


def test_pickles_after_being_read(any_source):
    assert np.asarray(decode(any_source[1].image)).max() == 2
    copy = pickle.loads(pickle.dumps(any_source))
    assert copy[0] == any_source[0]
    assert copy.fingerprint == any_source.fingerprint
    assert json.dumps(copy.metadata(0))


def test_fingerprint_sees_captions_and_order(tmp_path):
    def fingerprint(rows: str) -> str:
        write(tmp_path / "d.csv", "path,caption\n" + rows)
        return open_source(tmp_path / "d.csv").fingerprint

    write(tmp_path / "1.png", png())
    write(tmp_path / "2.png", png())
    base = fingerprint("1.png,a\n2.png,b\n")
    assert fingerprint("1.png,a\n2.png,b\n") == base
    others = {
        fingerprint(rows) for rows in ("1.png,a\n2.png,c\n", "2.png,b\n1.png,a\n", "1.png,a\n")
    }
    assert len(others | {base}) == 4


@pytest.mark.parametrize("names", [("a.tar", "B.TAR"), ("X.TAR",), ("x.Tar", "y.tAR"), ("a.tar",)])
def test_endings_of_tars_in_any_case(tmp_path, names):
    (tmp_path / "shards").mkdir()
    for number, name in enumerate(names):
        members = [(f"{number}.png", png()), (f"{number}.txt", b"a cat")]
        write_tar(tmp_path / "shards" / name, members)
    write(tmp_path / "shards" / "half.tar.part", b"")
    assert sorted(keys(open_source(tmp_path / "shards"))) == [str(n) for n in range(len(names))]


@pytest.mark.parametrize("names", [("a.parquet", "B.Parquet"), ("X.PARQUET",)])
def test_endings_of_parquet_in_any_case(tmp_path, names):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for name in names:
        columns = {"image": pa.array([png()]), "caption": [name]}
        pq.write_table(pa.table(columns), tmp_path / name)
    source = open_source(tmp_path)
    assert sorted(source.captions(n)[0] for n in range(len(source))) == sorted(names)


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "photos", "data.tar", "{0..1}.tar"])
def test_links_without_end_are_called_so(tmp_path, name):
    link, other = tmp_path / name.replace("{0..1}", "0"), tmp_path / "other"
    link.symlink_to(link.name)
    with pytest.raises(UserError, match="is a link to itself"):
        open_source(tmp_path / name)
    link.unlink()
    link.symlink_to(other)
    other.symlink_to(link)
    with pytest.raises(UserError, match=r"is a link to .*other, which leads .* loop of links"):
        open_source(tmp_path / name)


def test_a_link_without_end_in_a_folder_of_images_costs_nothing_else(tmp_path):
    write(tmp_path / "dog" / "1.png", png())
    (tmp_path / "dog" / "again").symlink_to("again")
    assert keys(open_source(tmp_path)) == ["dog/1.png"]
