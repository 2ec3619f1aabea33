"""Small archives of images and captions, made on the spot, and what a run reads of them."""

import io
import itertools
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pictures import encode
from PIL import Image

Sample = tuple[str, dict[str, bytes]]  # key, members by ending


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """An image of one colour, another for each value below 2^24."""
    colour = (value & 255, value >> 8 & 255, value >> 16)
    return encode(Image.new("RGB", size, colour), "PNG", compress_level=1)


def photo(seed: int, size: tuple[int, int] = (64, 48), quality: int = 90, **options: Any) -> bytes:
    """A JPEG with edges and texture."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    return encode(image, "JPEG", quality=quality, **options)


def samples(numbers: Iterable[int]) -> list[Sample]:
    """Keys are six digits, captions "number N", images tell the number by their colour."""
    found = []
    for n in numbers:
        texts = {"txt": f"number {n}".encode(), "json": json.dumps({"n": n}).encode()}
        found.append((f"{n:06d}", {"png": png(n), **texts}))
    return found


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shard(path: Path, content: Iterable[Sample]) -> Path:
    members = ((f"{key}.{name}", data) for key, parts in content for name, data in parts.items())
    return write_tar(path, members)


def write_shards(folder: Path, sizes: Iterable[int]) -> str:
    """Shards of so many samples, numbered on; the pattern of all."""
    first = 0
    count = 0
    for count, size in enumerate(sizes, start=1):
        write_shard(folder / f"{count - 1:05d}.tar", samples(range(first, first + size)))
        first += size
    return str(folder / f"{{00000..{count - 1:05d}}}.tar")


def words(texts: list[str]) -> np.ndarray:
    """A tokenizer of captions "number N": int32 (N, 2)."""
    return np.array([[1, int(text.rsplit(maxsplit=1)[-1])] for text in texts], np.int32)


def batches(source: Any, **options: Any) -> Any:
    """An iterator over the whole images of `samples`, 8 pixels wide."""
    from clip_jax.data.stream.pipeline import training_batches
    from clip_jax.images.augmentation import Augmentation

    return training_batches(source, words, 8, "bicubic", Augmentation(crop_scale=(1, 1)), **options)


def take(iterator: Any, count: int) -> np.ndarray:
    """The samples of the next batches, (count, rows); the images are theirs. Closes `iterator`."""
    try:
        found = list(itertools.islice(iterator, count))
    finally:
        iterator.close()
    numbers = np.stack([batch["tokens"][:, 1] for batch in found])
    pixels = np.stack([batch["images"][:, 0, 0] for batch in found])
    np.testing.assert_array_equal(pixels @ (1, 256, 65536), numbers)
    return numbers
