"""A 64-bit hash that stays nearly the same when an image is resized, recompressed or brightened.

The difference hash (dHash): on a grey picture of 9 x 8 pixels each bit tells whether a pixel is
lighter than its left neighbour. Images whose hashes differ in a few bits look alike.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.data.decoding import ImageLike, decode, open_header, upright_rgb
from clip_jax.errors import UserError

BITS = 64
_DRAFT = 64  # pixels; a JPEG is decoded at an eighth where that leaves so many


def perceptual_hash(image: ImageLike) -> int:
    """0 to 2^64 - 1. Raises DecodeError where the image cannot be decoded."""
    if isinstance(image, bytes):
        opened = open_header(image)
        opened.draft("L", (_DRAFT, _DRAFT))
        picture = upright_rgb(opened)
    else:
        picture = decode(image)
    small = picture.convert("L").resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


class HashList:
    """Hashes of images that are to be left out, and how far off still counts as the same.

    Raises UserError where the distance is out of its range.
    """

    def __init__(self, hashes: Iterable[int], distance: int = 0) -> None:
        """`distance`: bits that may differ."""
        if not 0 <= distance <= BITS // 4:
            raise UserError(
                f"config.data.exclude_distance={distance}; accepted is 0 to {BITS // 4} bits"
            )
        self._distance = distance
        self._hashes = np.unique(np.fromiter(hashes, np.uint64))

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, value: int) -> bool:
        if not len(self._hashes):
            return False
        if self._distance == 0:
            place = int(np.searchsorted(self._hashes, np.uint64(value)))
            return place < len(self._hashes) and int(self._hashes[place]) == value
        different = np.bitwise_count(self._hashes ^ np.uint64(value))
        return bool(different.min() <= self._distance)

    @classmethod
    def read(cls, path: str | os.PathLike[str], distance: int = 0) -> "HashList":
        """From a text file: a hash a line, as 16 hexadecimal digits; what follows them is ignored.

        Raises UserError where the file cannot be read, or a line is no hash.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"config.data.exclude={path}: cannot be read ({error})") from error
        hashes = []
        for number, line in enumerate(io.StringIO(text), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                hashes.append(int(words[0], 16))
            except ValueError:
                hashes.append(-1)
            if not 0 <= hashes[-1] < 2**BITS:
                raise UserError(
                    f"config.data.exclude={path}: line {number} is {line.strip()[:40]!r}; accepted"
                    " are 16 hexadecimal digits"
                )
        return cls(hashes, distance)
