"""Batches: the same for any worker count, resume and host; bad records; evaluation order."""

import itertools
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import encode
from PIL import Image

from clip_jax.data.records import Drops, Record
from clip_jax.data.stream.bad_share import Tally
from clip_jax.data.stream.evaluation_batches import evaluation_batches
from clip_jax.data.stream.pipeline import training_batches
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation
from clip_jax.images.transform import ImageTransform

SIZE = 8
PLAIN = Augmentation(crop_scale=(1, 1))
LIVELY = Augmentation(crop_scale=(0.4, 1), rotation_degrees=20, flip_probability=0.5)


class Memory:
    """Record i has the colour i and the captions "i", "i again"; those in `bad` do not decode."""

    def __init__(self, count, bad=(), side=SIZE, captions=1):
        self.count, self.bad, self.side, self.caption_count = count, frozenset(bad), side, captions
        self.dropped = Drops()
        self.fingerprint = f"{count} {captions}"

    def __len__(self):
        return self.count

    def key(self, index):
        return f"key{index}"

    def captions(self, index):
        return tuple(f"{index}{' again' * again}" for again in range(self.caption_count))

    def metadata(self, index):
        return {}

    def __getitem__(self, index):
        image: np.ndarray | bytes = np.full((self.side, self.side, 3), index % 256, np.uint8)
        if index in self.bad:
            image = b"\x89PNG broken"
        elif self.side != SIZE:
            rng = np.random.default_rng(index)
            noise = rng.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
            image = encode(Image.fromarray(noise), "PNG")
        return Record(self.key(index), image, self.captions(index))


def tokenize(texts):
    """The record's number and how often its caption says "again"."""
    return np.array([[int(text.split()[0]), text.count("again")] for text in texts], np.int32)


def batches(source, augmentation=PLAIN, **options):
    options = {"batch_size": 4, "seed": 0, **options}
    return training_batches(source, tokenize, SIZE, "bicubic", augmentation, **options)


def take(iterator, count):
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def test_shapes_and_that_image_caption_and_index_belong_together():
    for batch in take(batches(Memory(50)), 20):
        assert batch["images"].shape == (4, SIZE, SIZE, 3)
        types = {name: values.dtype.name for name, values in batch.items()}
        assert types == {"images": "uint8", "tokens": "int32", "indices": "int64"}
        np.testing.assert_array_equal(batch["tokens"][:, 0], batch["indices"])
        np.testing.assert_array_equal(batch["images"][:, 3, 3, 1], batch["indices"])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resumes_hosts_and_workers_change_nothing(workers):
    source = Memory(37, bad=(3, 17), side=20, captions=3)
    options = {"batch_size": 12, "max_bad_fraction": 0.5}
    alone = batches(source, LIVELY, **options)
    whole = take(alone, 8)
    assert not np.array_equal(whole[0]["images"][0], whole[0]["images"][1])
    # All rows, and those of one of three hosts, in one piece or not.
    for start, rows in ((0, range(12)), (3, range(4)), (7, (4, 5, 10, 11)), (0, (6, 7, 8, 9))):
        now = {"start_batch": start, "rows": rows, "workers": workers}
        iterator = batches(source, LIVELY, **options, **now)
        for batch, expected in zip(take(iterator, 8 - start), whole[start:], strict=True):
            for name in ("images", "tokens", "indices"):
                np.testing.assert_array_equal(batch[name], expected[name][list(rows)])
        if len(rows) == 12:
            assert iterator.tally.bad_records == alone.tally.bad_records
    assert len(alone.tally.bad_records) == 2


def test_captions_are_drawn_evenly_and_anew():
    drawn: dict[int, list[int]] = {}
    for batch in take(batches(Memory(40, captions=3)), 60):
        for index, again in batch["tokens"]:
            drawn.setdefault(index, []).append(again)
    counts = np.bincount(np.concatenate(list(drawn.values())), minlength=3)
    assert counts.sum() == 240
    assert (counts > 50).all()
    assert all(len(set(choices)) > 1 for choices in list(drawn.values())[:5])


def test_bad_records_are_replaced_by_others_and_named_once(caplog):
    source = Memory(200, bad=(7, 8, 150))
    with caplog.at_level(logging.WARNING):
        iterator = batches(source)
        good = take(iterator, 150)  # three epochs
    first_epoch = np.concatenate([batch["indices"] for batch in good[:50]])
    counts = np.bincount(first_epoch, minlength=200)
    assert counts[[7, 8, 150]].tolist() == [0, 0, 0]
    assert np.bincount(counts).tolist() == [3, 194, 3]  # each by another one, not by its neighbour
    assert set(iterator.tally.bad_records) == {"key7", "key8", "key150"}
    assert caplog.text.count("key7 left out") == 1
    for batch in good:
        np.testing.assert_array_equal(batch["tokens"][:, 0], batch["indices"])
        np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], batch["indices"])


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_all_records_bad_is_an_error_not_a_hang(fraction):
    with pytest.raises(UserError, match="cannot be used"):
        take(batches(Memory(20, bad=range(20)), max_bad_fraction=fraction), 1)


def test_state_is_json_and_tells_what_differs():
    source = Memory(30)
    iterator = batches(source, seed=3, batch_size=8, rows=range(4, 8), start_batch=4)
    take(iterator, 2)
    state = json.loads(json.dumps(iterator.state()))
    where = {"next_batch": 6, "seed": 3, "global_batch_size": 8, "fingerprint": "30 1"}
    tally = vars(Tally(30, kept=30, tried=8)) | {"bad": []}
    assert state == where | {"cursor": {}, "tally": tally}
    same = batches(source, seed=3, batch_size=8, start_batch=state["next_batch"])
    same.resume(state)
    same.close()
    for changed, options, message in (
        (Memory(31), {"seed": 3, "batch_size": 8}, "data"),
        (source, {"seed": 4, "batch_size": 8}, "seed=3 there, 4 now"),
        (source, {"seed": 3, "batch_size": 4}, "global_batch_size=8 there, 4 now"),
    ):
        other = batches(changed, **options)
        with pytest.raises(UserError, match=message):
            other.resume(state)
        other.close()


def test_a_resume_goes_on_counting_bad_records():
    source = Memory(40, bad=(3, 17, 18, 30))
    source.dropped.counts.update(caption_missing=5)  # when it was opened: counted once
    whole = batches(source, max_bad_fraction=0.5)
    assert whole.dropped == {"caption_missing": 5}
    take(whole, 12)
    first = batches(source, max_bad_fraction=0.5)
    take(first, 5)
    state = json.loads(json.dumps(first.state()))
    second = batches(source, max_bad_fraction=0.5, start_batch=5)
    second.resume(state)
    take(second, 7)
    assert second.tally.bad_records == whole.tally.bad_records
    assert second.state() == whole.state()
    assert len(whole.tally.bad_records) == 4
    assert second.dropped == {"caption_missing": 5, "image_undecodable": 4}


def test_impossible_requests_are_named():
    with pytest.raises(UserError, match="3 records, fewer than the global batch of 4"):
        batches(Memory(3))
    with pytest.raises(UserError, match="7 records, fewer than the global batch of 8"):
        batches(Memory(7), batch_size=8, rows=range(4))
    for name, value in (("batch_size", 0), ("seed", -1), ("workers", -1), ("start_batch", -1)):
        with pytest.raises(UserError, match=f"{name}={value}"):
            batches(Memory(9), **{name: value})


@pytest.mark.parametrize("batch_size", [1, 7, 64, 500])
def test_evaluation_keeps_order_and_leaves_out_the_bad(batch_size, caplog):
    source = Memory(150, bad=(0, 70, 149))
    bad: dict[str, str] = {}
    with caplog.at_level(logging.WARNING):
        results = list(evaluation_batches(source, ImageTransform(SIZE), batch_size, bad))
    indices = np.concatenate([numbers for numbers, _ in results])
    assert indices.tolist() == [i for i in range(150) if i not in (0, 70, 149)]
    assert indices.dtype == np.int64
    assert [len(numbers) for numbers, _ in results[:-1]] == [batch_size] * (len(results) - 1)
    for numbers, images in results:
        assert images.shape == (len(numbers), SIZE, SIZE, 3)
        np.testing.assert_array_equal(images[:, 0, 0, 0], numbers)
    assert set(bad) == {"key0", "key70", "key149"}
    assert "key70 left out" in caplog.text


def test_evaluation_can_be_left_early():
    iterator = evaluation_batches(Memory(5000), ImageTransform(SIZE), 10)
    assert next(iterator)[0].tolist() == list(range(10))
    del iterator  # must end the threads, not wait for 5,000 images


@pytest.mark.slow
def test_a_reader_process_that_is_killed_is_one_line():
    iterator = batches(Memory(40), workers=2)
    try:
        next(iterator)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"fewer config.data.workers \(now 2\)") as caught:
            list(itertools.islice(iterator, 20))
        assert "killed (out of memory?)" in str(caught.value)
        assert "the same command resumes" in str(caught.value)
    finally:
        start = time.monotonic()
        iterator.close()
        assert time.monotonic() - start < 10


ORPHANS = """
import multiprocessing, os, signal, sys
sys.path.insert(0, {tests!r})
from test_pipeline import Memory, batches

if __name__ == "__main__":
    iterator = batches(Memory(40), workers=2)
    next(iterator)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_trainer(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS.format(tests=str(Path(__file__).parent)))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=120)
    workers = [int(pid) for pid in result.stdout.split()]
    assert len(workers) == 2
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.1)
