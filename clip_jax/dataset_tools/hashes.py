"""Writes the perceptual hashes of images: a list for config.data.exclude.

python -m clip_jax.data hashes --data='test/*.tar' --output=test_set.txt
python -m clip_jax.data hashes --data='train/*.tar' --output=again.txt --duplicates

A hash and a key a line, in the order of the records. A run with the first list leaves out what
looks like an image of the test set. With --duplicates only images are listed that look like one
before them; a run on the same data with that list has each image once. Images that cannot be
decoded have no hash; they are counted.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from absl import flags

from clip_jax.data.options import SourceConfig
from clip_jax.data.records import Source
from clip_jax.data.sources.refine import open_refined
from clip_jax.dataset_tools.output_files import output_file, write_text
from clip_jax.dataset_tools.worker_flags import define_workers
from clip_jax.dataset_tools.workers import Count, chunks, each, work_on
from clip_jax.errors import DecodeError, UserError
from clip_jax.images.perceptual_hash import ONLY, perceptual_hash
from clip_jax.training.source_flags import SourceFlags

FLAGS = flags.FlagValues()
_SOURCE = SourceFlags(SourceConfig, FLAGS)
_WORKERS = define_workers(FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Text file for the list.", flag_values=FLAGS)
_DUPLICATES = flags.DEFINE_boolean(
    "duplicates",
    False,
    "Of images that look alike all but the first, each for its own key.",
    flag_values=FLAGS,
)
_DISTANCE = flags.DEFINE_integer(
    "distance",
    0,
    "Bits of 64 by which hashes of duplicates may differ; above 0 the time grows with the square of"
    " the number of images.",
    lower_bound=0,
    upper_bound=16,
    flag_values=FLAGS,
)

_CHUNK = 64  # records


@dataclass
class Hashed:
    """(key, hash) of the decodable records, in order, and the number of the others."""

    found: list[tuple[str, int]] = field(default_factory=list)
    bad: int = 0


def main() -> None:
    """Writes the list and prints its length."""
    output = output_file(_OUTPUT.value)
    if output is None:
        raise UserError("--output: is missing; give a text file to write")
    if _DISTANCE.value and not _DUPLICATES.value:
        raise UserError(
            f"--distance={_DISTANCE.value}: is for --duplicates; for a list of other images set"
            " config.data.exclude_distance in the run"
        )
    source = open_refined(_SOURCE.read_needed())
    hashed = Hashed()
    for part in work_on(
        source,
        chunks(len(source), _CHUNK),
        hash_chunk,
        workers=_WORKERS.value,
        total=len(source),
        title="hashing",
    ):
        hashed.found += part.found
        hashed.bad += part.bad
    listed = hashed.found
    if _DUPLICATES.value:
        listed = list(later_ones(hashed.found, _DISTANCE.value))
    _write(output, listed, f" {ONLY} " if _DUPLICATES.value else " ")
    print(
        f"{output}: {len(listed):,} hashes of {len(source):,} images"
        + (f"; {hashed.bad:,} cannot be decoded" if hashed.bad else "")
    )


def hash_chunk(source: Source, indices: Sequence[int], count: Count) -> Hashed:
    """A worker's job: hashes some records."""
    hashed = Hashed()
    for index in each(indices, count):
        try:
            record = source[index]
            hashed.found.append((record.key, perceptual_hash(record.image)))
        except DecodeError:
            hashed.bad += 1
    return hashed


def later_ones(found: Sequence[tuple[str, int]], distance: int) -> Iterator[tuple[str, int]]:
    """Yields records whose hash is at most `distance` bits from an earlier kept one.

    Records with the hash and key of a kept one cannot be told apart, and stay.
    """
    kept: dict[int, set[str]] = {}
    hashes = np.zeros(len(found), np.uint64)  # of kept records, in the first len(kept) places
    for key, value in found:
        if value not in kept:
            known = hashes[: len(kept) if distance else 0]
            if not np.any(np.bitwise_count(known ^ np.uint64(value)) <= distance):
                hashes[len(kept)] = value
                kept[value] = {key}
                continue
        if key not in kept.get(value, ()):
            yield key, value


def _write(output: Path, listed: Iterable[tuple[str, int]], between: str) -> None:
    # Keys are written as JSON, because they may contain line breaks.
    lines = (f"{value:016x}{between}{json.dumps(key)}\n" for key, value in listed)
    write_text(output, "".join(lines))
