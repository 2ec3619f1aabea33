"""One small set in all formats: the same records from each, in threads, processes and pickles."""

import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_sets import SAMPLES, WRITERS

from clip_jax.data.sources import detect_format, open_source
from clip_jax.data.stream.make_batch import MakeBatch
from clip_jax.data.stream.order import ShuffledOrder
from clip_jax.errors import UserError
from clip_jax.files.telemetry import telemetry
from clip_jax.images.augmentation import Augmentation


@pytest.fixture(scope="module", params=list(WRITERS))
def format_and_path(request, tmp_path_factory):
    write, packages = WRITERS[request.param]
    for package in packages:
        pytest.importorskip(package)
    return request.param, write(tmp_path_factory.mktemp("sets") / request.param)


def test_the_same_records_from_every_format(format_and_path):
    format, path = format_and_path
    assert detect_format(str(path)) == format
    source = open_source(path)
    assert len(source) == len(SAMPLES)
    assert source.dropped.total == 0
    assert len({source.key(index) for index in range(len(source))}) == len(SAMPLES)
    for index, sample in enumerate(SAMPLES):
        record = source[index]
        assert record.image == sample.image
        assert record.captions == source.captions(index) == sample.captions
        assert record.weights is None
        assert record.key == source.key(index)
        if format != "folder":
            assert source.metadata(index)["label"] == sample.label
        json.dumps(source.metadata(index))
    assert open_source(path).fingerprint == source.fingerprint


def test_numpy_numbers_are_indices(format_and_path):
    source = open_source(format_and_path[1])
    assert source[np.int64(3)] == source[3]
    assert source.captions(np.int64(9)) == source.captions(9)


def _images(source) -> list[bytes]:
    return [source[index].image for index in range(len(source))]


def test_threads_pickles_and_processes_read_the_same(format_and_path):
    source = open_source(format_and_path[1])
    expected = [sample.image for sample in SAMPLES]
    assert _images(source) == expected  # files are open now
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: source[index % 10].image, range(200)))
    assert found == expected * 20
    copy = pickle.loads(pickle.dumps(source))
    assert _images(copy) == expected
    assert copy.fingerprint == source.fingerprint


def test_the_bytes_of_images_are_counted_once(format_and_path):
    make_batch = MakeBatch(
        source=open_source(format_and_path[1]),
        order=ShuffledOrder((len(SAMPLES),), seed=0),
        tokenize=lambda captions: np.zeros((len(captions), 2), np.int32),
        image_size=8,
        interpolation="bicubic",
        augmentation=Augmentation(),
        batch_size=len(SAMPLES),
        rows=range(len(SAMPLES)),
        seed=0,
    )
    telemetry.take()  # what opening and other tests have read
    counts = json.loads(make_batch(0)["report"])["counts"]
    assert counts["bytes_read"] == sum(len(sample.image) for sample in SAMPLES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_forked_child_reads_the_same(format_and_path):
    source = open_source(format_and_path[1])
    source[0]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(_images, (source,)).get(timeout=60)
    assert found == [sample.image for sample in SAMPLES]


def test_a_missing_column_lists_those_that_are_there(format_and_path):
    format, path = format_and_path
    if format in ("folder", "webdataset"):
        pytest.skip("has no columns")
    for option in ("image_column", "caption_column"):
        with pytest.raises(UserError, match=rf"'nothing'.*captions?.*{option}") as caught:
            open_source(path, **{option: "nothing"})
        assert "\n" not in str(caught.value)
