"""Which records are the same image, nearly the same, or have the same caption."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.dataset_tools.inspect.survey import Facts

MAX_DISTANCE = 4  # bits of 64 by which the hashes of near duplicates differ


@dataclass(frozen=True)
class Group:
    """Records that are alike, in order. `distance`: bits between the first and the most
    similar one."""

    members: tuple[Facts, ...]
    distance: int


def exact_groups(facts: Iterable[Facts]) -> list[Group]:
    """Images whose bytes are equal; the largest groups first."""
    by_digest: dict[bytes, list[Facts]] = {}
    for fact in facts:
        by_digest.setdefault(fact.digest, []).append(fact)
    groups = [Group(tuple(same), 0) for same in by_digest.values() if len(same) > 1]
    return sorted(groups, key=lambda group: -len(group.members))


def near_groups(facts: Sequence[Facts]) -> list[Group]:
    """Images whose hashes differ by at most `MAX_DISTANCE` bits from that of the first of their
    group; of equal files one counts. The most alike first."""
    different = list({fact.digest: fact for fact in reversed(facts)}.values())[::-1]
    groups = [
        Group(tuple(different[number] for number in numbers), distance)
        for numbers, distance in near_numbers([fact.hash for fact in different])
    ]
    return sorted(groups, key=lambda group: group.distance)


def near_numbers(hashes: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """(numbers of the hashes in a group, bits between its first and the most similar one), by the
    first. Each hash is in one group at most."""
    # Not chains of neighbours: in a large set they would join what is not alike at all. And row by
    # row, of those that no group has yet: of n equal images all pairs would be n² / 2.
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
    """(caption, how often) of those that occur more than once, white space apart; the commonest
    first."""
    counts = Counter(" ".join(caption.split()) for caption in captions)
    return [(caption, count) for caption, count in counts.most_common() if count > 1]
