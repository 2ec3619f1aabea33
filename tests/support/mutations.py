"""Damage at random, for the tests of what reads files of strangers."""

from collections.abc import Callable, Sequence

import numpy as np


def mutated(
    data: bytes,
    rng: np.random.Generator,
    aim: Callable[[int], int],
    patches: Sequence[bytes] = (),
) -> bytes:
    """One to five of: bytes changed or inserted, a bit flipped, the end cut off, a piece lost,
    doubled or its halves swapped, a patch written over.

    Half of the places go through `aim`: headers are short, and damage there does most harm.
    """
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        first, last = sorted(rng.integers(0, len(changed) + 1, 2).tolist())
        if rng.random() < 0.5:
            first, last = sorted((aim(first), aim(last)))
        middle, end = (first + last) // 2, min(last, first + 2000)
        kind = rng.integers(8 if patches else 7)
        if kind == 0:
            for place in rng.integers(0, len(changed), int(rng.integers(1, 9))).tolist():
                changed[place] = int(rng.integers(256))
        elif kind == 1:
            changed[min(first, len(changed) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del changed[max(last, 20) :]
        elif kind == 3:
            changed[first:first] = rng.bytes(int(rng.integers(1, 40)))
        elif kind == 4:
            changed[first:last] = changed[middle:last] + changed[first:middle]
        elif kind == 5:
            changed[first:first] = changed[first:end]
        elif kind == 6:
            del changed[first : min(last, first + 700)]
        else:
            patch = patches[rng.integers(len(patches))]
            changed[first : first + len(patch)] = patch
        if len(changed) < 20:
            break
    return bytes(changed) or b"\0"
