"""Survey of single records: sizes, bytes, captions, hashes, or why they are unusable."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from clip_jax.data.records import Source
from clip_jax.dataset_tools.bad_samples import BadSample
from clip_jax.dataset_tools.recode import image_bytes
from clip_jax.dataset_tools.workers import outcomes
from clip_jax.images.decoding import decode, open_header
from clip_jax.images.perceptual_hash import perceptual_hash


@dataclass(frozen=True)
class Facts:
    """Facts about one good record."""

    index: int
    key: str
    captions: tuple[str, ...]
    width: int  # pixels, upright
    height: int
    size_bytes: int  # encoded image
    format: str  # Pillow's name; "pixels" for sources without files
    digest: bytes  # hash of the bytes
    hash: int  # perceptual, 64 bits


@dataclass(frozen=True)
class Survey:
    """Results for the surveyed records, in order."""

    facts: list[Facts]
    bad: list[BadSample]

    @property
    def looked_at(self) -> int:
        """Returns the number of records that were read, good or bad."""
        return len(self.facts) + len(self.bad)

    def kinds(self) -> Counter[str]:
        """Numbers of bad records by kind."""
        return Counter(sample.kind for sample in self.bad)

    def captions(self) -> list[str]:
        """Returns the captions of all good records."""
        return [caption for fact in self.facts for caption in fact.captions]


def survey(source: Source, indices: Sequence[int], *, workers: int) -> Survey:
    """Reads and fully decodes the records, with a progress bar."""
    found = list(outcomes(source, indices, facts_of, workers=workers, title="inspecting"))
    return Survey(
        [outcome for outcome in found if not isinstance(outcome, BadSample)],
        [outcome for outcome in found if isinstance(outcome, BadSample)],
    )


def facts_of(source: Source, index: int) -> Facts:
    """Reads one record. Raises DecodeError."""
    record = source[index]
    data = image_bytes(record)
    picture = decode(record.image)
    kind = open_header(record.image).format if isinstance(record.image, bytes) else "pixels"
    return Facts(
        index=index,
        key=record.key,
        captions=record.captions,
        width=picture.width,
        height=picture.height,
        size_bytes=len(data),
        format=kind or "?",
        digest=hashlib.blake2b(data, digest_size=16).digest(),
        hash=perceptual_hash(record.image),  # of the file, as in training
    )
