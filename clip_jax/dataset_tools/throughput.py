"""How fast one thread reads, decodes and tokenises, and which chips that could feed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.data.augmentation import Augmentation, training_image
from clip_jax.data.make_batch import choose_caption
from clip_jax.data.records import DecodeError, Record, Source
from clip_jax.data.tokenizer import Tokenizer

CHIP = "TPU v5e"
UTILISATION = 0.5  # of the peak, assumed of a good training run
CHIP_MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
_BATCH = 32_768  # of the whole run, for the loss's part of the arithmetic
_MOST_RECORDS = 512
_MOST_BYTES = 256 << 20  # of images held while they are measured
_SECONDS = 3.0  # a stage, at most
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Throughput:
    """Images a second of one thread; captions for `tokenise`."""

    records: int  # that were measured
    read: float
    decode: float  # and crop, resize
    tokenise: float
    whole: float  # one after the other

    @property
    def stages(self) -> dict[str, float]:
        return {"read": self.read, "decode and crop": self.decode, "tokenise": self.tokenise}

    @property
    def shares(self) -> dict[str, float]:
        """Of the time, by stage."""
        total = sum(1 / rate for rate in self.stages.values())
        return {name: 1 / rate / total for name, rate in self.stages.items()}

    @property
    def bottleneck(self) -> str:
        return min(self.stages, key=lambda name: self.stages[name])


@dataclass(frozen=True)
class Loader:
    """What becomes of a record in training."""

    tokenizer: Tokenizer
    image_size: int
    interpolation: str
    augmentation: Augmentation

    def sample(self, record: Record, seed: int) -> tuple[np.ndarray, str]:
        """uint8 (S, S, 3), and the caption that is chosen for it. Raises DecodeError."""
        rng = np.random.default_rng(seed)
        caption = choose_caption(record, rng)
        pixels = training_image(
            record.image, self.image_size, self.interpolation, self.augmentation, rng
        )
        return pixels, caption

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """int32 (N, L), cut where too long."""
        return self.tokenizer(list(captions), truncate=True)


def measure(source: Source, loader: Loader, indices: Sequence[int]) -> Throughput:
    """`indices`: good records, at least one. What has been read lately may come from memory."""
    # As training reads them: in no order.
    order = np.random.default_rng(0).permutation(np.asarray(indices)).tolist()[:_MOST_RECORDS]
    records: list[Record] = []
    clock = _Clock()
    held = 0
    for index in order:
        records.append(source[index])
        held += len(records[-1].image)
        if held > _MOST_BYTES or clock.is_over:
            break
    read = len(records) / clock.seconds
    clock = _Clock()
    decoded = 0
    for record in records:
        if _decodes(loader, record, decoded):
            decoded += 1
        if clock.is_over:
            break
    decode = decoded / clock.seconds
    texts = [record.captions[0] for record in records]
    loader.tokens(texts[:1])  # what it builds once is not counted
    clock = _Clock()
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        loader.tokens(texts[start : start + _TEXTS_AT_ONCE])
    tokenise = len(texts) / clock.seconds
    return Throughput(len(records), read, decode, tokenise, _whole(source, loader, order))


def _whole(source: Source, loader: Loader, order: Sequence[int]) -> float:
    clock = _Clock()
    done = 0
    texts: list[str] = []
    for number, index in enumerate(order):
        record = source[index]
        if not _decodes(loader, record, number):
            continue
        done += 1
        texts.append(record.captions[0])
        if len(texts) == _TEXTS_AT_ONCE:
            loader.tokens(texts)
            texts.clear()
        if clock.is_over:
            break
    loader.tokens(texts)
    return done / clock.seconds


def _decodes(loader: Loader, record: Record, seed: int) -> bool:
    try:
        loader.sample(record, seed)
    except DecodeError:  # changed since it was looked at
        return False
    return True


class _Clock:
    def __init__(self) -> None:
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self._begun, 1e-9)

    @property
    def is_over(self) -> bool:
        return self.seconds > _SECONDS


def cores() -> int:
    """That this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def chip_rates(names: Sequence[str] = CHIP_MODELS) -> dict[str, float]:
    """Architecture -> samples a second that one `CHIP` trains at `UTILISATION` of its peak."""
    from clip_jax.models.architectures import get_architecture
    from clip_jax.models.flops import PEAK_FLOPS, step_flops

    rates = {}
    for name in names:
        flops = step_flops(get_architecture(name), _BATCH) / _BATCH
        rates[name] = UTILISATION * PEAK_FLOPS[CHIP] / flops
    return rates
