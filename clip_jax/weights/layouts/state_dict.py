"""Files of weights without a configuration: OpenAI's archives, and state dictionaries of an
architecture that the user names.

The architecture of OpenAI's files is inferred from the tensors' shapes. Shapes do not show the
activation: these weights were trained with x·sigmoid(1.702 x).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture, same_function
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.kinds import ResNetConfig, TransformerTextConfig, VitConfig
from clip_jax.weights.files.names import Tensors
from clip_jax.weights.files.tensors import find_weights, is_index, open_tensors
from clip_jax.weights.layouts.layout import WEIGHT_SUFFIXES, Layout, Opened, tokenizer_in
from clip_jax.weights.layouts.open_clip import IGNORED, rules_of
from clip_jax.weights.rules.table import Shape

OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
# Names of OpenAI's `CLIP` class.
MARKS = ("visual.conv1.weight", "token_embedding.weight", "text_projection", "ln_final.weight")
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
        layout, config = "openai", config_from_shapes(tensors.shapes, str(file))
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
    if not set(MARKS) <= set(tensors.shapes):
        return "give architecture= (clip_jax.list_models() has the names)"
    try:
        like = same_function(config_from_shapes(tensors.shapes, str(path)))
    except UserError:
        like = "custom"
    if like == "custom":
        return "give architecture= (no known name has these shapes)"
    plain = like.removesuffix("-quickgelu")
    return f"give architecture={plain!r}, or {like!r} if it was trained with quick GELU"


def _count(names: Iterable[str], start: str) -> int:
    """The number of distinct indices after a prefix, as in "visual.layer1.0.conv1.weight"."""
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})


def config_from_shapes(shapes: Mapping[str, Shape], where: str) -> ClipConfig:
    """{name: shape} of an OpenAI state dictionary -> the configuration, with quick GELU.

    Raises `UserError` if the tensors do not form such a model.
    """
    try:
        image_size, vision = _vit(shapes) if "visual.proj" in shapes else _resnet(shapes)
        context, width = shapes["positional_embedding"]
        vocab_size = shapes["token_embedding.weight"][0]
        text = TransformerTextConfig(
            width,
            _count(shapes, "transformer.resblocks."),
            width // 64,
            shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            eos_id=vocab_size - 1,
            activation="quick_gelu",
        )
        embed_dim = shapes["text_projection"][1]
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where}: not the tensors of an OpenAI CLIP (lacks {error})") from error
    return override(
        ClipConfig(),
        embed_dim=embed_dim,
        image_size=image_size,
        context_length=context,
        vocab_size=vocab_size,
        vision=vision,
        text=text,
    )


def _vit(shapes: Mapping[str, Shape]) -> tuple[int, VitConfig]:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    return grid * patch, VitConfig(
        width,
        _count(shapes, "visual.transformer.resblocks."),
        width // 64,
        shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        patch_size=patch,
        activation="quick_gelu",
    )


def _resnet(shapes: Mapping[str, Shape]) -> tuple[int, ResNetConfig]:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    grid = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
    layers = tuple(_count(shapes, f"visual.layer{i}.") for i in (1, 2, 3, 4))
    return 32 * grid, ResNetConfig(width, layers, heads=width * 32 // 64)
