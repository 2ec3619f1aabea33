"""Half an hour of the input pipeline alone at full speed: does it keep memory or files?

    python benchmarks/soak.py --data='PATH/grocery/train' --also=PATH/emoji

Batches of a mixture of both, with worker processes; once a second the resident memory of the
trainer and its workers together, and their open files. Prints one JSON object: medians of each
third of the time, and the last over the second; above the limit of 1.02 it exits with 1.
"""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from clip_jax.data.sources import open_source
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.data.stream.pipeline import training_batches
from clip_jax.hosts.memory import keep_freed_memory
from clip_jax.images.augmentation import Augmentation
from clip_jax.text.tokenizer import get_tokenizer

_DATA = flags.DEFINE_string("data", None, "Anything open_source takes.", required=True)
_ALSO = flags.DEFINE_string("also", None, "A second source.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", "clip_bpe", "Anything get_tokenizer takes.")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "How long.", lower_bound=0.1)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes; 0: threads.")


def family() -> list[int]:
    """This process and its children."""
    mine = os.getpid()
    found = [mine]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended
            continue
        if parent in found:
            found.append(int(path.parent.name))
    return found


def footprint() -> tuple[int, int]:
    """(bytes of memory, open files) of the family; what processes share is split among them."""
    memory = files = 0
    for process in family():
        try:
            fields = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            memory += sum(int(x.split()[1]) for x in fields if x.startswith("Pss:")) * 1024
            files += len(os.listdir(f"/proc/{process}/fd"))
        except OSError:
            continue
    return memory, files


def main(_: list[str]) -> None:
    keep_freed_memory()  # as our programs do
    source = MixtureSource(
        [open_source(_DATA.value), open_source(_ALSO.value)], ["first", "second"], [1.0, 1.0]
    )
    batches = training_batches(
        source,
        get_tokenizer(_TOKENIZER.value).with_truncation(True),
        224,
        "bicubic",
        Augmentation(),
        batch_size=256,
        seed=0,
        workers=_WORKERS.value,
    )
    samples: list[tuple[float, int, int]] = []
    images, begun = 0, time.monotonic()
    while (now := time.monotonic() - begun) < 60 * _MINUTES.value:
        images += len(next(batches)["images"])
        if not samples or now - samples[-1][0] >= 1:
            samples.append((now, *footprint()))
    batches.close()
    third = len(samples) // 3
    thirds = [samples[n * third : (n + 1) * third] for n in range(3)]
    memory = [statistics.median(x[1] for x in part) for part in thirds]
    files = [statistics.median(x[2] for x in part) for part in thirds]
    result: dict[str, Any] = {
        "minutes": _MINUTES.value,
        "images_per_second": round(images / (60 * _MINUTES.value)),
        "memory_mib": [round(value / 2**20, 1) for value in memory],
        "open_files": files,
        "ratio": round(memory[2] / memory[1], 4),
        "limit": 1.02,
        "ratio_files": round(files[2] / files[1], 4),
    }
    print(json.dumps(result, indent=1))
    if max(result["ratio"], result["ratio_files"]) > result["limit"]:
        raise SystemExit("error: memory or open files grow")


if __name__ == "__main__":
    app.run(main)
