"""The share of unusable records that a run tolerates, in every format and at every moment."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import png
from small_sets import WRITERS, Row, write_csv, write_folder, write_tar
from tiny import tiny_config

from clip_jax.data.records import Source
from clip_jax.data.sources import open_source
from clip_jax.data.sources.refine import FilterOptions, RefinedSource
from clip_jax.data.stream.bad_share import Tally, check_opened, opened
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.data.stream.pipeline import BatchIterator, training_batches
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation
from clip_jax.training.config import build_config
from clip_jax.training.run.loop import train

GOOD = 30
pytestmark = pytest.mark.usefixtures("cache")


def rows(bad: int) -> list[Row]:
    """`GOOD` rows, and `bad` without caption among them."""
    found = [{"key": f"{n:03}", "image": png(n), "caption": f"number {n}"} for n in range(GOOD)]
    for n in range(bad):
        row = {"key": f"bad{n:03}", "image": png(n), "caption": ""}
        found.insert(2 * n % len(found), row)
    return found


def as_mixture(folder: Path, content: list[Row]) -> Source:
    """The unusable rows are all in one of the sources; the share is one of all records."""
    good = [row for row in content if row["caption"]]
    bad = [row for row in content if not row["caption"]]
    one = open_source(write_folder(folder / "one", good[:20]))
    two = open_source(write_csv(folder / "two", good[20:] + bad))
    return MixtureSource([one, two], ["one", "two"], [1.0, 1.0])


def as_stream(folder: Path, content: list[Row]) -> Source:
    for shard in range(2):
        write_tar(folder / f"{shard:05d}", content[shard::2])
    return StreamingSource(str(folder / "{00000..00001}.tar"))


def as_refined(folder: Path, content: list[Row]) -> Source:
    return RefinedSource(
        open_source(write_csv(folder, content)), filters=FilterOptions(min_words=1)
    )


FORMATS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    **{name: writer for name, writer in WRITERS.items() if name != "tfds"},
    "mixture": (as_mixture, ()),
    "stream": (as_stream, ()),
    "refined": (as_refined, ()),
}


def batches(source: Source, fraction: float = 0.1, **options: Any) -> BatchIterator:
    return training_batches(
        source, lambda texts: np.zeros((len(texts), 2), np.int32), 8, "bicubic", Augmentation(),
        batch_size=4, seed=0, max_bad_fraction=fraction, **options,
    )  # fmt: skip


def read(source: Source, fraction: float = 0.1) -> Counter[str]:
    """Three epochs; what was left out."""
    iterator = batches(source, fraction)
    try:
        for _ in range(3 * GOOD // 4):
            next(iterator)
    finally:
        iterator.close()
    return iterator.dropped


def made(format: str, folder: Path, bad: int) -> Source:
    write, packages = FORMATS[format]
    for package in packages:
        pytest.importorskip(package)
    written = write(folder, rows(bad))
    return open_source(written) if isinstance(written, Path) else written


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_unusable_counts_in_every_format(format: str, tmp_path: Path) -> None:
    assert read(made(format, tmp_path / "few", 3)).total() == 3
    many = made(format, tmp_path / "many", 3 * GOOD)
    expected = (
        r"^[^\n]* cannot be used \([^\n]* x caption_[^\n]*more than max_bad_fraction=0.1; such as "
        r"[^\n]*; repair the data, or raise config\.data\.max_bad_fraction$"
    )
    with pytest.raises(UserError, match=expected):
        read(many)
    seen = read(many, 0.8).total()
    assert seen == 3 * GOOD or (format == "array_record" and 0 < seen < 3 * GOOD)
    if format in ("array_record", "stream"):  # captions are read with the images
        check_opened(many, 0.1)
        return
    # Otherwise it is known, and said, before anything slow.
    expected = r"^90 of 120 records when the data was opened cannot be used \(90 x caption_"
    for begin in (check_opened, batches):
        with pytest.raises(UserError, match=expected):
            begin(many, 0.1)


def test_both_moments_add_up(tmp_path: Path) -> None:
    content = rows(2)
    for n in (5, 9):
        content[n] |= {"image": b"no image"}
    source = open_source(write_csv(tmp_path / "set", content))
    assert read(source, 4 / 32) == Counter(caption_empty=2, image_undecodable=2)
    for fraction in (3 / 32, 2 / 32):
        with pytest.raises(
            UserError,
            match=r"^2 of 32 records when the data was opened and \d of \d+ records tried cannot be"
            r" used \(2 x caption_empty, \d x image_undecodable\)",
        ):
            read(source, fraction)


def test_rows_of_one_image_are_compared_with_rows(tmp_path: Path) -> None:
    """An image with four good captions and a blank one is no bad record."""
    write_folder(tmp_path, rows(0))
    lines = ["image,caption"]
    for n in range(GOOD):
        lines += [f"{n:03}.png,caption {k} of {n}" for k in range(4)]
        lines += [f"{n:03}.png, "] if n < 10 else []
    (tmp_path / "data.csv").write_text("\n".join(lines))
    source = open_source(tmp_path / "data.csv")
    assert (len(source), opened(source).kept, opened(source).left_out) == (GOOD, 4 * GOOD, 10)
    read(source)


@pytest.mark.parametrize(
    ("counts", "left_out"),
    [
        ({"caption_missing": 2, "caption_empty": 1}, 3),
        ({"image_missing": 1, "row_malformed": 1, "caption_not_utf8": 1}, 3),
        ({"caption_filtered": 50, "image_filtered": 50, "duplicate": 50}, 0),
        ({"shard_unreadable": 50}, 0),
        ({"shard_damaged": 3, "image_missing": 3}, 0),
        ({"shard_damaged": 3, "image_missing": 5}, 2),
        ({}, 0),
    ],
)
def test_kinds(counts: dict[str, int], left_out: int) -> None:
    """Rules and shards are not about records; the cut of an archive goes through a sample."""
    found = Tally(10)
    assert found.add_rows(10, counts) == left_out
    assert (found.kept, found.left_out) == (10, left_out)


@pytest.mark.parametrize(
    ("kept", "left_out", "count", "tried", "bad", "fraction", "expected"),
    [
        (9, 1, 9, 0, 0, 0.1, False),
        (9, 2, 9, 0, 0, 0.1, True),
        (10, 0, 10, 10, 1, 0.1, False),
        (10, 0, 10, 4, 2, 0.1, True),
        (1000, 0, 1000, 4, 4, 0.1, False),  # of a hundred, not of the four that were tried
        (1000, 0, 1000, 200, 21, 0.1, True),
        (1000, 50, 1000, 500, 25, 0.1, False),
        (1000, 100, 1000, 500, 25, 0.1, True),
        (0, 3, 50, 0, 0, 0.1, False),  # a stream at its beginning
        (20, 9, 500, 0, 0, 0.1, False),
        (60, 11, 500, 0, 0, 0.1, True),
        (5, 5, 5, 5, 5, 1.0, False),
        (70, 30, 70, 0, 0, 0.3, False),
        (10, 1, 10, 0, 0, 0.0, True),
    ],
)
def test_small_counts_are_judged_mildly(
    kept: int, left_out: int, count: int, tried: int, bad: int, fraction: float, expected: bool
) -> None:
    tally = Tally(count, kept, left_out, tried, set(range(bad)))
    assert tally.exceeds(fraction) == expected


def test_a_run_stops_before_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "set", rows(3 * GOOD))
    monkeypatch.setattr(
        "clip_jax.training.run.opening.sharded_state", lambda *_: pytest.fail("began to compile")
    )
    config = build_config(
        tiny_config(data__path=str(path), data__format="auto", batch_size=8, mesh__data=8)
    )
    three = r"such as [^;]*; [^;]*; [^;]*; repair the data, or raise config\.data\.max"
    with pytest.raises(UserError, match=rf"90 of 120 records .*{three}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
