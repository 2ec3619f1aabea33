"""Why members of an archive make no sample: the reason that is true, in every reader."""

import bz2
import gzip
import io
import lzma
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from shards import png, write_tar
from small_sets import refused

from clip_jax.data.sources import open_source
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.data.tars.drops import Dropped, join_apart, without_image
from clip_jax.errors import UserError

IMAGE = png(1)


pytestmark = pytest.mark.usefixtures("cache")


def write(path: Path, *names: str) -> Path:
    """Members that end in an image's name are images, the others texts."""
    images = ("png", "jpg", "heic")
    is_image = {name: name.lower().rstrip(".").endswith(images) for name in names}
    return write_tar(path, ((n, IMAGE if is_image[n] else f"text of {n}".encode()) for n in names))


APART = "the members of key 'a' lie apart in the archive"

NO_IMAGE = "^no complete image member"
OTHERS = "the one that holds it can be named as caption_column$"

# Members, besides one sample that is good, the keys that are left out, what is said of the first.
REASONS: dict[str, tuple[str, str, str]] = {
    "dots": (
        "x.1.jpg x.1.txt x.2.jpg x.2.txt",
        "x.1 x.2",
        rf"{NO_IMAGE}: its name has dots before the ending, .*: 'x\.1\.jpg' is key 'x' with the"
        r" ending '1\.jpg'; rename it, as to x_1\.jpg$",
    ),
    "several dots, in a folder": (
        "f.g/x.a.b.PNG f.g/x.a.b.txt",
        "f.g/x.a.b",
        r"'f\.g/x\.a\.b\.png' is key 'f\.g/x' .* rename it, as to x_a_b\.png$",
    ),
    "a file name kept": ("x.png.jpg x.png.txt", "x.png", r"rename it, as to x_png\.jpg$"),
    "dots of the caption alone": (
        "x.jpg x.en.txt",
        "x",
        rf"^caption is missing \(no \.txt, .*\); there are \.en\.txt: {OTHERS}",
    ),
    "caption of another ending": (
        "x.jpg x.caption x.json",
        "x",
        rf"^caption is missing .*there are \.caption: {OTHERS}",
    ),
    "nothing but an image": (
        "x.jpg",
        "x",
        r"^caption is missing \(no \.txt, no \.json with caption or text\)$",
    ),
    "an image of an unknown format": (
        "x.heic x.txt",
        "x",
        rf"{NO_IMAGE} \(there are \.heic, \.txt; images end in \.jpg, ",
    ),
    "a dot at the end": ("x.JPG. x.txt", "x", r"there are \.jpg\., \.txt; images end in"),
    "no ending": ("x y", "x y", "there are a name without ending; images end in"),
    "captions alone": ("x.txt", "x", f"{NO_IMAGE}$"),
    "apart": (
        "a.jpg b.jpg a.txt b.txt",
        "a b",
        rf"^{APART} \(\.jpg at byte 2048, \.txt at byte 4096\); write those .* tar --sort=name",
    ),
    "apart, captions first": (
        "a.txt b.txt a.jpg b.jpg",
        "a b",
        rf"^{APART} \(\.jpg at byte 4096, \.txt at byte 2048\)",
    ),
    "apart in three": (
        "a.jpg b.jpg a.txt b.txt a.json b.json",
        "a b",
        rf"^{APART} \(\.jpg at byte 2048, \.txt at byte 4096, \.json at byte 6144\)",
    ),
    "labels apart from a sample that is good": (
        "a.jpg a.txt b.jpg b.txt a.cls b.cls",
        "a b",
        rf"^{APART} \(the image at byte 2560, \.cls at byte 6144\)",
    ),
    "a second sample of a key that is good": ("a.jpg a.txt a.txt", "a", f"{NO_IMAGE}$"),
}
WITHOUT_CAPTION = (
    *("dots of the caption alone", "caption of another ending", "nothing but an image"),
    *("apart", "apart, captions first", "apart in three"),
)


@pytest.mark.parametrize("name", REASONS)
def test_reasons(tmp_path: Path, name: str) -> None:
    members, keys, reason = REASONS[name]
    source = open_source(write(tmp_path / "a.tar", "0.jpg", "0.txt", *members.split()))
    assert source.captions(0) == ("text of 0.txt",)
    assert list(source.dropped) == keys.split()
    kind = "caption_missing" if name in WITHOUT_CAPTION else "image_missing"
    assert source.dropped.counts == {kind: len(keys.split())}
    assert re.search(reason, source.dropped[keys.split()[0]]), source.dropped


@pytest.mark.parametrize("name", [name for name in REASONS if "good" not in name])
@pytest.mark.parametrize("reader", [open_source, lambda path: StreamingSource(str(path))])
def test_the_only_error_has_the_reason(
    tmp_path: Path, name: str, reader: Callable[[Path], object]
) -> None:
    members, keys, reason = REASONS[name]
    path = write(tmp_path / "a.tar", "a_folder/", *members.split())
    with pytest.raises(UserError) as caught:
        reader(path)
    message = str(caught.value)
    assert f"{keys.split()[0]}: " in message
    for word in ("rename it", "lie apart", "caption_column", "images end in"):
        assert (word in message) == (word in reason.replace("\\", "")), word
    assert "\n" not in message


def test_a_part_that_is_cut_off_does_not_lie_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", "a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg")
    path.write_bytes(path.read_bytes()[: 4 * 1024 + 512 + 20])
    source = open_source(path)
    assert source.dropped["a"] == "no complete image member"


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("0.jpg", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        (gzip.compress, "gzip; unpack it first, with gzip -d"),
        (bz2.compress, "bzip2; unpack it first"),
        (lzma.compress, "xz; unpack it first"),
        (lambda data: b"\x28\xb5\x2f\xfd" + data, "zstd; unpack it first"),
        (zipped, "zip; unpack it first"),
    ],
)
def test_compressed_archives(tmp_path: Path, pack: Callable[[bytes], bytes], name: str) -> None:
    path = write(tmp_path / "a.tar", "0.jpg", "0.txt")
    path.write_bytes(pack(path.read_bytes()))
    for ending in (".tar", ".tar.gz"):
        path = path.rename(tmp_path / f"a{ending}")
        refused(f"uncompressed tar file: it is compressed by {name}", path, "webdataset")


def test_many_drops_take_little() -> None:
    """Names without end: one key, a reason for each that is short after the first thousand."""
    endings = tuple(f"{number}.jpg" for number in range(50_000))
    start = time.process_time()
    found = without_image("x", endings, 0)
    assert len(found) == 50_000
    assert sum(len(reason) for _, reason in found) < 5_000_000
    halves = [Dropped(f"{n}", "caption_missing", "", n, ("jpg",)) for n in range(50_000)]
    halves += [Dropped(f"{n}", "image_missing", "", n, ("txt",)) for n in range(50_000)]
    assert len(join_apart(halves, [])) == 50_000
    assert time.process_time() - start < 5
