"""Why members of an archive make no sample: the reason that is true, in every reader."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from shards import png

from clip_jax.data.sources import open_source
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.data.tars.drops import Dropped, join_apart, without_image
from clip_jax.errors import UserError

IMAGE = png(1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))


def write_tar(path: Path, *names: str) -> Path:
    """Members that end in an image's name are images, the others texts."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            is_image = name.lower().rstrip(".").endswith(("png", "jpg", "heic"))
            data = IMAGE if is_image else f"text of {name}".encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


APART = "the members of key 'a' lie apart in the archive"

# Members, besides one sample that is good -> (the keys that are left out, what is said of the
# first, their kind).
REASONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, str]] = {
    "dots": (
        ("x.1.jpg", "x.1.txt", "x.2.jpg", "x.2.txt"),
        ("x.1", "x.2"),
        r"dots before the ending, .*: 'x\.1\.jpg' is key 'x' with the ending '1\.jpg'; rename it,"
        r" as to x_1\.jpg$",
        "image_missing",
    ),
    "several dots, in a folder": (
        ("f.g/x.a.b.PNG", "f.g/x.a.b.txt"),
        ("f.g/x.a.b",),
        r"'f\.g/x\.a\.b\.png' is key 'f\.g/x' .* rename it, as to x_a_b\.png$",
        "image_missing",
    ),
    "a file name kept": (
        ("x.png.jpg", "x.png.txt"),
        ("x.png",),
        r"rename it, as to x_png\.jpg$",
        "image_missing",
    ),
    "dots of the caption alone": (
        ("x.jpg", "x.en.txt"),
        ("x",),
        r"^caption is missing \(no \.txt, .*\); there are \.en\.txt: the one that holds it can be"
        r" named as caption_column$",
        "caption_missing",
    ),
    "caption of another ending": (
        ("x.jpg", "x.caption", "x.json"),
        ("x",),
        r"there are \.caption: the one that holds it can be named as caption_column$",
        "caption_missing",
    ),
    "nothing but an image": (
        ("x.jpg",),
        ("x",),
        r"^caption is missing \(no \.txt, no \.json with caption or text\)$",
        "caption_missing",
    ),
    "an image of an unknown format": (
        ("x.heic", "x.txt"),
        ("x",),
        r"^no complete image member \(there are \.heic, \.txt; images end in \.jpg, ",
        "image_missing",
    ),
    "a dot at the end": (
        ("x.JPG.", "x.txt"),
        ("x",),
        r"there are \.jpg\., \.txt; images end in",
        "image_missing",
    ),
    "no ending": (
        ("x", "y"),
        ("x", "y"),
        "there are a name without ending; images end in",
        "image_missing",
    ),
    "captions alone": (("x.txt",), ("x",), "^no complete image member$", "image_missing"),
    "apart": (
        ("a.jpg", "b.jpg", "a.txt", "b.txt"),
        ("a", "b"),
        rf"^{APART} \(\.jpg at byte 2048, \.txt at byte 4096\); write those .* tar --sort=name",
        "caption_missing",
    ),
    "apart, captions first": (
        ("a.txt", "b.txt", "a.jpg", "b.jpg"),
        ("a", "b"),
        rf"^{APART} \(\.jpg at byte 4096, \.txt at byte 2048\)",
        "caption_missing",
    ),
    "apart in three": (
        ("a.jpg", "b.jpg", "a.txt", "b.txt", "a.json", "b.json"),
        ("a", "b"),
        rf"^{APART} \(\.jpg at byte 2048, \.txt at byte 4096, \.json at byte 6144\)",
        "caption_missing",
    ),
    "labels apart from a sample that is good": (
        ("a.jpg", "a.txt", "b.jpg", "b.txt", "a.cls", "b.cls"),
        ("a", "b"),
        rf"^{APART} \(the image at byte 2560, \.cls at byte 6144\)",
        "image_missing",
    ),
    "a second sample of a key that is good": (
        ("a.jpg", "a.txt", "a.txt"),
        ("a",),
        "^no complete image member$",
        "image_missing",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(tmp_path: Path, name: str) -> None:
    members, keys, reason, kind = REASONS[name]
    source = open_source(write_tar(tmp_path / "a.tar", "0.jpg", "0.txt", *members))
    assert source.captions(0) == ("text of 0.txt",)
    assert tuple(source.dropped) == keys
    assert source.dropped.counts == {kind: len(keys)}
    assert re.search(reason, source.dropped[keys[0]]), source.dropped[keys[0]]


@pytest.mark.parametrize("name", [name for name in REASONS if "good" not in name])
@pytest.mark.parametrize("reader", [open_source, lambda path: StreamingSource(str(path))])
def test_the_only_error_has_the_reason(
    tmp_path: Path, name: str, reader: Callable[[Path], object]
) -> None:
    members, keys, reason, _ = REASONS[name]
    path = write_tar(tmp_path / "a.tar", "a_folder/", *members)
    with pytest.raises(UserError) as caught:
        reader(path)
    message = str(caught.value)
    assert f"{keys[0]}: " in message
    for word in ("rename it", "lie apart", "caption_column", "images end in"):
        assert (word in message) == (word in reason.replace("\\", "")), word
    assert "\n" not in message


def test_a_part_that_is_cut_off_does_not_lie_apart(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", "a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg")
    path.write_bytes(path.read_bytes()[: 4 * 1024 + 512 + 20])
    source = open_source(path)
    assert source.dropped["a"] == "no complete image member"


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda data: b"\x28\xb5\x2f\xfd" + data, "zstd"),
    ],
)
def test_compressed_archives(tmp_path: Path, pack: Callable[[bytes], bytes], name: str) -> None:
    path = write_tar(tmp_path / "a.tar", "0.jpg", "0.txt")
    path.write_bytes(pack(path.read_bytes()))
    for ending in (".tar", ".tar.gz"):
        path = path.rename(tmp_path / f"a{ending}")
        with pytest.raises(UserError, match=f"it is compressed by {name}; unpack it first"):
            open_source(path, "webdataset")


def test_a_zip_is_no_tar(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.tar", "w") as archive:
        archive.writestr("0.jpg", IMAGE)
    with pytest.raises(UserError, match="not an uncompressed tar file: it is compressed by zip"):
        open_source(tmp_path / "a.tar")


def test_a_million_drops_take_little() -> None:
    """Names without end: one key, a reason for each that is short after the first thousand."""
    endings = tuple(f"{number}.jpg" for number in range(100_000))
    start = time.process_time()
    found = without_image("x", endings, 0)
    assert len(found) == 100_000
    assert sum(len(reason) for _, reason in found) < 10_000_000
    halves = [Dropped(f"{n}", "caption_missing", "", n, ("jpg",)) for n in range(100_000)]
    halves += [Dropped(f"{n}", "image_missing", "", n, ("txt",)) for n in range(100_000)]
    assert len(join_apart(halves, [])) == 100_000
    assert time.process_time() - start < 10
