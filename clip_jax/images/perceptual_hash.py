"""64-bit perceptual hash that hardly changes if an image is resized, recompressed or brightened.

This is the difference hash (dHash): on a grey picture of 9 x 8 pixels, each bit tells whether a
pixel is lighter than its left neighbour. Images whose hashes differ in a few bits look alike; all
single-colour images share one hash.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.errors import UserError
from clip_jax.images.decoding import ImageLike, decode, open_header, upright_rgb

BITS = 64
ONLY = "only"  # in a list: the hash applies only to the record whose key follows
_DRAFT = 64  # pixels; JPEGs are decoded at reduced size, down to an eighth, but not below this


def perceptual_hash(image: ImageLike) -> int:
    """The hash, 0 to 2^64 - 1. Raises DecodeError if the image cannot be decoded.

    A JPEG is decoded at reduced size, so its hash may differ from its pixels' by a few bits.
    """
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
    """Hashes of images to leave out, and the distance up to which images count as equal.

    Raises UserError if the distance is out of range.
    """

    def __init__(
        self,
        hashes: Iterable[int],
        distance: int = 0,
        only: Iterable[tuple[str, int]] = (),
    ) -> None:
        """`distance`: bits that may differ. `only`: (key, hash), for records with that key."""
        if not 0 <= distance <= BITS // 4:
            raise UserError(
                f"config.data.exclude_distance={distance}; accepted is 0 to {BITS // 4} bits"
            )
        self._distance = distance
        self._hashes = _sorted(hashes)
        by_key: dict[str, list[int]] = {}
        for key, value in only:
            by_key.setdefault(key, []).append(value)
        self._only = {key: _sorted(values) for key, values in by_key.items()}

    @property
    def fingerprint(self) -> str:
        """Digest of all hashes and the distance."""
        digest = hashlib.blake2b(f"{self._distance}\n".encode(), digest_size=16)
        digest.update(self._hashes.tobytes())
        for key in sorted(self._only):
            digest.update(f"\n{key!r}\n".encode())
            digest.update(self._only[key].tobytes())
        return digest.hexdigest()

    def has(self, key: str, image: ImageLike) -> bool:
        """Whether the image of the record with this key is listed; decodes it only if needed."""
        lists = [self._hashes, self._only.get(key, self._hashes[:0])]
        if not any(map(len, lists)):
            return False
        value = perceptual_hash(image)
        return any(self._is_near(hashes, value) for hashes in lists)

    def _is_near(self, hashes: np.ndarray, value: int) -> bool:
        if self._distance == 0:
            place = int(np.searchsorted(hashes, np.uint64(value)))
            return place < len(hashes) and int(hashes[place]) == value
        different = np.bitwise_count(hashes ^ np.uint64(value))
        return bool((different <= self._distance).any())

    @classmethod
    def read(cls, path: str | os.PathLike[str], distance: int = 0) -> "HashList":
        """Reads a text file with a hash per line, as 16 hexadecimal digits. After "only KEY" it
        applies only to the record with this key; any other text after it is ignored.

        Raises UserError if the file cannot be read, or a line has no hash.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"config.data.exclude={path}: cannot be read ({error})") from error
        hashes: list[int] = []
        only: list[tuple[str, int]] = []
        for number, line in enumerate(io.StringIO(text), start=1):
            words = line.split(maxsplit=2)
            if not words or words[0].startswith("#"):
                continue
            try:
                value = int(np.uint64(int(words[0], 16)))
            except (ValueError, OverflowError):
                raise UserError(
                    f"config.data.exclude={path}: line {number} is {line.strip()[:40]!r}; accepted"
                    " are 16 hexadecimal digits"
                ) from None
            if len(words) == 3 and words[1] == ONLY:
                only.append((_key(words[2].strip()), value))
            else:
                hashes.append(value)
        return cls(hashes, distance, only)


def _sorted(hashes: Iterable[int]) -> np.ndarray:
    return np.unique(np.fromiter(hashes, "<u8"))


def _key(text: str) -> str:
    """A key as written by `python -m clip_jax.data hashes`, or bare."""
    try:
        key = json.loads(text)
    except ValueError:
        return text
    return key if isinstance(key, str) else text
