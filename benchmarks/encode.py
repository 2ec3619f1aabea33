"""`clip.encode_image` of ViT-B/32 against PyTorch's, and the time from a folder to an embedding.

    python benchmarks/encode.py --peer_python=PATH_OF_AN_ENVIRONMENT_WITH_OPEN_CLIP/bin/python

Images are encoded in turns, a few batches each, float32; ours starts from bytes and ends in numpy,
as a user calls it. What counts is the median of the ratios; above 1 ours is faster. Transforming
images and tokenizing texts are timed apart. Loading runs in fresh processes, without and with a
compilation cache. Prints one JSON object.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from peer import Peer, PeerError, matmul_flops_per_second

import clip_jax
from clip_jax.hosts.memory import keep_freed_memory

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each; the first warms up.", lower_bound=3)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images a batch.")
_MODEL = flags.DEFINE_string("model", "ViT-B-32", "A name of clip_jax.list_models().")

LOAD = """
import sys, time
begun = time.perf_counter()
import numpy as np
import clip_jax
clip = clip_jax.load(sys.argv[1])
loaded = time.perf_counter() - begun
size = clip.config.image_size
embeds = clip.encode_image(np.zeros((1, size, size, 3), np.uint8))
assert np.isfinite(embeds).all()
print(loaded, time.perf_counter() - begun)
"""


def encode_turns(clip: clip_jax.Clip) -> dict[str, Any]:
    """Ours and the peer's in turns."""
    from clip_jax.models.flops import image_flops

    batch, size = _BATCH_SIZE.value, clip.config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    peer = Peer(clip.config, batch)

    def ours(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            clip.encode_image(pixels, batch_size=batch)
        return (time.perf_counter() - begun) / count

    ours(1)  # compiles
    count = max(1, round(2.0 / ours(1)))
    rows = []
    for turn in range(_ROUNDS.value):
        row = ours(count), peer.time("encode", count), matmul_flops_per_second()
        if turn:
            rows.append(row)
    peer.close()
    mine, theirs, limit = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "ratio": round(statistics.median(b / a for a, b, _ in rows), 3),
        "ratios": [round(b / a, 3) for a, b, _ in rows],
        "images_per_second": round(batch / mine, 1),
        "peer_images_per_second": round(batch / theirs, 1),
        "share_of_limit": round(batch * image_flops(clip.config) / mine / limit, 3),
        "peer": peer.about,
    }


def transforms_per_second(clip: clip_jax.Clip) -> float:
    """Images of 640 x 480, decoded already, on one core."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < 2:
        clip.transform(image)
        count += 1
    return round(count / (time.perf_counter() - begun), 1)


def load_seconds(folder: Path, cache: Path | None) -> list[float]:
    """[loaded, first embedding] of a fresh process."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return [round(float(word), 2) for word in done.stdout.split()]


def main(_: list[str]) -> None:
    if not flags.FLAGS.peer_python:
        raise SystemExit("error: --peer_python: give the python of an environment with open_clip")
    keep_freed_memory()  # as our programs do
    clip = clip_jax.create(_MODEL.value)
    result: dict[str, Any] = {"model": _MODEL.value, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "model", Path(scratch) / "cache"
        clip.save(folder, "huggingface")
        runs = {"cold": None, "fills_the_cache": cache, "with_cache": cache}
        result["seconds_to_load_and_first_embedding"] = {
            name: load_seconds(folder, where) for name, where in runs.items()
        }
    result["transforms_per_second"] = transforms_per_second(clip)
    try:
        result["encode"] = encode_turns(clip)
    except PeerError as error:
        result["encode"] = {"skipped": str(error)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
