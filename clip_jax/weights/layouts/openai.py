"""OpenAI's released files, whose architecture is inferred from the tensors' shapes.

The files carry no configuration, and shapes do not show the activation: these weights were trained
with x·sigmoid(1.702 x).
"""

from collections.abc import Iterable, Mapping

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.kinds import ResNetConfig, TransformerTextConfig, VitConfig

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
