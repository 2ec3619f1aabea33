"""Images a second from tar files to batches of pixels and tokens, and what lies below them.

    python benchmarks/input_pipeline.py --tars='PATH/grocery/train/*.tar' \\
        --peer_python=PATH_OF_AN_ENVIRONMENT_WITH_OPEN_CLIP/bin/python

The photos are stretched to 640x480, saved again and put into tars. In turns, in an order that is
turned round each time: one core that decodes and crops alone; the whole pipeline on that one core,
worker, trainer and tokens of OpenAI's vocabulary included; the same with one worker and with two on
all cores; open_clip's loader with one worker and with two, on the same tars (it hands over
normalised floats, ours bytes that the device normalises). Then reading at random against reading
in sequence, by the index and by `tarfile`, and how long it takes to index 100,000 samples.
Prints one JSON object; ratios are medians over the turns.
"""

import contextlib
import io
import json
import os
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Source
from clip_jax.data.sources import open_source
from clip_jax.data.stream.pipeline import training_batches
from clip_jax.data.tars.collection import index_file
from clip_jax.files.stores import Stat
from clip_jax.hosts.memory import keep_freed_memory
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.text.tokenizer import get_tokenizer

_TARS = flags.DEFINE_string("tars", None, "Archives of photos.", required=True)
_PEER = flags.DEFINE_string("peer_python", None, "Python of an environment with open_clip.")
_PEER_PATH = flags.DEFINE_string("peer_pythonpath", "", "PYTHONPATH for the peer.")
_SAMPLES = flags.DEFINE_integer("samples", 2048, "In the tars.", lower_bound=256)
_SHARDS = flags.DEFINE_integer("shards", 8, "Tars.", lower_bound=2)
_SECONDS = flags.DEFINE_float("seconds", 8.0, "Of each turn.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images a batch.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "clip_bpe", "Anything get_tokenizer takes.")
_CROP = Augmentation(crop_scale=(0.9, 1.0))


def make_tars(folder: Path) -> str:
    """Tars of JPEGs of 640x480 with captions; the pattern of all, as both sides read it."""
    photos = open_source(_TARS.value)
    each = -(-_SAMPLES.value // _SHARDS.value)
    for shard in range(_SHARDS.value):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(shard * each, min((shard + 1) * each, _SAMPLES.value)):
                record = photos[number % len(photos)]
                picture = Image.open(io.BytesIO(record.image)).convert("RGB")
                stream = io.BytesIO()
                large = picture.resize((640, 480), Image.Resampling.LANCZOS)
                large.save(stream, "JPEG", quality=90)
                add(archive, f"{number:06d}.jpg", stream.getvalue())
                add(archive, f"{number:06d}.txt", record.captions[0].encode())
    return f"{folder}/{{00000..{_SHARDS.value - 1:05d}}}.tar"


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def decode_rate(source: Source) -> float:
    """Images a second of one thread that has the bytes already."""
    files = [source[n].image for n in range(256)]
    rng = np.random.default_rng(0)
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < _SECONDS.value / 2:
        for file in files:
            training_image(file, 224, "bicubic", _CROP, rng)
        done += len(files)
    return done / (time.perf_counter() - begun)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process and those that it starts, on one core."""
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("error: this system cannot bind a process to a core; Linux can")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def bound(rate: Callable[[], float]) -> Callable[[], float]:
    def measure() -> float:
        with one_core():
            return rate()

    return measure


def pipeline_rate(source: Source, workers: int) -> float:
    """Images a second of the batches; starting the workers is not in it."""
    batches = training_batches(
        source,
        get_tokenizer(_TOKENIZER.value).with_truncation(True),
        224,
        "bicubic",
        _CROP,
        batch_size=_BATCH_SIZE.value,
        seed=0,
        workers=workers,
    )
    for _ in range(2 * workers + 2):  # what was made ahead
        next(batches)
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < _SECONDS.value:
        done += len(next(batches)["images"])
    rate = done / (time.perf_counter() - begun)
    batches.close()
    return rate


def read_rates(source: Source, folder: Path) -> dict[str, float]:
    """Samples a second, bytes and captions, in batches of 256: in sequence and at random by the
    index, and by `tarfile` from the first byte to the last."""
    count = len(source)
    orders = {"sequential": np.arange(count), "random": np.random.default_rng(0).permutation(count)}
    rates: dict[str, list[float]] = {name: [] for name in (*orders, "tarfile")}
    for _ in range(9):
        for name, order in orders.items():
            begun = time.perf_counter()
            for start in range(0, count - 255, 256):
                [source[int(n)] for n in order[start : start + 256]]
            rates[name].append(count / (time.perf_counter() - begun))
        begun = time.perf_counter()
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path, "r|") as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    assert file is not None
                    file.read()
        rates["tarfile"].append(count / (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in rates.items()}


def index_seconds(folder: Path) -> float:
    """Of one tar of 100,000 samples with three members each, in one process."""
    path = folder / "many.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(100_000):
            for ending, size in (("jpg", 1500), ("txt", 40)):
                add(archive, f"{number:09d}.{ending}", b"x" * size)
            add(
                archive,
                f"{number:09d}.json",
                json.dumps({"width": number, "url": "x" * 60}).encode(),
            )
    begun = time.perf_counter()
    problem = index_file(str(path), Stat(0, ""), folder / "many.index", SourceOptions())
    assert problem is None, problem
    return time.perf_counter() - begun


class OpenClip:
    """The worker process of peer_pipeline.py."""

    def __init__(self) -> None:
        worker = Path(__file__).with_name("peer_pipeline.py")
        self.process = subprocess.Popen(
            [str(_PEER.value), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": _PEER_PATH.value, "OMP_NUM_THREADS": "1"},
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("error: the peer ended; its message is above")

    def rate(self, tars: str, workers: int) -> float:
        assert self.process.stdin is not None
        # So many that no epoch ends, and no workers start again, within a turn.
        request = {"tars": tars, "samples": 10_000_000, "batch_size": _BATCH_SIZE.value}
        request |= {"workers": workers, "seconds": _SECONDS.value}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()["rate"]


def main(_: list[str]) -> None:
    keep_freed_memory()  # as our programs do
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CLIP_JAX_CACHE"] = os.environ.get("CLIP_JAX_CACHE", f"{scratch}/cache")
        tars = make_tars(Path(scratch))
        source = open_source(tars)
        sides: dict[str, Callable[[], float]] = {
            "decode_one_core": bound(lambda: decode_rate(source)),
            "ours_one_core": bound(lambda: pipeline_rate(source, 1)),
            "ours_1_worker": lambda: pipeline_rate(source, 1),
            "ours_2_workers": lambda: pipeline_rate(source, 2),
        }
        peer = OpenClip() if _PEER.value else None
        if peer is not None:
            sides["open_clip_1_worker"] = lambda: peer.rate(tars, 1)
            sides["open_clip_2_workers"] = lambda: peer.rate(tars, 2)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(_ROUNDS.value):
            for name in list(sides)[:: -1 if turn % 2 else 1]:
                rates[name].append(sides[name]())

        def ratio(above: str, below: str) -> float:
            pairs = zip(rates[above], rates[below], strict=True)
            return round(statistics.median(a / b for a, b in pairs), 2)

        reading = read_rates(source, Path(scratch))
        result: dict[str, Any] = {
            "samples": len(source),
            "images_per_second": {
                name: round(statistics.median(values)) for name, values in rates.items()
            },
            "pipeline_to_decode": ratio("ours_one_core", "decode_one_core"),
            "two_workers_to_one": ratio("ours_2_workers", "ours_1_worker"),
            "samples_read_per_second": {name: round(rate) for name, rate in reading.items()},
            "random_to_sequential": round(reading["random"] / reading["sequential"], 2),
            "random_to_tarfile": round(reading["random"] / reading["tarfile"], 2),
            "index_100000_samples_seconds": round(index_seconds(Path(scratch)), 1),
        }
        if peer is not None:
            result["peer"] = peer.about
            for workers in ("1_worker", "2_workers"):
                result[f"ratio_{workers}"] = ratio(f"ours_{workers}", f"open_clip_{workers}")
            result["ratio"] = result["ratio_1_worker"]
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
