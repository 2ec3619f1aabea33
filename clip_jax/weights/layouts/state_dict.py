"""Files of weights without a configuration: OpenAI's archives, and state dictionaries of an
architecture that the user names."""

from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture, same_function
from clip_jax.weights.files.names import Tensors
from clip_jax.weights.files.tensors import find_weights, is_index, open_tensors
from clip_jax.weights.layouts import openai
from clip_jax.weights.layouts.layout import WEIGHT_SUFFIXES, Layout, Opened, tokenizer_in
from clip_jax.weights.layouts.open_clip import IGNORED, rules_of

OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
BARE_WEIGHTS = (*OPEN_CLIP_WEIGHTS, "model.pt", "model.npz")


def _open(path: Path, architecture: str | None) -> Opened | None:
    file = find_weights(path, BARE_WEIGHTS) if path.is_dir() else path
    if file is None:
        return None
    if file.suffix not in WEIGHT_SUFFIXES and not is_index(file):
        raise UserError(
            f"{path}: not a file of weights (accepted: {', '.join(WEIGHT_SUFFIXES)}, or a folder)"
        )
    tensors = open_tensors(file)
    if architecture is not None:
        layout, config = "open_clip", get_architecture(architecture)
    elif "input_resolution" in tensors.shapes:  # only in OpenAI's own archives
        layout, config = "openai", openai.config_from_shapes(tensors.shapes, str(file))
    else:
        raise UserError(f"{file}: a bare state dictionary; {_which_architecture(tensors, file)}")
    return Opened(
        layout,
        file,
        config,
        tensors,
        rules_of(tensors),
        lambda: tokenizer_in(file.parent, config),
        IGNORED,
        says_sizes=architecture is None,
    )


LAYOUT = Layout("state_dict", _open, rank=3)


def _which_architecture(tensors: Tensors, path: Path) -> str:
    """A hint naming the architectures that fit; shapes do not show the activation, so none is
    chosen."""
    if not openai.looks_native(tensors.shapes):
        return "give architecture= (clip_jax.list_models() has the names)"
    try:
        like = same_function(openai.config_from_shapes(tensors.shapes, str(path)))
    except UserError:
        like = "custom"
    if like == "custom":
        return "give architecture= (no known name has these shapes)"
    plain = like.removesuffix("-quickgelu")
    return f"give architecture={plain!r}, or {like!r} if it was trained with quick GELU"
