"""Interpretation of an `images` argument: one or many, in any container, transformed or not."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.arguments import shown
from clip_jax.errors import DecodeError, UserError
from clip_jax.images.decoding import as_array, is_array
from clip_jax.images.levels import eight_bits


def image_batches(
    images: Any, transform: Callable[[Any], np.ndarray], image_size: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Images in any form -> batches of uint8 (up to batch_size, S, S, 3).

    An array (H, W) or (H, W, 1, 3 or 4), a path, bytes, an open file or a PIL image is one image.
    (N, S, S, 3) are N images, bytes or floats, that `transform` has already processed. Any other
    list, generator or array of objects has one image per item.

    Raises:
      UserError: none of these. DecodeError: an image is unreadable; names its position.
    """
    if is_array(images):
        array = as_array(images)
        if array.dtype.kind in "OUT" and array.ndim == 1:  # paths or other items
            return _transformed(array.tolist(), transform, batch_size)
        if array.ndim == 1 and not array.size:
            return iter(())
        if array.ndim == 4:
            return _squares(array, image_size, batch_size)
        return iter((_one(array, transform)[None],))
    if isinstance(images, str | bytes | bytearray | memoryview | PathLike | Image.Image):
        return iter((transform(images)[None],))
    if hasattr(images, "read"):  # before iteration, because a file iterates over lines
        return iter((transform(images)[None],))
    if isinstance(images, set | frozenset | Mapping):
        kind = "dict" if isinstance(images, Mapping) else "set, whose order is random"
        raise UserError(f"images={shown(images)}: is a {kind}; give a list of images")
    if not isinstance(images, Iterable):
        raise UserError(
            f"images={shown(images)}: must be an image (path, bytes, open file, PIL image, array)"
            " or a list of images"
        )
    return _transformed(images, transform, batch_size)


def _one(array: np.ndarray, transform: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Transforms an array that is one image. Raises DecodeError otherwise."""
    try:
        return transform(array)
    except DecodeError as error:
        if array.ndim != 3 or 0 in array.shape or "channels come first" in str(error):
            raise
        raise DecodeError(f"{error}; of many grey images give a list: list(images)") from None


def _squares(array: np.ndarray, size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of images (N, S, S, 3) that are already transformed."""
    if array.shape[1:] != (size, size, 3):
        first = "; channels come first: give images.transpose(0, 2, 3, 1)"
        raise UserError(
            f"images of shape {array.shape} and dtype {array.dtype}: must be"
            f" (N, {size}, {size}, 3), or a list of images of any size"
            + (first if array.shape[1] in (1, 3, 4) and array.shape[3] not in (1, 3, 4) else "")
        )
    pixels = eight_bits(array)
    return (pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size))


def _transformed(
    images: Iterable[Any], transform: Callable[[Any], np.ndarray], batch_size: int
) -> Iterator[np.ndarray]:
    numbered = enumerate(images)
    while batch := list(islice(numbered, batch_size)):
        yield np.stack([_item(number, image, transform) for number, image in batch])


def _item(number: int, image: Any, transform: Callable[[Any], np.ndarray]) -> np.ndarray:
    try:
        return transform(image)
    except DecodeError as error:
        raise DecodeError(f"images[{number}]: {error}", error.kind, error.shard) from error
