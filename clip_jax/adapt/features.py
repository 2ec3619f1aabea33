"""Features of labelled images, each computed once: of the images as they are, and of views."""

import functools
from typing import Any

import numpy as np

from clip_jax.adapt.learning import Images
from clip_jax.adapt.parts import Part
from clip_jax.clip import Clip
from clip_jax.data.stream.evaluation_batches import evaluation_batches
from clip_jax.errors import UserError


class Features:
    """Embeddings of images by record, float32 with rows of length 1."""

    def __init__(self, clip: Clip, images: Images, batch_size: int, part: Part) -> None:
        """Embeds nothing yet. `images` draws the views."""
        self._clip, self._part, self._images = clip, part, images
        self._batch_size = batch_size
        self._views: dict[tuple[int, int], np.ndarray] = {}

    @functools.cached_property
    def _whole(self) -> dict[int, np.ndarray]:
        source, transform = self._part.source, self._clip.transform
        return {
            int(number): embed
            for numbers, images in evaluation_batches(source, transform, self._batch_size)
            for number, embed in zip(numbers, self._clip.encode_image(images), strict=True)
        }

    def rows(self, records: np.ndarray) -> np.ndarray:
        """Returns (N, D). Raises UserError for an image that cannot be decoded."""
        missing = [int(number) for number in records if int(number) not in self._whole]
        if missing:
            raise UserError(f"training image number {missing[0]} cannot be decoded")
        return np.stack([self._whole[int(number)] for number in records])

    def views(self, records: np.ndarray, count: int) -> np.ndarray:
        """Returns (V, N, D) of `count` augmented views of each image, the same at each call.

        Raises UserError for an image that cannot be decoded.
        """
        wanted = [(view, int(number)) for view in range(count) for number in records]
        missing = [pair for pair in dict.fromkeys(wanted) if pair not in self._views]
        for start in range(0, len(missing), self._batch_size):
            pairs = missing[start : start + self._batch_size]
            images = [self._images.batch(np.array([n]), seed=n, step=view) for view, n in pairs]
            embeds = self._clip.encode_image(np.concatenate(images))
            self._views |= dict(zip(pairs, embeds, strict=True))
        found = np.stack([self._views[pair] for pair in wanted])
        return found.reshape(count, len(records), -1)

    def used(self, records: np.ndarray | None) -> np.ndarray:
        """Returns the records that are asked for (None: all), have a label, and can be decoded."""
        labels: Any = self._part.labels.numbers
        numbers = np.arange(len(labels)) if records is None else np.sort(records)
        found = [int(n) for n in numbers if labels[n] >= 0 and int(n) in self._whole]
        if not found:
            raise UserError("no labelled image can be used")
        return np.asarray(found)
