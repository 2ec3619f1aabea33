"""Records without files."""

import pickle

import pytest
from small_sets import refused

from clip_jax.data.sources import open_source
from clip_jax.data.sources.synthetic import _pool_image
from clip_jax.images.decoding import decode


def test_records_follow_from_their_numbers():
    source = open_source("1000:64x48", format="synthetic")
    assert len(source) == 1000
    records = [source[index] for index in range(130)]
    assert len({record.image for record in records}) == 130
    assert len({record.captions for record in records}) == 130
    assert records[3].key == source.key(3) == "000000003"
    assert decode(records[3].image).size == (64, 48)
    # The picture is that of the pool; only the key in it differs.
    assert decode(records[3].image).tobytes() == decode(records[67].image).tobytes()
    assert decode(records[3].image).tobytes() != decode(records[4].image).tobytes()
    _pool_image.cache_clear()
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == records[3]
    assert copy.captions(3) == records[3].captions
    assert source.metadata(3) == {"number": 3}
    assert source.dropped.total == 0


def test_images_are_as_large_as_photos():
    image = open_source("10", format="synthetic")[0].image
    assert decode(image).size == (640, 480)
    bits_a_pixel = 8 * len(image) / (640 * 480)
    assert 1.5 < bits_a_pixel < 3


def test_fingerprint_is_of_number_and_size():
    paths = ("10", "11", "10:320x240")
    fingerprints = {open_source(path, format="synthetic").fingerprint for path in paths}
    assert len(fingerprints) == 3
    again = open_source("10:640x480", format="synthetic").fingerprint
    assert again in fingerprints


def test_a_thousand_million_records_open_at_once():
    source = open_source("1_000_000_000:32x32", format="synthetic")
    assert source.key(999_999_999) == "999999999"
    with pytest.raises(IndexError):
        source.captions(10**9)


@pytest.mark.parametrize("path", ["0", "-5", "many", "10:0x5", "10:64", "10:99999x5", "5:10x99999"])
def test_other_paths_are_refused(path):
    refused(f"synthetic data path '{path}'; accepted", path, format="synthetic")
