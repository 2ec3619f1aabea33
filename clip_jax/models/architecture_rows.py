"""What rows of several families of architectures have in common."""

from typing import Any

Row = dict[str, Any]


def vit(name: str, patch: int, shape: tuple[int, int, int], **more: Any) -> Row:
    """An image tower of ViT blocks, `shape` being width, layers and heads; MLPs of four times the
    width."""
    width, layers, heads = shape
    return {
        "name": name,
        "patch_size": patch,
        "vision_width": width,
        "vision_layers": layers,
        "vision_heads": heads,
        "vision_mlp_dim": 4 * width,
        **more,
    }


def text(width: int, layers: int = 12, embed: int | None = None) -> Row:
    """OpenAI's text tower: heads of 64."""
    return {
        "embed_dim": embed or width,
        "text_width": width,
        "text_heads": width // 64,
        "text_layers": layers,
        "text_mlp_dim": 4 * width,
    }
