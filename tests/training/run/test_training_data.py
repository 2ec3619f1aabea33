"""What a configuration says of its data: a mixture, a stream, rules; and what a run says of it."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shards import png, write_shard, write_shards
from tiny import tiny_config

from clip_jax.data.records import LISTED_DROPS, Drops
from clip_jax.data.sources.refine import RefinedSource
from clip_jax.data.sources.synthetic import SyntheticSource
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.errors import DecodeError, UserError
from clip_jax.images.perceptual_hash import perceptual_hash
from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run import opening as run_module
from clip_jax.training.run.data import DataWatch, captions_of, open_data
from clip_jax.training.run.loop import train


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))


def opened(**changes: Any):
    values = {f"data__{name}": value for name, value in changes.items()}
    return open_data(build_config(tiny_config(**{"data__format": "auto"} | values)))


def test_a_mixture(tmp_path: Path) -> None:
    one = write_shards(tmp_path / "one", (3, 4))
    fields = {"png": png(9), "txt": b"short", "json": b'{"alt": "a long one"}'}
    write_shard(tmp_path / "two.tar", [("k", fields)])
    two = {"path": str(tmp_path / "two.tar"), "caption_column": "alt", "weight": 1}
    source = opened(path="", mixture=({"path": one, "weight": 3.0}, two))
    assert isinstance(source, MixtureSource)
    assert (len(source), source.weights) == (8, (3.0, 1.0))
    assert source.captions(7) == ("a long one",)
    assert list(captions_of(source))[-2:] == ["number 6", "a long one"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mixture": ({"path": "x", "wieght": 1},)}, r"mixture\[0\]\.wieght'; did you .*weight"),
        ({"mixture": ({"weight": 1},)}, r"mixture\[0\] has no path"),
        ({"mixture": ("x",)}, r"mixture\[0\]='x': must be a group"),
        ({"mixture": ({"path": "x", "weight": "a"},)}, r"mixture\[0\]\.weight='a': must be a numb"),
        # Weights are checked before anything is opened: x is not there.
        ({"mixture": ({"path": "x", "weight": -1.0},)}, r"mixture\[0\]\.weight=.*at least 0"),
        ({"mixture": ({"path": "x", "weight": NAN},)}, r"mixture\[0\]\.weight=.*at least 0"),
        ({"mixture": ({"path": "x", "weight": 0},)}, "sum to 0"),
        ({"mixture": ({"path": "y"},), "path": "x"}, "give one of them"),
        ({"mixture": ({"path": "y"},), "streaming": True}, "streaming=True: reads one path"),
    ],
)
def test_mistakes(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(**{"path": ""} | data)


def test_a_stream_has_no_epochs() -> None:
    with pytest.raises(UserError, match=r"epochs=2.0: .*give config.steps"):
        build_config(tiny_config(data__streaming=True, steps=None, epochs=2.0))


def test_streams_are_of_tars(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match=r"streaming=True: streams are of tars, and .* as csv"):
        opened(path=str(tmp_path / "a.csv"), streaming=True)
    path = write_shards(tmp_path / "one", (3,))
    with pytest.raises(UserError, match=r"streams are of tars, and .* as parquet"):
        opened(path=path, streaming=True, format="parquet")
    for streaming in (True, False):
        with pytest.raises(UserError, match=r"image_column='x': .*webdataset.*jpg, jpeg.*leave it"):
            opened(path=path, streaming=streaming, image_column="x")


def test_a_run_says_how_many_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, not those that are listed."""
    dropped = Drops()
    for number in range(LISTED_DROPS + 500):
        dropped.add("caption_empty", str(number), "caption is empty")
    said: list[str] = []
    run: Any = SimpleNamespace(
        source=SyntheticSource("4"),
        progress=SimpleNamespace(say=said.append),
        config=SimpleNamespace(loss_implementation="auto", batch_size=2),
        architecture=SimpleNamespace(name="tiny"),
        steps=1,
        mesh=SimpleNamespace(size=1),
    )
    run.source.dropped = dropped
    monkeypatch.setattr(run_module, "batch_shards", lambda _: 1)
    monkeypatch.setattr(run_module, "effective_implementation", lambda *_: ("", None))
    run_module._announce(run, "begins")
    assert said[10] == "left out: 1,490 more"
    assert "4 pairs, 1,500 left out" in said[-1]


def test_rules(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "one", (3,))
    (tmp_path / "list").write_text(f"{perceptual_hash(png(0)):x}")
    source = opened(path=path, exclude=str(tmp_path / "list"))
    assert isinstance(source, RefinedSource)
    with pytest.raises(DecodeError, match="on the list"):
        source[1]
    source = opened(path=path, filters__min_words=3)
    assert list(captions_of(source)) == []


def test_waiting_is_told_now_and_then() -> None:
    batches: Any = SimpleNamespace(
        counts=Counter(bytes_read=1000, store_retries=2), dropped=Counter(duplicate=3)
    )
    watch = DataWatch(batches, workers=0)
    row = {"data_bytes_per_second": 500.0, "dropped_duplicate": 3, "data_store_retries": 2}
    assert watch.row(2.0) == row
    assert watch.row(2.0) == row | {"data_bytes_per_second": 0.0}
    assert watch.advice(10, 0.04) is None
    advice = watch.advice(20, 0.3)
    assert advice is not None
    assert "30 % of the time was spent waiting for data; raise config.data.workers" in advice
    assert watch.advice(30, 0.3) is None
    assert watch.advice(1100, 0.3) is not None
    assert "convert --resize" in (DataWatch(batches, workers=999).advice(1, 0.5) or "")


@pytest.mark.slow
def test_a_stream_trains_and_resumes(tmp_path: Path) -> None:
    """From the checkpoint in the middle: the same losses again, bit for bit."""
    path = write_shards(tmp_path / "set", (9, 12, 5, 14))
    config = build_config(
        tiny_config(
            data__format="auto", data__path=path, data__streaming=True, data__streams=4,
            batch_size=8, augmentation__shift=0.0, steps=12, checkpoint__every_steps=6,
        )
    )  # fmt: skip
    assert isinstance(open_data(config), StreamingSource)
    run = tmp_path / "run"
    train(config, run)
    losses = [row["loss"] for row in read_rows(run / "metrics.jsonl")]
    assert len(set(losses)) == 12
    shutil.rmtree(run / "checkpoints" / "12")
    shutil.rmtree(run / "model")
    train(config, run)
    assert [row["loss"] for row in read_rows(run / "metrics.jsonl")] == losses
