"""What files of weights have in common: tensors by name, and how names are listed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

MAX_NAMES = 5  # in one error


class Tensors(Protocol):
    """Tensors by name, in files that are read when a tensor is asked for; for one thread."""

    where: Path  # file or folder, for errors
    shapes: Mapping[str, tuple[int, ...]]  # name -> shape, known without reading the data

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored dtype (bfloat16 by ml_dtypes), C-contiguous.

        Raises `UserError` where the file is damaged there, `KeyError` for a name not in `shapes`.
        """
        ...


def listed(names: Sequence[str], most: int = MAX_NAMES) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
