"""Folder contents for messages, and the newest checkpoint of Hugging Face's Trainer in a folder."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.weights.files.tensors import find_weights

logger = logging.getLogger(__name__)

_STEP = re.compile(r"checkpoint-(\d+)")
_ADAPTER_CONFIG = "adapter_config.json"
_MAX_NAMES, _MAX_LETTERS = 8, 120  # limits of one error message


def inventory(directory: Path) -> str:
    """The first names in a folder, for a message; "nothing" for an empty one."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in directory.iterdir())
    shown: list[str] = []
    for name in names[:_MAX_NAMES]:
        shown.append(name if len(name) <= 40 else name[:39] + "…")
        if len(", ".join(shown)) > _MAX_LETTERS:
            break
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more if names else "nothing"


def refuse_adapter(directory: Path) -> None:
    """Raises `UserError` for a folder with a PEFT adapter in place of a model."""
    if (directory / _ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{directory}: is an adapter (LoRA, PEFT), not a model; merge it into its model first "
            "(PEFT: model.merge_and_unload().save_pretrained(FOLDER))"
        )


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
