"""Prompts of each class of its own, in the file form of CuPL: {class: [prompt, …]}.

Source: Pratt et al. 2023 (arXiv 2209.03320), whose descriptions a language model wrote.
"""

import os
from collections.abc import Sequence
from typing import Any

from clip_jax.arguments import shown
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import read_json
from clip_jax.evaluation.prompts.published import ClassNames


def read_class_prompts(
    path: str | os.PathLike[str], classes: Sequence[ClassNames]
) -> list[tuple[str, ...]]:
    """Returns the prompts of each class from a JSON file; those of other classes are ignored.

    A key is what the data call the class, or a name of it, in any case and with "_" for a blank.

    Raises:
      UserError: the file cannot be read, is no such object, or lacks a class.
    """
    entries = read_json(path)
    wanted = "accepted is {class: [prompt, …]}, at least one prompt a class"
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: {shown(entries)}; {wanted}")
    for key, prompts in entries.items():
        if not _are_prompts(prompts):
            raise UserError(f"{path}, class {key!r}: {shown(prompts)}; {wanted}")
    by_name = {_plain(key): tuple(prompts) for key, prompts in entries.items()}
    found = []
    for each in classes:
        keys = [key for key in map(_plain, (each.label, *each.names)) if key in by_name]
        if not keys:
            raise UserError(f"{path}: has no class {each.label!r}; {wanted}")
        found.append(by_name[keys[0]])
    return found


def _are_prompts(prompts: Any) -> bool:
    texts = prompts if isinstance(prompts, list) else []
    return bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
