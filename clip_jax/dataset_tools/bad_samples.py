"""Description of a bad sample: its defect and position."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from clip_jax.data.records import Source
from clip_jax.data.sources.refine import RefinedSource
from clip_jax.errors import DecodeError


@runtime_checkable
class HasPosition(Protocol):
    """A source that knows the position of a record in its files."""

    def position(self, index: int) -> str:
        """The record's position, such as "00000.tar:10240"."""
        ...


@runtime_checkable
class HasDamage(Protocol):
    """A source that knows its broken files."""

    @property
    def damaged(self) -> Mapping[str, str]:
        """File -> the reason why some or all of its samples are missing, or may be."""
        ...


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used; `kind` is one of `clip_jax.data.records.KINDS`."""

    key: str
    kind: str
    position: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return dict(vars(self))


def position_of(source: Source, index: int) -> str:
    """The file and byte if the source knows them, else the number of the record."""
    if isinstance(source, RefinedSource):
        return position_of(source.source, index)
    if isinstance(source, HasPosition):
        return source.position(index)
    return f"record {index}"


def bad_sample(source: Source, index: int, error: DecodeError) -> BadSample:
    return BadSample(source.key(index), error.kind, position_of(source, index), str(error))


def describe_kinds(counts: Mapping[str, int]) -> str:
    """Counts by kind, commonest first: "3 image_bomb, 1 caption_empty"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(counts).most_common())


def count_kinds(samples: Iterable[BadSample]) -> Counter[str]:
    return Counter(sample.kind for sample in samples)
