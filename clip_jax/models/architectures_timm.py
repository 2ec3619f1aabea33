"""Architecture rows of the towers that open_clip takes from timm, except plain Transformers."""

from collections.abc import Iterator
from typing import Any

from clip_jax.models.config import ClipConfig
from clip_jax.models.kinds import ConvNextConfig, FastVitConfig, HybridConfig, TransformerTextConfig
from clip_jax.models.rows import row, text, vit

_CONVNEXT_DEPTHS = {
    "tiny": (96, (3, 3, 9, 3)),
    "small": (96, (3, 3, 27, 3)),
    "base": (128, (3, 3, 27, 3)),
    "large": (192, (3, 3, 27, 3)),
    "xlarge": (256, (3, 3, 27, 3)),
    "xxlarge": (384, (3, 4, 30, 3)),
}


def convnext() -> Iterator[ClipConfig]:
    """LAION's ConvNeXt towers (Liu et al. 2022): "w" has a wider text tower, "d" a deeper one and a
    two-layer projection."""
    table = [
        ("tiny", 224, text(512), 1024),
        ("small", 224, text(512), 512),
        ("base", 224, text(512), 512),
        ("base_w", 256, text(640), 640),
        ("base_w_320", 320, text(640), 640),
        ("large", 224, text(768), 768),
        ("large_d", 256, text(768, 16), 768),
        ("large_d_320", 320, text(768, 16), 768),
        ("xlarge", 256, text(1024, 20), 1024),
        ("xxlarge", 256, text(1024, 24), 1024),
        ("xxlarge_320", 320, text(1024, 24), 1024),
    ]
    for name, pixels, words, embed in table:
        size = name.split("_")[0]
        tower = ConvNextConfig(
            *_CONVNEXT_DEPTHS[size],
            projection="mlp_bias" if name.startswith("large_d") else "linear",
            norm_eps=1e-5 if size == "xxlarge" else 1e-6,
        )
        yield row(f"convnext_{name}", tower, words, embed_dim=embed, image_size=pixels)


# channels of the stem, then width, blocks and heads of the Transformer
_VITAMIN_SHAPES = {
    "S": (64, 384, 14, 6),
    "B": (128, 768, 14, 12),
    "L": (160, 1024, 31, 16),
    "XL": (192, 1152, 32, 16),
}


def vitamin() -> Iterator[ClipConfig]:
    """ViTamin (Chen et al. 2024): inverted bottlenecks, then a ViT with gated MLPs.

    Rows named "LTT" (locked-text tuning) or "L2" have a wider text tower.
    """

    def vitamin_row(name: str, words: TransformerTextConfig, pixels: int = 224) -> ClipConfig:
        size = name.split("-")[0].removesuffix("2")
        stem, width, layers, heads = _VITAMIN_SHAPES[size]
        tower = HybridConfig(
            width,
            layers,
            heads,
            2 * width,
            stem="inverted",
            stem_width=stem,
            positions=size != "XL",
            class_token=False,
            pre_norm=False,
            pool="average",
            post_norm="after_pool",
            mlp="geglu",
            norm_eps=1e-6,
            init="normal",
        )
        return row(f"ViTamin-{name}", tower, words, image_size=pixels)

    yield vitamin_row("S", text(384))
    yield vitamin_row("S-LTT", text(768))
    yield vitamin_row("B", text(512))
    yield vitamin_row("B-LTT", text(768))
    for name, words in (("L", text(768)), ("L2", text(1024, 24))):
        yield vitamin_row(name, words)
        for pixels in (256, 336, 384):
            yield vitamin_row(f"{name}-{pixels}", words, pixels)
    for pixels in (256, 336, 384):
        yield vitamin_row(f"XL-{pixels}", text(1152, 27, heads=16), pixels)


_UNIT: dict[str, Any] = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
# channels of the first stage, blocks of each stage
_FASTVIT_SHAPES = {
    "S0": (64, (2, 6, 10, 2)),
    "S1": (64, (4, 12, 20, 4)),
    "S2": (80, (4, 12, 24, 4)),
    "S3": (96, (2, 12, 24, 4, 2)),
    "S4": (128, (2, 12, 24, 4, 4)),
}


def mobileclip() -> Iterator[ClipConfig]:
    """MobileCLIP (Vasu et al. 2024) and MobileCLIP 2 (Faghri et al. 2025)."""

    def small(name: str, size: str) -> ClipConfig:
        width, layers = _FASTVIT_SHAPES[size]
        large = len(layers) == 5
        tower = FastVitConfig(
            width,
            layers,
            variant="large" if large else "small",
            mlp_dim=(4 if large else 3) * width,
            projection="linear_bias",
        )
        return row(
            f"{name}-{size}",
            tower,
            text(768 if large else 512, causal=False),
            image_size=256,
            image_interpolation="bilinear",
            **({} if large else _UNIT),
        )

    def base(name: str) -> ClipConfig:
        tower = HybridConfig(
            stem="convolutions",
            stem_width=192,
            pre_norm=False,
            projection="linear_bias",
            norm_eps=1e-6,
            init="normal",
        )
        return row(f"{name}-B", tower, text(512), image_interpolation="bilinear", **_UNIT)

    for size in ("S1", "S2"):
        yield small("MobileCLIP", size)
    yield base("MobileCLIP")
    for size in ("S0", "S2", "S3", "S4"):
        yield small("MobileCLIP2", size)
    yield base("MobileCLIP2")
    tower = vit(14, (1024, 24, 16), projection="linear_bias", init="normal")
    yield row("MobileCLIP2-L-14", tower, text(768, causal=False))
