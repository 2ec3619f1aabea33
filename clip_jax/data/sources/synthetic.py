"""Synthetic records for benchmarks: photo-like images and captions, made from record numbers."""

import functools
import io
import re
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops, Reader, Record, fingerprint_of
from clip_jax.errors import UserError

_POOL = 64  # distinct images; more would only delay the first batch
_SIZE = (640, 480)
_MAX_SIDE = 16384
_QUALITY = 90

_KINDS = ("photo", "picture", "close-up", "painting", "snapshot", "drawing", "view", "poster")
_LOOKS = ("red", "small", "old", "shiny", "wooden", "striped", "blue", "wet", "huge", "quiet")
_THINGS = (
    *("dog", "bicycle", "teapot", "lighthouse", "pear", "train", "chair", "kite", "owl"),
    *("violin", "bridge", "lemon", "tractor"),
)
_PLACES = (
    *("on a table", "in the snow", "at the beach", "in a kitchen", "under a tree"),
    *("in the rain", "on a roof", "beside a road", "in a museum", "at night", "in a field"),
)


class SyntheticSource:
    """Source of `N` records, each a function of its number alone.

    The JPEG files come from a pool of 64, with the key in a comment, so that no two are equal.
    Keys are the numbers. A pool image is made when it is first read, in about 20 ms.

    Args:
      path: "N", or "N:WIDTHxHEIGHT"; by default 640x480 pixels.

    Raises:
      UserError: `path` has another form.
    """

    def __init__(
        self,
        path: str,
        options: SourceOptions = SourceOptions(),  # noqa: B008 (not used)
    ) -> None:
        match = re.fullmatch(r"(\d{1,15})(?::(\d{1,5})x(\d{1,5}))?", path.replace("_", ""))
        numbers = [int(part) for part in match.groups() if part] if match else [0]
        self._count = numbers[0]
        self._width, self._height = numbers[1:] or _SIZE
        sides = (self._width, self._height)
        if min(self._count, *sides) < 1 or max(sides) > _MAX_SIDE:
            raise UserError(
                f"synthetic data path {path!r}; accepted is a number of records of at least 1, such"
                f" as 100000, and a size of at most {_MAX_SIDE} pixels a side if wanted, such as"
                " 100000:640x480"
            )
        self.dropped = Drops()
        # These determine all records; hashing each would take minutes for a billion.
        name = f"synthetic 1:{self._count}:{self._width}x{self._height}"
        self.fingerprint = fingerprint_of([(name, ())])

    def __len__(self) -> int:
        return self._count

    def _number(self, index: int) -> int:
        if not -self._count <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        return index % self._count

    def __getitem__(self, index: int) -> Record:
        number = self._number(index)
        image = _pool_image(number % _POOL, self._width, self._height)
        key = self.key(number)
        # A comment (marker, length, text) must come after the JFIF header of 20 bytes.
        comment = b"\xff\xfe" + (len(key) + 2).to_bytes(2, "big") + key.encode()
        return Record(key, image[:20] + comment + image[20:], self.captions(number))

    def captions(self, index: int) -> tuple[str, ...]:
        number = self._number(index)
        # The strides are coprime to the lengths, so neighbours differ in every word.
        kind, look = _KINDS[number * 5 % 8], _LOOKS[number * 7 % 10]
        thing, place = _THINGS[number * 3 % 13], _PLACES[number * 4 % 11]
        return (f"a {kind} of a {look} {thing} {place}, number {number}",)

    def metadata(self, index: int) -> dict[str, Any]:
        return {"number": self._number(index)}

    def key(self, index: int) -> str:
        return f"{self._number(index):09d}"


@functools.lru_cache(maxsize=4 * _POOL)  # per process
def _pool_image(number: int, width: int, height: int) -> bytes:
    """Makes a JPEG with a photo's mix of scales, edges and soft colours, and about its size."""
    rng = np.random.default_rng([number, width, height])
    shapes = Image.new("RGB", (width, height), tuple(rng.integers(60, 190, 3).tolist()))
    draw = ImageDraw.Draw(shapes)
    for _ in range(12):
        x, y, radius = rng.uniform((0, 0, 0.03), (1, 1, 0.3)) * (width, height, min(width, height))
        colour = tuple(rng.integers(40, 210, 3).tolist())
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    light = np.zeros((height, width), np.float32)
    cells, strength = 2, 30.0
    while cells < max(width, height):
        light += strength * _noise(rng, cells, width, height)
        cells, strength = cells * 2, strength * 0.8
    pixels = np.asarray(shapes, np.float32) + light[:, :, None]
    for channel in range(3):
        pixels[:, :, channel] += 12 * _noise(rng, 6, width, height)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _noise(rng: np.random.Generator, cells: int, width: int, height: int) -> np.ndarray:
    """Returns noise, float32 (H, W), of variance about 1, smooth between `cells`² points."""
    grid = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BILINEAR))


READER = Reader("synthetic", SyntheticSource, files="", no_columns="its images are drawn")
