"""Which records are the same image, nearly the same, or have the same caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.dataset_tools.survey import Facts

MAX_DISTANCE = 4  # bits of 64 by which the hashes of near duplicates differ
_PAIRS_AT_ONCE = 1 << 22  # 32 MiB of differences


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
    # Not chains of neighbours: in a large set they would join what is not alike at all.
    different = list({fact.digest: fact for fact in reversed(facts)}.values())[::-1]
    alike: dict[int, list[tuple[int, int]]] = {}
    for left, right, distance in near_pairs([fact.hash for fact in different]):
        alike.setdefault(left, []).append((right, distance))
    taken: set[int] = set()
    groups = []
    for first in sorted(alike):
        others = [] if first in taken else [pair for pair in alike[first] if pair[0] not in taken]
        if others:
            taken.update((first, *(number for number, _ in others)))
            members = (different[first], *(different[number] for number, _ in others))
            groups.append(Group(members, min(distance for _, distance in others)))
    return sorted(groups, key=lambda group: group.distance)


def near_pairs(hashes: Sequence[int]) -> list[tuple[int, int, int]]:
    """(i, j, differing bits) of all pairs i < j with at most `MAX_DISTANCE`."""
    values = np.array(hashes, np.uint64)
    rows = max(1, _PAIRS_AT_ONCE // max(len(values), 1))
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(values), rows):
        different = np.bitwise_count(values[start : start + rows, None] ^ values[None, start:])
        left, right = np.nonzero(different <= MAX_DISTANCE)
        later = right > left
        left, right = left[later], right[later]
        columns = (left + start, right + start, different[left, right])
        pairs += zip(*(column.tolist() for column in columns), strict=True)
    return pairs


def repeated_captions(captions: Iterable[str]) -> list[tuple[str, int]]:
    """(caption, how often) of those that occur more than once, white space apart; the commonest
    first."""
    counts = Counter(" ".join(caption.split()) for caption in captions)
    return [(caption, count) for caption, count in counts.most_common() if count > 1]
