"""A process that reads batches of shards and writes down what it read; killed and started again it
goes on where it was.

    python tests/support/stream_reader.py FOLDER PATTERN BATCHES STREAMING KILLS

Each reader is a child that begins with everything imported: most of a start is imports.
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from shards import words

from clip_jax.data.sources import open_source
from clip_jax.data.stream.pipeline import training_batches
from clip_jax.data.stream.shards import StreamingSource
from clip_jax.images.augmentation import Augmentation


def read(folder: Path, pattern: str, batches: int, workers: int, streaming: bool) -> None:
    source = StreamingSource(pattern) if streaming else open_source(pattern)
    path = folder / "state.json"
    state = json.loads(path.read_text()) if path.exists() else None
    iterator = training_batches(
        source,
        words,
        16,
        "bicubic",
        Augmentation(crop_scale=(0.3, 1.0), flip_probability=0.5),
        batch_size=12,
        seed=3,
        workers=workers,
        start_batch=state["next_batch"] if state else 0,
        cursor=state and state.get("cursor"),
        streams=4 if streaming else None,
    )
    if state:
        iterator.resume(state)
    with open(folder / "read.jsonl", "a") as log:
        while iterator.next_batch < batches:
            number = iterator.next_batch
            batch = next(iterator)
            digest = hashlib.sha256(batch["images"].tobytes() + batch["tokens"].tobytes())
            row = {"batch": number, "digest": digest.hexdigest(), "workers": workers}
            log.write(json.dumps(row | {"samples": batch["tokens"][:, 1].tolist()}) + "\n")
            log.flush()
            part = folder / "state.part"
            part.write_text(json.dumps(iterator.state()))
            os.replace(part, path)
    iterator.close()


def written(folder: Path) -> list[dict[str, Any]]:
    path = folder / "read.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def main(folder: Path, pattern: str, batches: int, streaming: bool, kills: int) -> None:
    """Reads all batches, killed so often at random, with another number of workers in between."""
    fork = multiprocessing.get_context("fork")
    for attempt in range(kills + 1):
        workers = (0, 0, 2, 0, 1, 0, 3)[attempt % 7] if kills else 0
        done = len(written(folder))
        child = fork.Process(target=read, args=(folder, pattern, batches, workers, streaming))
        child.start()
        if attempt < kills:
            more = random.randrange(batches // (2 * kills))
            end = time.monotonic() + 60
            while len(written(folder)) <= done + more and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.01))
            child.kill()
        child.join()
        assert child.exitcode == (-signal.SIGKILL if attempt < kills else 0), f"attempt {attempt}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True", int(sys.argv[5]))
