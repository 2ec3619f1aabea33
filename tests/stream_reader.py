"""A process that reads batches of shards and writes down what it read; killed and started again it
goes on where it was.

    python tests/stream_reader.py FOLDER PATTERN BATCHES WORKERS STREAMING
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from shards import words

from clip_jax.data.augmentation import Augmentation
from clip_jax.data.pipeline import training_batches
from clip_jax.data.sources import open_source
from clip_jax.data.streaming import StreamingSource


def main(folder: Path, pattern: str, batches: int, workers: int, streaming: bool) -> None:
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "True")
