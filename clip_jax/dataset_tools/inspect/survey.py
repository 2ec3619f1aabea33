"""Survey of single records: sizes, bytes, captions, hashes, or why they are unusable."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from clip_jax.data.records import Source
from clip_jax.dataset_tools.bad_samples import BadSample, bad_sample
from clip_jax.dataset_tools.recode import image_bytes
from clip_jax.dataset_tools.workers import Count, each, work_on
from clip_jax.errors import DecodeError
from clip_jax.images.decoding import decode, open_header
from clip_jax.images.perceptual_hash import perceptual_hash

_CHUNK = 32  # records


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


@dataclass
class Survey:
    """Results for the surveyed records, in order."""

    facts: list[Facts] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)

    @property
    def looked_at(self) -> int:
        return len(self.facts) + len(self.bad)

    def kinds(self) -> Counter[str]:
        """Numbers of bad records by kind."""
        return Counter(sample.kind for sample in self.bad)

    def captions(self) -> list[str]:
        return [caption for fact in self.facts for caption in fact.captions]


def survey(source: Source, indices: Sequence[int], *, workers: int) -> Survey:
    """Reads and fully decodes the records, with a progress bar."""
    jobs = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    found = Survey()
    for part in work_on(
        source, jobs, survey_chunk, workers=workers, total=len(indices), title="inspecting"
    ):
        found.facts += part.facts
        found.bad += part.bad
    return found


def survey_chunk(source: Source, indices: Sequence[int], count: Count) -> Survey:
    """A worker's job in `survey`."""
    found = Survey()
    for index in each(indices, count):
        try:
            found.facts.append(_facts(source, index))
        except DecodeError as error:
            found.bad.append(bad_sample(source, index, error))
    return found


def _facts(source: Source, index: int) -> Facts:
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
