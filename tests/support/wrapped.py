"""Weights as the tests of wrappers write them: a model's tensors by themselves, and its errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clip_jax
from clip_jax.clip import Clip
from clip_jax.errors import UserError

State = dict[str, Any]
FILES = {
    "huggingface": ("model.safetensors", "pytorch_model.bin"),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def written(clip: Clip, folder: Path, layout: str) -> State:
    """Writes the model without its weights; returns them."""
    clip.save(folder, layout)
    path = folder / FILES[layout][0]
    from safetensors.torch import load_file

    state = load_file(path)
    path.unlink()
    return state


def error_of(source: Path, **options: Any) -> str:
    """The line that loading ends with, without its path."""
    with pytest.raises(UserError) as caught:
        clip_jax.load(source, **options)
    message = str(caught.value).replace(str(source), "SOURCE")
    assert "\n" not in message
    return message
