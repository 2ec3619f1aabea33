"""Interface of weight files (tensors by name), and what their errors share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from clip_jax.errors import UserError, one_line

MAX_NAMES = 5  # in one error


class Tensors(Protocol):
    """Tensors by name, read from their files on demand; not thread-safe."""

    where: Path  # file or folder, for errors
    shapes: Mapping[str, tuple[int, ...]]  # name -> shape, known without reading the data

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored dtype (bfloat16 by ml_dtypes), C-contiguous.

        Raises `UserError` if the file is damaged there, `KeyError` for a name not in `shapes`.
        """
        ...


def listed(names: Sequence[str], most: int = MAX_NAMES) -> str:
    """The first `most` names, joined by commas, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def damaged(path: Path, error: Exception, kind: str = "damaged or truncated") -> UserError:
    """The error for a file that cannot be read."""
    return UserError(f"{path}: is {kind} ({one_line(error)}); download it again")


def adapter(where: Path, reason: str = "") -> UserError:
    """The error for LoRA weights in place of a model's."""
    return UserError(
        f"{where}: is an adapter (LoRA, PEFT), not a model{reason}; load the model that it is for,"
        " with adapter=FOLDER"
    )
