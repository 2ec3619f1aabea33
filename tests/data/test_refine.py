"""Captions cleaned and chosen, samples left out by rule, and what a run says of it."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pictures import turned
from PIL import Image
from shards import photo, png, words, write_shard
from small_sets import outcomes

from clip_jax.data.options import CaptionOptions, FilterOptions
from clip_jax.data.records import Record
from clip_jax.data.sources import open_source
from clip_jax.data.sources.refine import RefinedSource, clean_alt_text
from clip_jax.data.stream.make_batch import choose_caption
from clip_jax.data.stream.pipeline import training_batches
from clip_jax.dataset_tools.inspect.survey import survey
from clip_jax.errors import DecodeError, UserError
from clip_jax.images.augmentation import Augmentation
from clip_jax.images.perceptual_hash import HashList, perceptual_hash


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A red bus", "A red bus"),
        ("  A&amp;amp;B &quot;shop&quot;  ", 'A&B "shop'),
        ("<b>bold</b> cat<br/>sits", "bold cat sits"),
        ("cat at https://example.org/cat.jpg?x=1 here", "cat at here"),
        ("IMG_20190214.JPG", ""),
        ("DSC01234", ""),
        ("my_photo.png - a dog | ", "a dog"),
        ("write to me@example.org", "write to"),
        ("3 < 5 and 7 > 2", "3 < 5 and 7 > 2"),
        ("ein Hund im Schnee – ", "ein Hund im Schnee"),
    ],
)
def test_alt_texts(text: str, cleaned: str) -> None:
    assert clean_alt_text(text) == cleaned


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    captions = ["a b c", "one", "IMG_123.jpg", "a b c d e f", "a b", "c d"]
    sizes = [(64, 48), (64, 48), (64, 48), (64, 48), (20, 20), (200, 48)]
    content = [
        (str(n), {"png": png(n, size), "txt": caption.encode()})
        for n, (caption, size) in enumerate(zip(captions, sizes, strict=True))
    ]
    write_shard(tmp_path / "a.tar", content)
    return open_source(tmp_path / "a.tar")


def test_rules(source) -> None:
    filters = FilterOptions(min_words=2, max_words=5, min_side=30, max_aspect=3.0)
    refined = RefinedSource(source, CaptionOptions(clean=True), filters)
    by_caption, by_image = ["caption_filtered"], ["image_filtered"]
    assert outcomes(refined) == ["a b c", *by_caption * 3, *by_image * 2]
    assert refined.fingerprint != source.fingerprint
    with pytest.raises(DecodeError, match="no caption of 2 to 5 words"):
        refined.captions(1)


def test_what_a_run_says(source) -> None:
    numbers = RefinedSource(source, filters=FilterOptions(min_side=30))

    def tokenize(texts: list[str]) -> np.ndarray:
        return words([f"number {len(text)}" for text in texts])

    settings = {"batch_size": 6, "seed": 0, "max_bad_fraction": 0.0}
    batches = training_batches(numbers, tokenize, 8, "bicubic", Augmentation(), **settings)
    list(itertools.islice(batches, 3))
    batches.close()
    assert batches.dropped == Counter(image_filtered=3)  # once an epoch; no reason to stop
    assert not batches.tally.bad
    assert batches.counts["bytes_read"] > 1000
    none = RefinedSource(source, filters=FilterOptions(min_side=3000))
    batches = training_batches(none, tokenize, 8, "bicubic", Augmentation(), **settings)
    with pytest.raises(UserError, match="the filters leave nothing of 6 records in a row"):
        next(batches)
    batches.close()


def test_choices() -> None:
    class Two:
        fingerprint = "x"

        def __getitem__(self, index: int) -> Record:
            return Record("k", png(0), ("a", "b c"), (1.0, 3.0))

    rng = np.random.default_rng(0)
    drawn = Counter(choose_caption(Two()[0], rng) for _ in range(4000))
    assert abs(drawn["b c"] / 4000 - 0.75) < 0.03
    both = RefinedSource(Two(), CaptionOptions(choice="concatenate"))  # type: ignore[arg-type]
    assert both[0].captions == ("a b c",)
    first = RefinedSource(Two(), CaptionOptions(choice="first"))  # type: ignore[arg-type]
    assert first[0].captions == ("a",)
    assert choose_caption(first[0], rng) == "a"


def test_captions_a_line(tmp_path: Path, cache: Path) -> None:
    texts = ["one cat\n\ntwo cats \r\nthree", "a dog"]
    content = [(f"{n}", {"png": png(n), "txt": text.encode()}) for n, text in enumerate(texts)]
    write_shard(tmp_path / "0.tar", content)
    source = open_source(tmp_path / "0.tar")
    assert source.captions(0) == (texts[0],)
    lines = RefinedSource(source, CaptionOptions(lines=True))
    assert lines.captions(0) == ("one cat", "two cats ", "three")
    assert lines[1].captions == ("a dog",)
    first = RefinedSource(source, CaptionOptions(lines=True, choice="first"))
    assert first[0].captions == ("one cat",)


def test_looks_alike(tmp_path: Path) -> None:
    images = [photo(seed, (640, 480)) for seed in range(20)]
    smaller = [photo(seed, (320, 240), quality=60) for seed in range(20)]
    hashes, again = ([perceptual_hash(x) for x in kind] for kind in (images, smaller))
    apart = np.bitwise_count(np.array(hashes, np.uint64)[:, None] ^ np.array(again, np.uint64))
    assert np.diag(apart).max() <= 4
    assert apart[~np.eye(20, dtype=bool)].min() > 10
    lines = ("# found by hand", f"{hashes[3]:016x} some note", "", f"{hashes[5]:x}")
    (tmp_path / "list").write_text("\n".join(lines))
    near = HashList.read(tmp_path / "list", distance=4)
    assert [n for n in range(20) if near.has("", smaller[n])] == [3, 5]
    exact = HashList.read(tmp_path / "list")
    assert [n for n in range(20) if exact.has("", images[n])] == [3, 5]
    pixels = np.asarray(Image.new("RGB", (30, 20), (9, 9, 9)))
    assert perceptual_hash(pixels) == 0
    (tmp_path / "list").write_text("3\nhello\n")
    with pytest.raises(UserError, match="line 2 is 'hello'; accepted are 16 hexadecimal digits"):
        HashList.read(tmp_path / "list")
    with pytest.raises(UserError, match="exclude_distance=99"):
        HashList([], distance=99)


def on_its_side(seed: int) -> bytes:
    return photo(seed, (500, 375), exif=turned(6))


def test_the_page_and_the_run_have_the_same_hashes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    images = [photo(n, (500, 375), quality=80) for n in range(6)]
    images += [on_its_side(n) for n in range(6)]
    content = [(str(n), {"jpg": image, "txt": b"a"}) for n, image in enumerate(images)]
    write_shard(tmp_path / "a.tar", content)
    source = open_source(tmp_path / "a.tar")
    shown = [fact.hash for fact in survey(source, range(len(source)), workers=0).facts]
    assert outcomes(RefinedSource(source, exclude=HashList(shown))) == ["duplicate"] * 12


def test_lists_for_single_records(source, tmp_path: Path) -> None:
    same = perceptual_hash(source[0].image)  # plain colours: all alike
    lines = [f'{same:016x} only "{key}"' for key in "134"] + [f"{same ^ 7:016x} only 2"]
    (tmp_path / "list").write_text("\n".join(lines))
    listed = HashList.read(tmp_path / "list")
    found = outcomes(RefinedSource(source, exclude=listed))
    assert [n for n, kind in enumerate(found) if kind == "duplicate"] == [1, 3, 4]
    near = HashList.read(tmp_path / "list", distance=3)
    assert outcomes(RefinedSource(source, exclude=near)).count("duplicate") == 4


def test_the_fingerprint_knows_the_list(source) -> None:
    lists = [HashList([1, 2]), HashList([1, 3]), HashList([1, 2], distance=1)]
    lists += [HashList([1], only=[(key, 2)]) for key in "ab"]
    fingerprints = {RefinedSource(source, exclude=listed).fingerprint for listed in lists}
    assert len(fingerprints) == 5
    again = RefinedSource(source, exclude=HashList([2, 1]))
    assert again.fingerprint in fingerprints


@pytest.mark.parametrize(
    "values", [{"min_words": -1}, {"max_aspect": 0.5}, {"min_words": 5, "max_words": 4}]
)
def test_rules_that_make_no_sense(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(reversed(values))}="):
        FilterOptions(**values)
