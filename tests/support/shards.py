"""Small archives of images and captions, made on the spot."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Sample = tuple[str, dict[str, bytes]]  # key, members by ending


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """An image of one colour, another for each value below 2^24."""
    stream = io.BytesIO()
    colour = (value & 255, value >> 8 & 255, value >> 16)
    Image.new("RGB", size, colour).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def photo(seed: int, size: tuple[int, int] = (64, 48), quality: int = 90, **options: Any) -> bytes:
    """A JPEG with edges and texture."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    image.save(stream, "JPEG", quality=quality, **options)
    return stream.getvalue()


def samples(numbers: Iterable[int]) -> list[Sample]:
    """Keys are six digits, captions "number N", images tell the number by their colour."""
    found = []
    for n in numbers:
        texts = {"txt": f"number {n}".encode(), "json": json.dumps({"n": n}).encode()}
        found.append((f"{n:06d}", {"png": png(n), **texts}))
    return found


def write_shard(path: Path, content: Iterable[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in content:
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


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
