"""Parts of architecture rows that several families share."""

from typing import Any

Row = dict[str, Any]


def vit(name: str, patch: int, shape: tuple[int, int, int], **more: Any) -> Row:
    """Row of a ViT image tower; `shape` is (width, layers, heads), MLPs have 4 × width."""
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
    """Row of OpenAI's text tower, with heads of width 64."""
    return {
        "embed_dim": embed or width,
        "text_width": width,
        "text_heads": width // 64,
        "text_layers": layers,
        "text_mlp_dim": 4 * width,
    }
