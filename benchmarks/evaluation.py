"""Retrieval against a bare blocked matrix product, its memory, and the time of an interval.

    python benchmarks/evaluation.py --images=100000 --texts=200000

In turns: `retrieval_recalls` of random embeddings, both ways, and the two products alone, in blocks
of the same size, whose row maxima are kept. The peak is that of a process which only makes the
embeddings and calls `retrieval_recalls`; what it holds before the call is told apart. Prints one
JSON object.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from clip_jax.evaluation import bootstrap_interval, retrieval_recalls
from clip_jax.evaluation.retrieval import GALLERY_PER_BLOCK, QUERIES_PER_BLOCK

LIMITS = {"over_bare": 1.2, "peak_gib": 1.5, "interval_seconds": 1.0}
GIB = 2**20  # in the KiB of ru_maxrss

_IMAGES = flags.DEFINE_integer("images", 100_000, "Images of the gallery.", lower_bound=1)
_TEXTS = flags.DEFINE_integer("texts", 200_000, "Captions, several an image.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 64, "Of an embedding.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of the two.", lower_bound=1)
_MEMORY_ONLY = flags.DEFINE_bool("memory_only", False, "Only the peak, as the inner process does.")


def random_embeddings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns unit rows of images (N, D) and texts (T, D), float32, and each text's image (T,)."""
    rng = np.random.default_rng(0)

    def unit_rows(count: int) -> np.ndarray:
        rows = rng.standard_normal((count, _WIDTH.value), np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    image_of_text = np.arange(_TEXTS.value) % _IMAGES.value
    return unit_rows(_IMAGES.value), unit_rows(_TEXTS.value), image_of_text


def peak_gib() -> float:
    """Returns the largest memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


@jax.jit
def _row_maxima(queries_BD: jax.Array, gallery_NGD: jax.Array) -> jax.Array:
    """Returns float32 (B,), of queries against all blocks of a gallery."""

    def largest(best_B: jax.Array, gallery_GD: jax.Array) -> tuple[jax.Array, None]:
        score = jnp.matmul(queries_BD, gallery_GD.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum(best_B, score.max(1)), None

    start_B = jnp.full(len(queries_BD), -jnp.inf)
    return jax.lax.scan(largest, start_B, gallery_NGD)[0]


def bare_product(queries_QD: np.ndarray, gallery_GD: np.ndarray) -> np.ndarray:
    """Returns the largest product of each query, float32 (Q,)."""
    blocks = -(-len(gallery_GD) // GALLERY_PER_BLOCK)
    padded = np.zeros((blocks * GALLERY_PER_BLOCK, gallery_GD.shape[1]), np.float32)
    padded[: len(gallery_GD)] = gallery_GD
    fixed = jnp.asarray(padded.reshape(blocks, GALLERY_PER_BLOCK, -1))
    starts = range(0, len(queries_QD), QUERIES_PER_BLOCK)
    found = [_row_maxima(queries_QD[i : i + QUERIES_PER_BLOCK], fixed) for i in starts]
    return np.concatenate([np.asarray(block) for block in found])


def seconds(work: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure_memory() -> dict[str, float]:
    """Returns the peak in a process of its own."""
    inner = [sys.executable, *sys.argv, "--memory_only"]
    return json.loads(subprocess.run(inner, check=True, capture_output=True, text=True).stdout)


def main(argv: list[str]) -> None:
    """Measures, and prints the object."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    images, texts, image_of_text = random_embeddings()
    if _MEMORY_ONLY.value:
        jax.devices()
        before = peak_gib()
        retrieval_recalls(images, texts, image_of_text)
        print(json.dumps({"before_gib": round(before, 2), "peak_gib": round(peak_gib(), 2)}))
        return
    few = slice(0, 4 * GALLERY_PER_BLOCK)  # compiles what does not depend on the count
    bare_product(texts[few], images[few])
    turns = []
    for _ in range(_ROUNDS.value):
        ours = seconds(lambda: retrieval_recalls(images, texts, image_of_text))
        there = seconds(lambda: bare_product(texts, images))
        turns.append((ours, there + seconds(lambda: bare_product(images, texts))))
    values = np.random.default_rng(0).random(50_000)  # all different, which takes longest
    interval = seconds(lambda: bootstrap_interval(values, resamples=10_000))
    result: dict[str, Any] = {
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "images": len(images),
        "texts": len(texts),
        "seconds": {
            "ours": round(statistics.median(ours for ours, _ in turns), 1),
            "bare": round(statistics.median(bare for _, bare in turns), 1),
        },
        "over_bare": round(statistics.median(ours / bare for ours, bare in turns), 3),
        "ratios_over_bare": [round(ours / bare, 3) for ours, bare in turns],
        **measure_memory(),
        "interval_seconds": round(interval, 2),
        "limits": LIMITS,
    }
    result["kept"] = all(result[name] <= limit for name, limit in LIMITS.items())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
