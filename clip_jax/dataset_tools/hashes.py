"""Writes the perceptual hashes of images: a list for config.data.exclude.

python -m clip_jax.data hashes --data='test/*.tar' --output=test_set.txt
python -m clip_jax.data hashes --data='train/*.tar' --output=again.txt --duplicates

A hash and a key a line, in the order of the records. A run with the first list leaves out what
looks like an image of the test set. With --duplicates only images are listed that look like one
before them; a run on the same data with that list has each image once. Images that cannot be
decoded have no hash; they are counted.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from clip_jax.data.records import Source
from clip_jax.dataset_tools.bad_samples import BadSample
from clip_jax.dataset_tools.data_flags import define_data_flags, define_workers, open_data
from clip_jax.dataset_tools.output_files import output_file, write_text
from clip_jax.dataset_tools.workers import outcomes
from clip_jax.errors import UserError
from clip_jax.images.perceptual_hash import ONLY, perceptual_hash

FLAGS = flags.FlagValues()
_DATA = define_data_flags(FLAGS)
_WORKERS = define_workers(FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Text file for the list.", flag_values=FLAGS)
_DUPLICATES = flags.DEFINE_boolean(
    "duplicates",
    False,
    "Lists only images that look like one before them, each for its own key.",
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

Hashed = tuple[str, int]  # key, hash


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
    source = open_data(_DATA.read())
    indices = range(len(source))
    found = outcomes(source, indices, hashed, workers=_WORKERS.value, title="hashing")
    good = [image for image in found if not isinstance(image, BadSample)]
    listed = later_ones(good, _DISTANCE.value) if _DUPLICATES.value else good
    between = f" {ONLY} " if _DUPLICATES.value else " "
    # Keys are written as JSON, because they may contain line breaks.
    lines = [f"{value:016x}{between}{json.dumps(key)}\n" for key, value in listed]
    write_text(output, "".join(lines))
    bad = len(source) - len(good)
    print(
        f"{output}: {len(lines):,} hashes of {len(source):,} images"
        + (f"; {bad:,} cannot be decoded" if bad else "")
    )


def hashed(source: Source, index: int) -> Hashed:
    """Hashes one image. Raises DecodeError."""
    record = source[index]
    return record.key, perceptual_hash(record.image)


def later_ones(found: Sequence[Hashed], distance: int) -> Iterator[Hashed]:
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
