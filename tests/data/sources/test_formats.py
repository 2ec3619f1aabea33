"""One contract for all formats: what is read of one small set, and of bad, labelled and split ones.

Tests of one format hold only what is particular to it.
"""

import json
import multiprocessing
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, photo
from small_sets import IN_FILES, ROWS, WRITERS, Row, refused

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Record, Source
from clip_jax.data.sources import detect_format, formats, open_source
from clip_jax.data.stream.make_batch import MakeBatch
from clip_jax.data.stream.order import ShuffledOrder
from clip_jax.errors import DecodeError
from clip_jax.files.telemetry import telemetry
from clip_jax.images.augmentation import Augmentation

PNG = encode(photo(8, 6), "PNG")
# TFDS writes all its examples with one set of features.
ANY_ROWS = [format for format in WRITERS if format != "tfds"]


def written(format: str, path: Path, rows: list[Row]) -> Path:
    write, packages = WRITERS[format]
    for package in packages:
        pytest.importorskip(package)
    return write(path, rows)


def named(rows: list[Row]) -> list[Row]:
    return [{"key": f"{n}", "image": PNG, **row} for n, row in enumerate(rows)]


@pytest.fixture(scope="module", params=list(WRITERS))
def format_and_path(request, tmp_path_factory):
    """The set in each format, in two files where it may be."""
    format, folder = request.param, tmp_path_factory.mktemp("sets") / request.param
    if format not in IN_FILES or format in ("csv", "jsonl"):
        return format, written(format, folder / "d", ROWS)
    for shard in range(2):
        written(format, folder / f"{shard:05d}", ROWS[5 * shard : 5 * shard + 5])
    return format, folder


def images(source: Source) -> list[bytes]:
    return [source[index].image for index in range(len(source))]


def test_each_format_is_tested() -> None:
    assert set(formats()) == set(WRITERS) | {"glyphs", "synthetic"}


def test_the_same_records_from_every_format(format_and_path):
    format, path = format_and_path
    assert detect_format(str(path)) == format
    source = open_source(path)
    assert len(source) == len(ROWS)
    assert source.dropped.total == 0
    assert len({source.key(index) for index in range(len(source))}) == len(ROWS)
    for index, row in enumerate(ROWS):
        record = source[index]
        assert record.image == row["image"]
        assert record.captions == source.captions(index) == tuple(row["captions"])
        assert record.weights is None
        assert record.key == source.key(index)
        if format != "folder":
            assert source.metadata(index)["label"] == row["label"]
        json.dumps(source.metadata(index))
    assert open_source(path).fingerprint == source.fingerprint
    # Numbers of numpy are indices.
    assert source[np.int64(3)] == source[3]
    assert source.captions(np.int64(9)) == source.captions(9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_threads_copies_and_forked_children_read_the_same(format_and_path):
    source = open_source(format_and_path[1])
    expected = [row["image"] for row in ROWS]
    assert images(source) == expected  # files are open now
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: source[index % 10].image, range(200)))
    assert found == expected * 20
    copy = pickle.loads(pickle.dumps(source))
    assert images(copy) == expected
    assert copy.fingerprint == source.fingerprint
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(images, (source,)).get(timeout=60) == expected


def test_the_bytes_of_images_are_counted_once(format_and_path):
    make_batch = MakeBatch(
        source=open_source(format_and_path[1]),
        order=ShuffledOrder((len(ROWS),), seed=0),
        tokenize=lambda captions: np.zeros((len(captions), 2), np.int32),
        image_size=8,
        interpolation="bicubic",
        augmentation=Augmentation(),
        batch_size=len(ROWS),
        rows=range(len(ROWS)),
        seed=0,
    )
    telemetry.take()  # what opening and other tests have read
    counts = json.loads(make_batch(0)["report"])["counts"]
    assert counts["bytes_read"] == sum(len(row["image"]) for row in ROWS)


def test_columns_are_named_or_refused(format_and_path):
    format, path = format_and_path
    if format in ("folder", "webdataset"):
        refused(r"image_column='x': data of format .* no such columns", path, image_column="x")
        return
    for option in ("image_column", "caption_column"):
        refused(rf"'nothing'.*captions?.*{option}", path, **{option: "nothing"})


def test_a_split_that_is_not_there(format_and_path):
    format, path = format_and_path
    said = "no split 'nosuch'" if format in ("tfds", "huggingface") else "has no splits"
    refused(said, path, split="nosuch")


GOOD, LAST = {"caption": "good"}, {"caption": "last"}
BAD: dict[str, Row] = {
    "caption_missing": {"caption": None},
    "caption_empty": {"caption": " \n"},
    "caption_not_utf8": {"caption": b"caf\xe9"},
    "image_missing": {"caption": "no image", "image": None},
}
# Without a caption, a cell of CSV is empty; a byte that is not UTF-8 ends it.
BAD_OF = {
    "folder": ("caption_missing", "caption_empty", "caption_not_utf8"),
    "csv": ("caption_empty", "image_missing"),
    "huggingface": ("caption_missing", "caption_empty", "image_missing"),
}


@pytest.mark.parametrize("format", ANY_ROWS)
def test_bad_records_are_counted_by_kind_and_named(format: str, tmp_path: Path) -> None:
    kinds = BAD_OF.get(format, tuple(BAD))
    path = written(format, tmp_path / "d", named([GOOD, *(BAD[kind] for kind in kinds), LAST]))
    source = open_source(path)
    captions, found = [], Counter(source.dropped.counts)
    for index in range(len(source)):
        assert source.key(index)
        try:
            captions += source[index].captions
        except DecodeError as error:
            found[error.kind] += 1
    assert captions == ["good", "last"]
    assert found == dict.fromkeys(kinds, 1)
    assert all(drop.reason for _, drop in source.dropped.listed)
    assert open_source(path, listed_drops=1).dropped.counts == source.dropped.counts
    assert len(open_source(path, listed_drops=1).dropped) <= 1


@pytest.mark.parametrize("format", ANY_ROWS)
def test_nothing_that_is_usable_is_one_line(format: str, tmp_path: Path) -> None:
    path = written(format, tmp_path / "d", named([{"caption": " "}] * 2))
    if format == "array_record":  # captions are read with the images
        assert len(open_source(path)) == 2
        return
    refused(r"no .* \(2 dropped; .*caption is empty.*; give", path)
    source = open_source(path, skip_unreadable=True)
    assert (len(source), source.dropped.total) == (0, 2)


@pytest.mark.parametrize("format", ANY_ROWS)
def test_without_captions(format: str, tmp_path: Path) -> None:
    rows = named([{"caption": "one"}, {"caption": None}])
    source = open_source(written(format, tmp_path / "d", rows), needs_captions=False)
    assert source.dropped.total == 0
    assert [source.captions(index) for index in range(2)] == [("one",), ()]
    assert [source[index].captions for index in range(2)] == [("one",), ()]
    if format in ("folder", "webdataset"):
        return
    rows = named([{"words": "one"}, {"words": None}])
    path = written(format, tmp_path / "other", rows)
    refused(r"none of caption, .*name one with caption_column", path)
    source = open_source(path, needs_captions=False)
    assert source.captions(0) == source[1].captions == ()
    assert source.metadata(0)["words"] == "one"


@pytest.mark.parametrize("format", [name for name in ANY_ROWS if name != "folder"])
def test_captions_of_several_columns_by_weight(format: str, tmp_path: Path) -> None:
    one_text = format in ("csv", "webdataset")  # in a cell
    row = {"short": "one" if one_text else ["one", "two"], "long": "text", "alt": "web"}
    only = {"short": "only" if one_text else ["only"], "long": None, "alt": None}
    path = written(format, tmp_path / "d", named([row, only]))

    def read(columns: str, *weights: float) -> list[tuple]:
        source = open_source(path, caption_column=columns, caption_weights=weights)
        return [(record.captions, record.weights) for record in records(source)]

    short = ("one",) if one_text else ("one", "two")
    each = 3.0 / len(short)
    first, second = read("long,short", 1.0, 3.0)
    assert first == (("text", *short), (1.0, *[each] * len(short)))
    assert second == (("only",), (3.0,))
    assert read("short")[0] == (short, None)
    # A column of weight 0 is left out, and a record without another.
    ((captions, weights),) = read("long,alt", 2.0, 0.0)
    assert captions == ("text",)
    assert weights in ((2.0,), (1.0,))


def records(source: Source) -> list[Record]:
    """The records that can be read; a format may find out only then."""
    found = []
    for index in range(len(source)):
        try:
            assert source[index].captions == source.captions(index)
            found.append(source[index])
        except DecodeError:
            continue
    return found


@pytest.mark.parametrize("format", [name for name in ANY_ROWS if name != "folder"])
def test_labels_are_in_the_metadata(format: str, tmp_path: Path) -> None:
    rows = named([{"caption": "a pug", "breed": "dog"}, {"caption": "tabby", "breed": "cat"}])
    path = written(format, tmp_path / "d", rows)
    source = open_source(path, needs_captions=False, label_column="breed")
    assert [source.metadata(index)["breed"] for index in range(2)] == ["dog", "cat"]
    # A caption may be the label, and a label may be missing.
    if format != "webdataset":
        source = open_source(path, label_column="CAPTION")
        assert source.captions(0) == ("a pug",)
        fields = source.metadata(0)
        assert fields.get("caption", fields.get("CAPTION")) in ("a pug", b"a pug")
    assert "nothing" not in open_source(path, label_column="nothing").metadata(0)


@pytest.mark.parametrize("format", IN_FILES)
def test_files_named_by_split(format: str, tmp_path: Path) -> None:
    for name in ("a-train", "a-val"):
        written(format, tmp_path / name, named([{"caption": f"of {name}"}]))
    for options, chosen in (
        (SourceOptions(), "train"),
        (SourceOptions(preferred_splits=("test", "validation")), "val"),
        (SourceOptions(split="validation"), "val"),
    ):
        source = open_source(tmp_path, format, options)
        assert (len(source), source.captions(0), source.split) == (1, (f"of a-{chosen}",), chosen)
    refused("has no split 'nosuch'; its splits are", tmp_path, format, split="nosuch")
    written(format, tmp_path / "more", named([{"caption": "other"}]))
    assert (len(open_source(tmp_path, format)), open_source(tmp_path, format).split) == (3, None)


@pytest.mark.parametrize("format", IN_FILES)
def test_files_in_any_case_in_a_pattern_and_in_a_store(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        path = written(format, tmp_path / "set" / name, named([{"caption": f"of {name}"}]))
    ending = path.name[1:]
    path.rename(path.with_name(f"B{ending.upper().replace('-OF-', '-of-')}"))
    source = open_source(tmp_path / "set", format)
    assert sorted(source.captions(n)[0] for n in range(len(source))) == ["of a", "of b"]
    one = tmp_path / "set" / f"a{ending}"
    assert len(open_source(f"{tmp_path}/set/?{ending}")) == 1
    assert len(open_source(f"{one},{one}")) == (1 if format in ("csv", "jsonl") else 2)
    refused(r"c.*: no \w+ file there; give a", f"{one},{tmp_path}/set/c{ending}")
    store = pytest.importorskip("fsspec").filesystem("memory")
    for file in (tmp_path / "set").rglob("*.*"):
        store.pipe_file(f"/{format}/{file.relative_to(tmp_path / 'set')}", file.read_bytes())
    paths = [f"memory://{format}/a{ending}", f"memory://{format}/?{ending}"]
    paths += [f"memory://{format}/"] if format in ("webdataset", "parquet") else []
    for path in paths:
        source = open_source(path, format)
        assert source[0].image == PNG
        assert source.captions(0) == ("of a",)


@pytest.mark.parametrize("format", ["webdataset", "parquet", "array_record"])
def test_damaged_files_are_counted_and_alone_an_error(format: str, tmp_path: Path) -> None:
    whole = written(format, tmp_path / "0", named([{"caption": f"{n}"} for n in range(40)]))
    ending = whole.name[1:]
    damage = {"1": b"something else" * 100, "2": b""}
    for name, data in damage.items():
        (tmp_path / f"{name}{ending}").write_bytes(data)
    source = open_source(tmp_path)
    assert len(source) == 40
    assert source.dropped.counts["shard_unreadable"] == 2
    for name in damage:
        refused(rf"{name}{ending}", tmp_path / f"{name}{ending}")


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [
        ("parquet", "pyarrow.parquet", "parquet"),
        ("huggingface", "datasets", "datasets"),
        ("tfds", "tensorflow_datasets", "tfds"),
    ],
)
def test_without_a_package_its_extra_is_named(format, package, extra, tmp_path, monkeypatch):
    path = written(format, tmp_path / "d", ROWS)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    refused(rf"pip install 'clip_jax\[{extra}\]'", path)
