"""Tars: members of samples, paths of archives, and archives that are damaged or hostile."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from shards import png, write_tar
from small_sets import keys, refused, write

from clip_jax.data.sources import open_source
from clip_jax.errors import DecodeError


def four(path: Path) -> bytes:
    """Writes four samples of two members, each of which takes 1,024 bytes."""
    members = [
        (f"{n}.{e}", png(n) if e == "png" else b"a") for n in range(4) for e in ("png", "txt")
    ]
    write_tar(path, members)
    return path.read_bytes()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members(tmp_path: Path, format: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile.TarFile, "format", format)
    long = "ü" * 120 + "/3"
    members = [
        *[("x/0.jpg", png(10)), ("x/0.txt", b"zero"), ("x/0.json", b'{"class": "nought"}')],
        *[("1.cls", b"5\n"), ("1.mask.png", b"not this one"), ("1.PNG", png(11))],
        ("1.json", b'{"caption": "one", "n": 1}'),
        *[("2.webp", png(12)), ("2.txt", b"two"), ("2.json", b"{broken")],
        *[(f"{long}.png", png(13)), (f"{long}.txt", b"three")],
        (f"{long}.json", b'{"captions": ["three", " ", "3"]}'),
        *[("4.png", png(14)), ("4.txt", b"\xff\xfe"), ("5.txt", b"five"), ("6.png", png(16))],
        # The same key again is another sample.
        *[("7.png", png(17)), ("7.txt", b"a"), ("7.png", png(18)), ("7.txt", b"b")],
    ]
    write_tar(tmp_path / "a.tar", members)
    source = open_source(tmp_path / "a.tar")
    assert keys(source) == ["x/0", "1", "2", long, "7", "7"]
    captions = ["|".join(source.captions(n)) for n in range(len(source))]
    assert captions == ["zero", "one", "two", "three|3", "a", "b"]
    assert [source[n].image for n in (1, 4, 5)] == [png(11), png(17), png(18)]
    assert source.metadata(0) == {"class": "nought"}
    assert source.metadata(1) == {"caption": "one", "n": 1, "cls": "5"}
    assert source.metadata(2) == {}
    assert set(source.dropped) == {"4", "5", "6"}


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for shard in range(12):
        sample = f"{shard:03d}"
        members = [(f"{sample}.png", png(1)), (f"{sample}.txt", b"a")]
        write_tar(tmp_path / f"{shard:05d}.tar", members)
    write(tmp_path / "half.tar.part", b"")
    everything = [f"{shard:03d}" for shard in range(12)]
    odd = tmp_path / "a,b{1..2}"
    odd.mkdir()
    (odd / "x.tar").write_bytes((tmp_path / "00004.tar").read_bytes())
    for path, expected in (
        (tmp_path, everything),
        (f"{tmp_path}/*.tar", everything),
        (f"{tmp_path}/{{00008..00010}}.tar", everything[8:11]),
        (f"{tmp_path}/{{00001,00003}}.tar", ["001", "003"]),
        (f"{tmp_path}/00007.tar,{tmp_path}/00002.tar", ["007", "002"]),
        (",".join([f"{tmp_path}/00007.tar", f"{tmp_path}/00002.tar"] * 80), ["007", "002"] * 80),
        ("~/00007.tar,~/00002.tar", ["007", "002"]),
        ("{~,~}/0000{7,2}.tar", ["007", "002"] * 2),
        (f"file://{tmp_path}/00007.tar,file://{tmp_path}/00002.tar", ["007", "002"]),
        (odd, ["004"]),
        (odd / "x.tar", ["004"]),
    ):
        assert keys(open_source(path)) == expected
    refused(r"00012\.tar", f"{tmp_path}/{{00010..00012}}.tar")


# Bytes kept, what is written over, and where; number of samples, and what is said.
DAMAGE = {
    "in the data of 3.png": (6 * 1024 + 600, b"", 0, 3, "a.tar is"),
    "in the header of 3.png": (6 * 1024 + 100, b"", 0, 3, "a.tar is"),
    "in the data of 1.png": (2 * 1024 + 520, b"", 0, 1, "a.tar is"),
    "without an end mark": (8 * 1024, b"", 0, 4, "a.tar has no end mark and may be cut off"),
    "an end mark inside": (None, bytes(1024), 4096, 2, "goes on after an end mark at byte 4096"),
    "a broken header": (None, b"\x55" * 300, 4096, 2, "damaged at byte 4096"),
}


@pytest.mark.parametrize("where", DAMAGE)
def test_a_damaged_archive_keeps_what_is_complete(tmp_path: Path, where: str, caplog) -> None:
    cut, patch, at, kept, message = DAMAGE[where]
    data = four(tmp_path / "a.tar")
    data = data[:at] + patch + data[at + len(patch) :]
    (tmp_path / "a.tar").write_bytes(data[:cut])
    source = open_source(tmp_path / "a.tar")
    assert keys(source) == [str(n) for n in range(kept)]
    assert message in caplog.text
    assert source.dropped.counts["shard_damaged"] == (kept < 4)


def test_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "secret.png", png(1))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(info)
            info = tarfile.TarInfo(f"{kind.decode()}.txt")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"a"))
    refused("no sample", tmp_path / "a.tar")


def test_an_archive_that_shrank_is_a_decode_error(tmp_path: Path) -> None:
    four(tmp_path / "a.tar")
    source = open_source(tmp_path / "a.tar")
    os.truncate(tmp_path / "a.tar", 1024)
    with pytest.raises(DecodeError, match="3 cannot be read"):
        source[3]
