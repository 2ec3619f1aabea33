"""Search for equal images, near duplicates and repeated captions."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.dataset_tools.inspect.survey import Facts

MAX_DISTANCE = 4  # bits of 64 by which hashes of near duplicates may differ


@dataclass(frozen=True)
class Group:
    """Similar records, in order. `distance`: bits between the first and the most similar
    one."""

    members: tuple[Facts, ...]
    distance: int


def exact_groups(facts: Iterable[Facts]) -> list[Group]:
    """Groups of images with equal bytes, largest first."""
    by_digest: dict[bytes, list[Facts]] = {}
    for fact in facts:
        by_digest.setdefault(fact.digest, []).append(fact)
    groups = [Group(tuple(same), 0) for same in by_digest.values() if len(same) > 1]
    return sorted(groups, key=lambda group: -len(group.members))


def near_groups(facts: Sequence[Facts]) -> list[Group]:
    """Groups of images whose hashes differ by at most `MAX_DISTANCE` bits from their group's
    first, most similar groups first; equal files count once."""
    different = list({fact.digest: fact for fact in reversed(facts)}.values())[::-1]
    groups = [
        Group(tuple(different[number] for number in numbers), distance)
        for numbers, distance in near_numbers([fact.hash for fact in different])
    ]
    return sorted(groups, key=lambda group: group.distance)


def near_numbers(hashes: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Yields (indices of the hashes in a group, bits between its first and the most similar one),
    ordered by the first. Each hash is in at most one group."""
    # Groups are not chains of neighbours, which in a large set would join dissimilar images. Rows
    # compare only ungrouped hashes: all pairs of n equal images would be n² / 2.
    left = np.array(hashes, np.uint64)
    numbers = np.arange(len(left))
    while len(left):
        different = np.bitwise_count(left[0] ^ left[1:])
        alike = different <= MAX_DISTANCE
        if alike.any():
            yield [int(numbers[0]), *numbers[1:][alike].tolist()], int(different[alike].min())
            left, numbers = left[1:][~alike], numbers[1:][~alike]
        else:
            left, numbers = left[1:], numbers[1:]


def repeated_captions(captions: Iterable[str]) -> list[tuple[str, int]]:
    """(caption, count) of captions that occur more than once, up to white space, commonest
    first."""
    counts = Counter(" ".join(caption.split()) for caption in captions)
    return [(caption, count) for caption, count in counts.most_common() if count > 1]
