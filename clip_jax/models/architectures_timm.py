"""Architecture rows of the towers that open_clip takes from timm, except plain Transformers."""

from collections.abc import Iterator

from clip_jax.models.architecture_rows import Row, text, vit

_CONVNEXT_DEPTHS = {
    "tiny": (96, (3, 3, 9, 3)),
    "small": (96, (3, 3, 27, 3)),
    "base": (128, (3, 3, 27, 3)),
    "large": (192, (3, 3, 27, 3)),
    "xlarge": (256, (3, 3, 27, 3)),
    "xxlarge": (384, (3, 4, 30, 3)),
}


def convnext() -> Iterator[Row]:
    """LAION's ConvNeXt towers (Liu et al. 2022): "w" has a wider text tower, "d" a deeper one and a
    two-layer projection."""

    def row(name: str, size: str, pixels: int, tower: Row) -> Row:
        width, depths = _CONVNEXT_DEPTHS[size]
        return {
            "name": f"convnext_{name}",
            "vision_kind": "convnext",
            "image_size": pixels,
            "vision_width": width,
            "vision_layers": depths,
            "vision_layer_scale": 1e-6,
            "vision_norm_eps": 1e-5 if size == "xxlarge" else 1e-6,
            "vision_projection": "mlp_bias" if name.startswith("large_d") else "linear",
            **tower,
        }

    yield row("tiny", "tiny", 224, text(512, embed=1024))
    yield row("small", "small", 224, text(512))
    yield row("base", "base", 224, text(512))
    yield row("base_w", "base", 256, text(640))
    yield row("base_w_320", "base", 320, text(640))
    yield row("large", "large", 224, text(768))
    yield row("large_d", "large", 256, text(768, 16))
    yield row("large_d_320", "large", 320, text(768, 16))
    yield row("xlarge", "xlarge", 256, text(1024, 20))
    yield row("xxlarge", "xxlarge", 256, text(1024, 24))
    yield row("xxlarge_320", "xxlarge", 320, text(1024, 24))


# channels of the stem, then width, blocks and heads of the Transformer
_VITAMIN_SHAPES = {
    "S": (64, 384, 14, 6),
    "B": (128, 768, 14, 12),
    "L": (160, 1024, 31, 16),
    "XL": (192, 1152, 32, 16),
}


def vitamin() -> Iterator[Row]:
    """ViTamin (Chen et al. 2024): inverted bottlenecks, then a ViT with gated MLPs.

    Rows named "LTT" (locked-text tuning) or "L2" have a wider text tower.
    """

    def row(name: str, size: str, tower: Row, pixels: int = 224) -> Row:
        stem, width, layers, heads = _VITAMIN_SHAPES[size]
        more: Row = {
            "vision_kind": "hybrid",
            "image_size": pixels,
            "vision_stem": "inverted",
            "vision_stem_width": stem,
            "vision_positions": size != "XL",
            "vision_class_token": False,
            "vision_pre_norm": False,
            "vision_pool": "average",
            "vision_post_norm": "after_pool",
            "vision_mlp": "geglu",
            "vision_norm_eps": 1e-6,
            "vision_init": "normal",
        }
        shape = vit(f"ViTamin-{name}", 16, (width, layers, heads), **more, **tower)
        return shape | {"vision_mlp_dim": 2 * width}

    yield row("S", "S", text(384))
    yield row("S-LTT", "S", text(768))
    yield row("B", "B", text(512))
    yield row("B-LTT", "B", text(768))
    for name, tower in (("L", text(768)), ("L2", text(1024, 24))):
        yield row(name, "L", tower)
        for pixels in (256, 336, 384):
            yield row(f"{name}-{pixels}", "L", tower, pixels)
    for pixels in (256, 336, 384):
        yield row(f"XL-{pixels}", "XL", text(1152, 27) | {"text_heads": 16}, pixels)


_UNIT = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
# channels of the first stage, blocks of each stage
_FASTVIT_SHAPES = {
    "S0": (64, (2, 6, 10, 2)),
    "S1": (64, (4, 12, 20, 4)),
    "S2": (80, (4, 12, 24, 4)),
    "S3": (96, (2, 12, 24, 4, 2)),
    "S4": (128, (2, 12, 24, 4, 4)),
}


def mobileclip() -> Iterator[Row]:
    """MobileCLIP (Vasu et al. 2024) and MobileCLIP 2 (Faghri et al. 2025)."""

    def small(name: str, size: str) -> Row:
        width, layers = _FASTVIT_SHAPES[size]
        large = len(layers) == 5
        return {
            "name": f"{name}-{size}",
            "vision_kind": "fastvit",
            "image_size": 256,
            "vision_width": width,
            "vision_layers": layers,
            "vision_mlp_dim": (4 if large else 3) * width,
            "vision_fastvit": "large" if large else "small",
            "vision_layer_scale": 1e-5,
            "vision_projection": "linear_bias",
            "text_causal": False,
            "image_interpolation": "bilinear",
            **({} if large else _UNIT),
            **text(768 if large else 512),
        }

    def base(name: str) -> Row:
        more: Row = {
            "vision_kind": "hybrid",
            "vision_stem": "convolutions",
            "vision_stem_width": 192,
            "vision_pre_norm": False,
            "vision_projection": "linear_bias",
            "vision_norm_eps": 1e-6,
            "vision_init": "normal",
            "image_interpolation": "bilinear",
        }
        return vit(f"{name}-B", 16, (768, 12, 12), **more, **_UNIT, **text(512))

    for size in ("S1", "S2"):
        yield small("MobileCLIP", size)
    yield base("MobileCLIP")
    for size in ("S0", "S2", "S3", "S4"):
        yield small("MobileCLIP2", size)
    yield base("MobileCLIP2")
    more: Row = {"vision_projection": "linear_bias", "vision_init": "normal", "text_causal": False}
    yield vit("MobileCLIP2-L-14", 14, (1024, 24, 16), **more, **text(768))
