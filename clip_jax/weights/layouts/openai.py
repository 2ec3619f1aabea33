"""OpenAI's released files, whose architecture is inferred from the tensors' shapes.

The files carry no configuration, and shapes do not show the activation: these weights were trained
with x·sigmoid(1.702 x).
"""

from collections.abc import Iterable, Mapping

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, override

Shape = tuple[int, ...]
MARKS = ("visual.conv1.weight", "token_embedding.weight", "text_projection", "ln_final.weight")


def looks_native(names: Iterable[str]) -> bool:
    """Whether the names are those of OpenAI's `CLIP` class."""
    return set(MARKS) <= set(names)


def _count(names: Iterable[str], start: str) -> int:
    """The number of distinct indices after a prefix, as in "visual.layer1.0.conv1.weight"."""
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})


def config_from_shapes(shapes: Mapping[str, Shape], where: str) -> ClipConfig:
    """{name: shape} of an OpenAI state dictionary -> the configuration, with quick GELU.

    Raises `UserError` if the tensors do not form such a model.
    """
    try:
        fields = _vit(shapes) if "visual.proj" in shapes else _resnet(shapes)
        context, text_width = shapes["positional_embedding"]
        fields |= {
            "embed_dim": shapes["text_projection"][1],
            "context_length": context,
            "vocab_size": shapes["token_embedding.weight"][0],
            "eos_id": shapes["token_embedding.weight"][0] - 1,
            "text_width": text_width,
            "text_heads": text_width // 64,
            "text_layers": _count(shapes, "transformer.resblocks."),
            "text_mlp_dim": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            "text_activation": "quick_gelu",
            "vision_activation": "quick_gelu",
        }
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where}: not the tensors of an OpenAI CLIP (lacks {error})") from error
    return override(ClipConfig(), **fields)


def _vit(shapes: Mapping[str, Shape]) -> dict[str, object]:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    return {
        "patch_size": patch,
        "image_size": grid * patch,
        "vision_width": width,
        "vision_layers": _count(shapes, "visual.transformer.resblocks."),
        "vision_heads": width // 64,
        "vision_mlp_dim": shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
    }


def _resnet(shapes: Mapping[str, Shape]) -> dict[str, object]:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    grid = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
    return {
        "vision_kind": "resnet",
        "image_size": 32 * grid,
        "vision_width": width,
        "vision_layers": tuple(_count(shapes, f"visual.layer{i}.") for i in (1, 2, 3, 4)),
        "vision_heads": width * 32 // 64,
    }
