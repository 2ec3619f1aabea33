"""Builders of architecture rows."""

from typing import Any

from clip_jax.models.config import ClipConfig
from clip_jax.models.kinds import TextConfig, TransformerTextConfig, VisionConfig, VitConfig

# width, layers, heads, and the width of the MLP if it is not 4 × width
Shape = tuple[int, int, int] | tuple[int, int, int, int]


def vit(patch: int, shape: Shape, **more: Any) -> VitConfig:
    """Image tower of a ViT."""
    width, layers, heads, *mlp_dim = shape
    mlp = mlp_dim[0] if mlp_dim else 4 * width
    return VitConfig(width, layers, heads, mlp, patch_size=patch, **more)


def text(width: int, layers: int = 12, **more: Any) -> TransformerTextConfig:
    """OpenAI's text tower, with heads of width 64."""
    fields = {"heads": width // 64} | more
    return TransformerTextConfig(width, layers, mlp_dim=4 * width, **fields)


def row(name: str, vision: VisionConfig, words: TextConfig, **shared: Any) -> ClipConfig:
    """A row whose embeddings are as wide as the text tower, unless `embed_dim` is given."""
    fields = {"embed_dim": words.width} | shared
    return ClipConfig(name, vision=vision, text=words, **fields)
