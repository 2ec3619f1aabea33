"""Folder contents for messages, and the newest checkpoint of Hugging Face's Trainer in a folder."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from clip_jax.weights.files.names import adapter, listed
from clip_jax.weights.files.tensors import find_weights

logger = logging.getLogger(__name__)

_STEP = re.compile(r"checkpoint-(\d+)")


def inventory(directory: Path) -> str:
    """The first names in a folder, for a message; "nothing" for an empty one."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in directory.iterdir())
    return listed([name if len(name) <= 30 else name[:29] + "…" for name in names]) or "nothing"


def refuse_adapter(directory: Path) -> None:
    """Raises `UserError` for a folder with a PEFT adapter in place of a model."""
    if (directory / "adapter_config.json").is_file():
        raise adapter(directory)


def newest_trainer_checkpoint(directory: Path, weights: Sequence[str]) -> Path | None:
    """The `checkpoint-N` with the largest N that has a configuration and weights; logs the choice.

    Returns None if the folder has no such checkpoint.
    """
    steps = [(int(m[1]), p) for p in directory.iterdir() if (m := _STEP.fullmatch(p.name))]
    whole = [
        path
        for _, path in sorted(steps, reverse=True)
        if (path / "config.json").is_file() and find_weights(path, weights)
    ]
    if not whole:
        return None
    others = f"; also there: {', '.join(p.name for p in whole[1:6])}" if whole[1:] else ""
    logger.warning(
        "%s: has no model of its own; took its newest checkpoint %s%s",
        directory,
        whole[0].name,
        others,
    )
    return whole[0]
