"""Descriptions of bad samples and files: what is wrong, and where."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from clip_jax.data.records import Source
from clip_jax.data.sources.refine import RefinedSource
from clip_jax.errors import DecodeError


class BadSample(NamedTuple):
    """A sample that cannot be used; `kind` is one of `clip_jax.data.records.KINDS`."""

    key: str
    kind: str
    position: str
    reason: str


def bad_sample(source: Source, index: int, error: DecodeError) -> BadSample:
    """Describes the sample whose reading raised `error`."""
    return BadSample(source.key(index), error.kind, position_of(source, index), str(error))


def position_of(source: Source, index: int) -> str:
    """The file and byte if the source knows them, else the number of the record."""
    if isinstance(source, RefinedSource):
        return position_of(source.source, index)
    for part in getattr(source, "sources", ()):  # of a mixture
        if index < len(part):
            return position_of(part, index)
        index -= len(part)
    position = getattr(source, "position", None)  # a method of tars
    return f"record {index}" if position is None else position(index)


def damaged_files(source: Source) -> dict[str, str]:
    """File -> the reason why some or all of its samples are missing, or may be."""
    if isinstance(source, RefinedSource):
        return damaged_files(source.source)
    found = dict(getattr(source, "damaged", {}))  # of tars
    for part in getattr(source, "sources", ()):
        found |= damaged_files(part)
    return found


def describe_kinds(counts: Mapping[str, int]) -> str:
    """Counts by kind, commonest first: "3 image_bomb, 1 caption_empty"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(counts).most_common())
