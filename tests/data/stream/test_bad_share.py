"""The share of unusable records that a run tolerates, in every format and at every moment."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import png, write_shard
from tiny import tiny_config

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops, Source
from clip_jax.data.sources import open_source
from clip_jax.data.sources.refine import FilterOptions, RefinedSource
from clip_jax.data.stream.bad_share import Opened, Tally, check_opened, opened
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.data.stream.pipeline import BatchIterator, training_batches
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation
from clip_jax.training.config import build_config
from clip_jax.training.run.loop import train

GOOD = 30
Rows = list[tuple[str, bytes, str | None]]  # name, image, caption


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))


def rows(bad: int) -> Rows:
    """`GOOD` rows, and `bad` without caption among them."""
    found: Rows = [(f"{n:03}", png(n), f"number {n}") for n in range(GOOD)]
    for n in range(bad):
        found.insert(2 * n % len(found), (f"bad{n:03}", png(n), None))
    return found


def write_images(folder: Path, content: Rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, _ in content:
        (folder / f"{name}.png").write_bytes(image)


def as_folder(folder: Path, content: Rows) -> Path:
    write_images(folder, content)
    for name, _, caption in content:
        (folder / f"{name}.txt").write_text(caption or " ")
    return folder


def as_csv(folder: Path, content: Rows) -> Path:
    write_images(folder, content)
    lines = ["image,caption", *(f"{name}.png,{caption or ''}" for name, _, caption in content)]
    (folder / "data.csv").write_text("\n".join(lines))
    return folder / "data.csv"


def as_json_lines(folder: Path, content: Rows) -> Path:
    write_images(folder, content)
    lines = [json.dumps({"image": f"{name}.png", "caption": text}) for name, _, text in content]
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder / "data.jsonl"


def as_tars(folder: Path, content: Rows) -> Path:
    members = [
        (name, {"png": image} | ({} if caption is None else {"txt": caption.encode()}))
        for name, image, caption in content
    ]
    write_shard(folder / "0.tar", members[::2])
    write_shard(folder / "1.tar", members[1::2])
    return folder


def as_parquet(folder: Path, content: Rows) -> Path:
    pa = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    names, images, captions = zip(*content, strict=True)
    table = pa.table({"key": names, "image": pa.array(images, pa.binary()), "caption": captions})
    __import__("pyarrow.parquet").parquet.write_table(table, folder / "data.parquet")
    return folder / "data.parquet"


def as_array_record(folder: Path, content: Rows) -> Path:
    pytest.importorskip("array_record")
    from clip_jax.data.sources.array_record import write_array_records

    folder.mkdir(parents=True)
    records = ((name, image, (caption or "",), {}) for name, image, caption in content)
    write_array_records(folder / "train.array_record-00000-of-00001", records)
    return folder


def as_huggingface(folder: Path, content: Rows) -> Path:
    datasets = pytest.importorskip("datasets")
    names, images, captions = zip(*content, strict=True)
    columns = {
        "key": names,
        "image": [{"bytes": image, "path": None} for image in images],
        "caption": captions,
    }
    features = {"key": datasets.Value("string"), "image": datasets.Image()}
    features["caption"] = datasets.Value("string")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.save_to_disk(str(folder))
    return folder


def as_mixture(folder: Path, content: Rows) -> Source:
    """The unusable rows are all in one of the sources; the share is one of all records."""
    good = [row for row in content if row[2] is not None]
    bad = [row for row in content if row[2] is None]
    one = open_source(as_folder(folder / "one", good[:20]))
    two = open_source(as_csv(folder / "two", good[20:] + bad))
    return MixtureSource([one, two], ["one", "two"], [1.0, 1.0])


def as_stream(folder: Path, content: Rows) -> Source:
    return StreamingSource(str(as_tars(folder, content) / "{0..1}.tar"))


def as_refined(folder: Path, content: Rows) -> Source:
    return RefinedSource(open_source(as_csv(folder, content)), filters=FilterOptions(min_words=1))


FORMATS: dict[str, Callable[[Path, Rows], Any]] = {
    name.removeprefix("as_"): made
    for name, made in list(globals().items())
    if name.startswith("as_")
}


def batches(source: Source, fraction: float = 0.1) -> BatchIterator:
    return training_batches(
        source,
        lambda texts: np.zeros((len(texts), 2), np.int32),
        8,
        "bicubic",
        Augmentation(),
        batch_size=4,
        seed=0,
        max_bad_fraction=fraction,
    )


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
    written = FORMATS[format](folder, rows(bad))
    return open_source(written) if isinstance(written, Path) else written


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_unusable_counts_in_every_format(format: str, tmp_path: Path) -> None:
    assert read(made(format, tmp_path / "few", 3)).total() == 3
    many = made(format, tmp_path / "many", 3 * GOOD)
    with pytest.raises(UserError) as error:
        read(many)
    message = str(error.value)
    assert "\n" not in message
    assert "cannot be used (" in message
    assert " x caption_" in message
    assert "more than max_bad_fraction=0.1; such as " in message
    assert message.endswith("repair the data, or raise config.data.max_bad_fraction")
    seen = read(many, 0.8).total()
    assert seen == 3 * GOOD or (format == "array_record" and 0 < seen < 3 * GOOD)


@pytest.mark.parametrize("format", FORMATS)
def test_it_is_said_before_anything_slow_where_it_is_known(format: str, tmp_path: Path) -> None:
    source = made(format, tmp_path / "many", 3 * GOOD)
    if format in ("array_record", "stream"):  # captions are read with the images
        check_opened(source, 0.1)
        return
    expected = r"^90 of 120 records when the data was opened cannot be used \(90 x caption_"
    with pytest.raises(UserError, match=expected):
        check_opened(source, 0.1)
    with pytest.raises(UserError, match=expected):
        batches(source)


def test_both_moments_add_up(tmp_path: Path) -> None:
    content = rows(2)
    for n in (5, 9):
        content[n] = (content[n][0], b"no image", content[n][2])
    source = open_source(as_csv(tmp_path / "set", content))
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
    write_images(tmp_path, rows(0))
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
    found = Opened()
    assert found.add(10, counts) == left_out
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
    tally = Tally(Opened(kept, left_out), count, tried, Counter(image_undecodable=bad))
    assert tally.exceeds(fraction) == expected


def test_a_lost_shard_ends_no_run(tmp_path: Path) -> None:
    folder = as_tars(tmp_path / "set", rows(0))
    (folder / "2.tar").write_bytes(b"<html>")
    whole = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(whole[: len(whole) * 2 // 3])
    for source in (open_source(folder), StreamingSource(str(folder / "{0..2}.tar"))):
        assert read(source, 0.0)["shard_unreadable"] == 1


def test_a_stream_goes_on_counting_when_it_is_resumed(tmp_path: Path) -> None:
    source = as_stream(tmp_path / "set", rows(3))
    first = batches(source)
    for _ in range(5):
        next(first)
    first.close()
    state = json.loads(json.dumps(first.state()))
    assert state["opened"]["left_out"] == 3
    second = training_batches(
        source, lambda texts: np.zeros((len(texts), 2), np.int32), 8, "bicubic", Augmentation(),
        batch_size=4, seed=0, start_batch=5, cursor=state["cursor"],
    )  # fmt: skip
    second.resume(state)
    next(second)
    second.close()
    assert second.state()["opened"] == state["opened"]
    assert second.dropped == first.dropped


def test_a_run_stops_before_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_csv(tmp_path / "set", rows(3 * GOOD))
    monkeypatch.setattr(
        "clip_jax.training.run.opening.sharded_state", lambda *_: pytest.fail("began to compile")
    )
    config = build_config(
        tiny_config(data__path=str(path), data__format="auto", batch_size=8, mesh__data=8)
    )
    with pytest.raises(UserError, match=r"90 of 120 records .* raise config\.data\.max"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_three_examples_are_enough() -> None:
    class Source:
        dropped = Drops()

        def __len__(self) -> int:
            return 5

    for n in range(50):
        Source.dropped.add("caption_empty", f"row {n}", "caption is empty")
    with pytest.raises(UserError, match=r"such as row 0: [^;]*; row 1: [^;]*; row 2: [^;]*; rep"):
        check_opened(Source(), 0.5)  # type: ignore[arg-type]
    assert SourceOptions().listed_drops > 3
