"""Every sample of a set of broken and unusual ones comes out as its list of expectations says."""

import hashlib
import json

import numpy as np
import pytest
from places import SHARED_DATA

from clip_jax.data.sources import open_source
from clip_jax.errors import DecodeError
from clip_jax.images.decoding import decode

HOSTILE = SHARED_DATA / "hostile"

pytestmark = pytest.mark.skipif(
    not (HOSTILE / "EXPECTED.json").is_file(),
    reason="the hostile samples are not beside the repository (../shared/data/hostile)",
)


@pytest.fixture(scope="module")
def expected():
    return json.loads((HOSTILE / "EXPECTED.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source():
    return open_source(HOSTILE / "00000.tar")


@pytest.fixture(scope="module")
def decoded(source):
    """key -> [(record, upright RGB array or the DecodeError)]"""
    results: dict[str, list] = {}
    for index in range(len(source)):
        record = source[index]
        outcome: np.ndarray | DecodeError
        try:
            outcome = np.asarray(decode(record.image))
        except DecodeError as error:
            outcome = error
        results.setdefault(record.key, []).append((record, outcome))
    return results


def test_each_sample_is_kept_or_dropped_as_expected(expected, source, decoded):
    assert len(expected["00000.tar"]) == 70
    for key, entry in expected["00000.tar"].items():
        found = [pair for pair in decoded.get(key, []) if not isinstance(pair[1], DecodeError)]
        if entry["expected"] == "keep":
            allowed = entry["samples"]
            assert len(found) in (allowed if isinstance(allowed, list) else [allowed]), key
            check_captions(key, entry, [text for record, _ in found for text in record.captions])
            check_pixels(key, entry, found[0][1])
            continue
        assert not found, key
        if entry["because"] == "caption":
            assert "caption" in source.dropped[key], key
        elif entry["because"] == "bomb":
            assert "bomb" in str(decoded[key][0][1]), key
        else:
            assert key in source.dropped or key in decoded, key
    assert set(decoded) | set(source.dropped) <= set(expected["00000.tar"])
    assert not (HOSTILE.parent / "escape.txt").exists()
    assert not (HOSTILE / "escape.txt").exists()
    assert source.dropped["../escape"] == "no complete image member"


def check_captions(key, entry, captions):
    if "captions" in entry:
        assert set(captions) <= set(entry["captions"]), key
        assert len(set(captions)) == len(captions), key
    elif "caption" in entry:
        assert captions == [entry["caption"]], key
    else:
        (data,) = [caption.encode() for caption in captions]
        assert len(data) == entry["caption_bytes"], key
        assert hashlib.sha256(data).hexdigest() == entry["caption_sha256"], key


def check_pixels(key, entry, pixels):
    width, height = entry.get("upright_size", entry["size"])
    assert pixels.shape == (height, width, 3), key
    top, bottom = {"upright_top_rgb": pixels[:3]}, {"upright_bottom_rgb": pixels[-3:]}
    for name, region in ({"mean_rgb": pixels} | top | bottom).items():
        if name in entry:
            mean = region.reshape(-1, 3).mean(axis=0)
            np.testing.assert_allclose(mean, entry[name], atol=8, err_msg=f"{key} {name}")
