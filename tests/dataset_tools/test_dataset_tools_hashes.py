"""Lists of perceptual hashes, written and then used by a run."""

from pathlib import Path

import pytest
from dataset_tools_runs import Capture, make_pairs, run
from pictures import encode, photo

from clip_jax.data.sources import open_source
from clip_jax.data.sources.refine import RefinedSource
from clip_jax.dataset_tools.hashes import later_ones
from clip_jax.errors import DecodeError
from clip_jax.images.perceptual_hash import HashList, perceptual_hash


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images 0, 1, 0, broken, 2, 1."""
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    images = [encode(photo(90, 60, seed=n), "JPEG", quality=90) for n in (0, 1, 0, 0, 2, 1)]
    images[3] = images[3][:-300]
    pairs = {key: (image, b"a photo") for key, image in zip("abcdef", images, strict=True)}
    return make_pairs(tmp_path / "a.tar", pairs)


def kept(data: Path, listed: Path) -> str:
    source = RefinedSource(open_source(data), exclude=HashList.read(listed))
    keys = ""
    for index in range(len(source)):
        try:
            keys += source[index].key
        except DecodeError as error:
            keys += "-" if error.kind == "duplicate" else "!"
    return keys


def test_all_hashes(data: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "list"
    ended = run(capsys, "hashes", data=data, output=output, workers=0)
    assert ended.code == 0
    assert "5 hashes of 6 images; 1 cannot be decoded" in ended.out
    first = output.read_text().splitlines()[0]
    assert first == f'{perceptual_hash(open_source(data)[0].image):016x} "a"'
    assert kept(data, output) == "---!--"


def test_duplicates(data: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "list"
    ended = run(capsys, "hashes", "--duplicates", data=data, output=output, workers=0)
    assert "2 hashes of 6 images" in ended.out
    assert kept(data, output) == "ab-de-"  # d is left to the decoder, which refuses it


def test_later_ones() -> None:
    found = [("a", 0), ("b", 1), ("c", 0), ("c", 3), ("a", 0), ("d", 1 << 60)]
    assert list(later_ones(found, 0)) == [("c", 0)]
    assert list(later_ones(found, 1)) == [("b", 1), ("c", 0), ("d", 1 << 60)]
    assert list(later_ones(found, 2)) == [("b", 1), ("c", 0), ("c", 3), ("d", 1 << 60)]
