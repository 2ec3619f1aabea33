"""Mutated files give pixels or a DecodeError: no crash, no hang, no more memory than a picture."""

import multiprocessing
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from mutations import mutated
from pictures import encode, photo, turned
from places import SHARED_DATA

from clip_jax.data.sources import open_source
from clip_jax.errors import DecodeError
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.images.decoding import decode

HOSTILE = SHARED_DATA / "hostile"
SECONDS_EACH = 5.0


def originals():
    """Small files of the three formats and their kinds."""
    rng = np.random.default_rng(0)
    kinds = [
        ("JPEG", "RGB", {"quality": 90}),
        ("JPEG", "RGB", {"quality": 80, "progressive": True, "exif": turned(6)}),
        ("JPEG", "RGB", {"subsampling": "4:4:4", "restart_marker_rows": 1}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"exif": turned(6)}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True, "exif": turned(6)}),
    ]
    for format, mode, options in kinds:
        for _ in range(2):
            width, height = rng.integers(32, 201, 2).tolist()
            yield encode(photo(width, height).convert(mode), format, **options)


def read_all(what: str, count: int) -> tuple[Counter[str], float, float]:
    """(what becomes of mutated files or of the hostile ones, longest time, peak in MiB)"""
    warnings.simplefilter("ignore")  # Pillow's, about broken EXIF blocks
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    if what == "fuzz":
        files, rng = list(originals()), np.random.default_rng(1)
        chosen = (files[number % len(files)] for number in range(count))
        cases = (mutated(data, rng, lambda place: place % 300) for data in chosen)
    else:
        source = open_source(HOSTILE / "00000.tar")
        cases = (source[index].image for index in range(len(source)))
    options = [Augmentation(crop_scale=(0.2, 1), fast_decode=is_fast) for is_fast in (True, False)]
    for number, data in enumerate(cases):
        begun = time.perf_counter()
        found = set()
        for augmentation in (None, *options):
            try:
                if augmentation is None:
                    decode(data)
                else:
                    rng_of_image = np.random.default_rng(number)
                    training_image(data, 24, "bicubic", augmentation, rng_of_image)
                found.add("pixels")
            except DecodeError as error:
                found.add(error.kind if "\n" not in str(error) else "several lines")
        slowest = max(slowest, time.perf_counter() - begun)
        outcomes["/".join(sorted(found))] += 1
    # Not ru_maxrss: a child has that of the process that started it.
    with open("/proc/self/status") as file:
        [line] = [x for x in file if x.startswith("VmHWM")]
    return outcomes, slowest, int(line.split()[1]) / 1024


def in_a_child(what: str, count: int) -> tuple[Counter[str], float, float]:
    """In a process of its own, so that a crash or an endless loop is seen from outside."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        return pool.submit(read_all, what, count).result(timeout=SECONDS_EACH * 30)
    finally:
        for process in multiprocessing.active_children():
            process.kill()


def test_mutated_files():
    outcomes, slowest_seconds, _ = in_a_child("fuzz", 300)
    assert outcomes.total() == 300
    # Fast or full, training or evaluation: the same files are refused, for the same reason.
    assert set(outcomes) <= {"pixels", "image_undecodable", "image_bomb"}
    assert min(outcomes["pixels"], outcomes["image_undecodable"]) > 30
    assert slowest_seconds < SECONDS_EACH


@pytest.mark.skipif(
    not (HOSTILE / "EXPECTED.json").is_file(),
    reason="the hostile samples are not beside the repository (../shared/data/hostile)",
)
def test_bombs_take_no_memory():
    outcomes, slowest_seconds, peak_mib = in_a_child("hostile", 0)
    assert outcomes["image_bomb"] == 3
    assert set(outcomes) == {"pixels", "image_undecodable", "image_bomb"}
    assert peak_mib < 1024
    assert slowest_seconds < SECONDS_EACH
