"""Speed of one thread that reads, decodes and tokenises, and the chips that it could feed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.data.records import Record, Source
from clip_jax.data.stream.make_batch import choose_caption
from clip_jax.errors import DecodeError
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.text.tokenizer import Tokenizer

CHIP = "TPU v5e"
UTILISATION = 0.5  # share of the peak, assumed for a good training run
CHIP_MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
_BATCH = 32_768  # global batch, for the loss's share of the arithmetic
_MOST_RECORDS = 512
_SECONDS = 6.0  # at most
_TEXTS_AT_ONCE = 64
# Decoding never waits: if it takes this many times its CPU time, other work had the core.
_BUSY = 1.2

READ, DECODE, TOKENISE = "read", "decode and crop", "tokenise"


@dataclass
class Spent:
    """Seconds in one stage: by the clock, and CPU time of the process, which does nothing else
    meanwhile (SentencePiece encodes in its own thread)."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


@dataclass(frozen=True)
class Throughput:
    """Time that one thread took to pass some records, one by one, through all stages."""

    records: int
    spent: dict[str, Spent]  # by stage

    @property
    def stages(self) -> dict[str, float]:
        """Records per second of each stage alone."""
        return {name: self.records / max(spent.wall, 1e-9) for name, spent in self.spent.items()}

    @property
    def seconds(self) -> float:
        return max(sum(spent.wall for spent in self.spent.values()), 1e-9)

    @property
    def whole(self) -> float:
        """Records per second through all stages."""
        return self.records / self.seconds

    @property
    def shares(self) -> dict[str, float]:
        """Share of the time by stage."""
        return {name: spent.wall / self.seconds for name, spent in self.spent.items()}

    @property
    def bottleneck(self) -> str:
        return max(self.spent, key=lambda name: self.spent[name].wall)

    @property
    def was_busy(self) -> bool:
        """Whether other work had the core for much of the time."""
        return self.spent[DECODE].wall > _BUSY * self.spent[DECODE].cpu


@dataclass(frozen=True)
class Loader:
    """Processing of a record in training."""

    tokenizer: Tokenizer
    image_size: int
    interpolation: str
    augmentation: Augmentation

    def sample(self, record: Record, seed: int) -> tuple[np.ndarray, str]:
        """(uint8 pixels (S, S, 3), chosen caption). Raises DecodeError."""
        rng = np.random.default_rng(seed)
        caption = choose_caption(record, rng)
        pixels = training_image(
            record.image, self.image_size, self.interpolation, self.augmentation, rng
        )
        return pixels, caption

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Ids, int32 (N, L); captions that are too long are cut."""
        return self.tokenizer(list(captions), truncate=True)


def measure(source: Source, loader: Loader, indices: Sequence[int]) -> Throughput | None:
    """Measures the stages on good records (`indices`); None if none is usable. Recently read data
    may come from memory."""
    # Training reads in random order.
    order = np.random.default_rng(0).permutation(np.asarray(indices)).tolist()[:_MOST_RECORDS]
    _pass(source, loader, order[:1])  # excludes one-time work
    records, spent = _pass(source, loader, order)
    return Throughput(records, spent) if records else None


def _pass(source: Source, loader: Loader, order: Sequence[int]) -> tuple[int, dict[str, Spent]]:
    """(number of records done, time spent by stage)."""
    spent = {name: Spent() for name in (READ, DECODE, TOKENISE)}
    done = 0
    texts: list[str] = []
    begun = time.perf_counter()
    for number, index in enumerate(order):
        try:
            with _clocked() as read:
                record = source[index]
            with _clocked() as decode:
                _, caption = loader.sample(record, number)
        except DecodeError:  # changed since it was looked at
            continue
        done += 1
        spent[READ] += read
        spent[DECODE] += decode
        texts.append(caption)
        if len(texts) == _TEXTS_AT_ONCE:
            spent[TOKENISE] += _tokenised(loader, texts)
            texts.clear()
        if time.perf_counter() - begun > _SECONDS:
            break
    spent[TOKENISE] += _tokenised(loader, texts)
    return done, spent


def _tokenised(loader: Loader, texts: list[str]) -> Spent:
    with _clocked() as spent:
        if texts:
            loader.tokens(texts)
    return spent


@contextlib.contextmanager
def _clocked() -> Iterator[Spent]:
    """Times a block; the result is filled in when it ends."""
    spent = Spent()
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent.wall, spent.cpu = time.perf_counter() - wall, time.process_time() - cpu


def cores() -> int:
    """Number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def chip_rates(names: Sequence[str] = CHIP_MODELS) -> dict[str, float]:
    """Architecture -> samples per second that one `CHIP` trains at `UTILISATION` of its peak."""
    from clip_jax.models.architectures import get_architecture
    from clip_jax.models.flops import PEAK_FLOPS, step_flops

    rates = {}
    for name in names:
        flops = step_flops(get_architecture(name), _BATCH) / _BATCH
        rates[name] = UTILISATION * PEAK_FLOPS[CHIP] / flops
    return rates
