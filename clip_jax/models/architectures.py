"""Table of architectures: one frozen row per name.

Names and sizes are those of the released models (CLIP paper, tables 19 and 20; open_clip's
configurations for the others). A plain name computes the exact GELU; its `-quickgelu` twin
computes x·sigmoid(1.702 x), with which OpenAI trained. Both have the same parameter shapes, so a
wrong choice loads without an error.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax.arguments import shown
from clip_jax.errors import UserError
from clip_jax.models.architecture_rows import Row
from clip_jax.models.architecture_rows import text as _text
from clip_jax.models.architecture_rows import vit as _vit
from clip_jax.models.architectures_timm import convnext, mobileclip, vitamin
from clip_jax.models.config import ClipConfig, override

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
LN_10 = 2.3025851  # the logit scale that SigLIP starts from, as a logarithm


def _resnet(
    name: str, width: int, layers: tuple[int, ...], size: int, embed: int, text: int
) -> Row:
    """Row of a ModifiedResNet tower (paper section 2.4) with OpenAI's text tower."""
    return {
        "name": name,
        "vision_kind": "resnet",
        "image_size": size,
        "vision_width": width,
        "vision_layers": layers,
        "vision_heads": width * 32 // 64,
        **_text(text, embed=embed),
    }


VIT_B, VIT_L, VIT_H = (768, 12, 12), (1024, 24, 16), (1280, 32, 16)
VIT_S, VIT_M, VIT_B_PLUS = (384, 12, 6), (512, 12, 8), (896, 12, 14)
VIT_BIGG = (1664, 48, 16)

_OPENAI = (
    _resnet("RN50", 64, (3, 4, 6, 3), 224, 1024, 512),
    _resnet("RN101", 64, (3, 4, 23, 3), 224, 512, 512),
    _resnet("RN50x4", 80, (4, 6, 10, 6), 288, 640, 640),
    _resnet("RN50x16", 96, (6, 8, 18, 8), 384, 768, 768),
    _resnet("RN50x64", 128, (3, 15, 36, 10), 448, 1024, 1024),
    _vit("ViT-B-32", 32, VIT_B, **_text(512)),
    _vit("ViT-B-16", 16, VIT_B, **_text(512)),
    _vit("ViT-L-14", 14, VIT_L, **_text(768)),
    _vit("ViT-L-14-336", 14, VIT_L, image_size=336, **_text(768)),
)

# These are the models of LAION, DataComp, DFN and MetaCLIP; the MLP widths of g, bigG and e are
# those of their papers.
_OPEN_CLIP_QUICK_TWINS = (
    _vit("ViT-H-14", 14, VIT_H, **_text(1024, 24)),
    _vit("ViT-H-14-378", 14, VIT_H, image_size=378, image_resize="squash", **_text(1024, 24)),
    _vit("ViT-bigG-14", 14, VIT_BIGG, **(_text(1280, 32))) | {"vision_mlp_dim": 8192},
)
_OPEN_CLIP = (
    _vit("ViT-S-32", 32, VIT_S, **_text(384)),
    _vit("ViT-S-32-alt", 32, VIT_S, **_text(256, 10)),
    _vit("ViT-S-16", 16, VIT_S, **_text(384)),
    _vit("ViT-S-16-alt", 16, VIT_S, **_text(256, 10)),
    _vit("ViT-M-32", 32, VIT_M, **_text(512)),
    _vit("ViT-M-32-alt", 32, VIT_M, **_text(384)),
    _vit("ViT-M-16", 16, VIT_M, **_text(512)),
    _vit("ViT-M-16-alt", 16, VIT_M, vision_layer_scale=1e-4, **_text(384)),
    _vit("ViT-B-32-256", 32, VIT_B, image_size=256, **_text(512)),
    _vit("ViT-B-32-plus-256", 32, VIT_B_PLUS, image_size=256, **_text(640)),
    _vit("ViT-B-16-plus", 16, VIT_B_PLUS, **_text(640)),
    _vit("ViT-B-16-plus-240", 16, VIT_B_PLUS, image_size=240, **_text(640)),
    _vit("ViT-L-16", 16, VIT_L, **_text(768)),
    _vit("ViT-L-16-320", 16, VIT_L, image_size=320, **_text(768)),
    _vit("ViT-L-14-280", 14, VIT_L, image_size=280, **_text(768)),
    _vit("ViT-H-16", 16, VIT_H, **_text(1024, 24)),
    _vit("ViT-g-14", 14, (1408, 40, 16), **_text(1024, 24)) | {"vision_mlp_dim": 6144},
    _vit("ViT-e-14", 14, (1792, 56, 16), **_text(1280, 36)) | {"vision_mlp_dim": 15360},
)


def _clipa() -> Iterator[Row]:
    """CLIPA (Li et al. 2023): average-pooled, then normed patches; text read at the last token."""
    clipa: Row = {
        "vision_pre_norm": False,
        "vision_pool": "average",
        "vision_post_norm": "after_pool",
        "context_length": 32,
        "vocab_size": 32_000,
        "text_causal": False,
        "text_pool": "last",
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "image_resize": "squash",
        "image_interpolation": "bilinear",
    }
    for size in (224, 336):
        suffix = "-CLIPA" if size == 224 else f"-CLIPA-{size}"
        more: Row = clipa | {"image_size": size}
        yield _vit(f"ViT-L-14{suffix}", 14, VIT_L, **_text(768), **more)
        yield _vit(f"ViT-H-14{suffix}", 14, VIT_H, **_text(1024, 24), **more)
        big = _vit(f"ViT-bigG-14{suffix}", 14, VIT_BIGG, **_text(1280, 32), **more)
        yield big | {"vision_mlp_dim": 8192}


def _worldwide() -> Iterator[Row]:
    """MetaCLIP 2 (2025): multilingual vocabularies; text read at the first end of text."""
    xlm_v: Row = {"vocab_size": 901_629, "text_pool": "eos", "eos_id": 2, "pad_id": 1}
    mt5: Row = {"vocab_size": 250_100, "text_pool": "eos", "eos_id": 1}
    at_378: Row = {"image_size": 378, "image_resize": "squash"}
    large: Row = _vit("ViT-L-14-worldwide", 14, VIT_L, **_text(768), **mt5)
    huge: Row = _vit("ViT-H-14-worldwide", 14, VIT_H, **_text(1024, 24), **xlm_v)
    big: Row = _vit("ViT-bigG-14-worldwide", 14, VIT_BIGG, **_text(1280, 32), **xlm_v)
    big |= {"vision_mlp_dim": 8192}
    yield from (large, _quick(large), huge, _quick(huge))
    yield huge | at_378 | {"name": "ViT-H-14-worldwide-378"}
    yield big
    yield big | at_378 | {"name": "ViT-bigG-14-worldwide-378"}


def _siglip_row(name: str, patch: int, vision: Row, text: Row, size: int, **more: Any) -> Row:
    """SigLIP (Zhai et al. 2023): attention-pooled patches, bidirectional text, sigmoid loss."""
    return {
        "name": name,
        "patch_size": patch,
        "image_size": size,
        "vision_class_token": False,
        "vision_patch_bias": True,
        "vision_pre_norm": False,
        "vision_pool": "attention",
        "vision_pool_heads": vision["vision_heads"],
        "vision_pool_mlp_dim": vision["vision_mlp_dim"],
        "vision_projection": "none",
        "vision_activation": "gelu_tanh",
        "vision_init": "big_vision",
        "embed_dim": vision["vision_width"],
        "context_length": 64,
        "text_causal": False,
        "text_pool": "last",
        "text_projection": "linear_bias",
        "text_activation": "gelu_tanh",
        "text_init": "big_vision",
        "norm_eps": 1e-6,
        "logit_scale_init": LN_10,
        "logit_bias_init": -10.0,
        "image_mean": HALF,
        "image_std": HALF,
        "image_resize": "squash",
        **vision,
        **text,
        **more,
    }


# width, layers, heads, width of the MLP; one shape serves both towers
_SIGLIP_SHAPES = {
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "SO400M": (1152, 27, 16, 4304),
    "gopt": (1536, 40, 16, 6144),
}


def _shape(tower: str, size: str) -> Row:
    keys = ("width", "layers", "heads", "mlp_dim")
    return {f"{tower}_{k}": v for k, v in zip(keys, _SIGLIP_SHAPES[size], strict=True)}


def _siglip() -> Iterator[Row]:
    """SigLIP: (size, patch, image sizes); i18n rows have the multilingual vocabulary."""
    english: Row = {"vocab_size": 32_000, "eos_id": 1, "pad_id": 1}
    world: Row = {"vocab_size": 250_000, "eos_id": 1, "pad_id": 1}
    table = [
        ("ViT-B-16-SigLIP", "B", 16, 224, english),
        *((f"ViT-B-16-SigLIP-{s}", "B", 16, s, english) for s in (256, 384, 512)),
        ("ViT-B-16-SigLIP-i18n-256", "B", 16, 256, world),
        *((f"ViT-L-16-SigLIP-{s}", "L", 16, s, english) for s in (256, 384)),
        ("ViT-SO400M-14-SigLIP", "SO400M", 14, 224, english | {"context_length": 16}),
        *((f"ViT-SO400M-14-SigLIP-{s}", "SO400M", 14, s, english) for s in (378, 384)),
        (
            "ViT-SO400M-16-SigLIP-i18n-256",
            "SO400M",
            16,
            256,
            world | {"text_projection": "none"},
        ),
    ]
    for name, size, patch, pixels, more in table:
        yield _siglip_row(name, patch, _shape("vision", size), _shape("text", size), pixels, **more)


def _siglip2() -> Iterator[Row]:
    """SigLIP 2 (Tschannen et al. 2025) at fixed resolution: Gemma's vocabulary."""
    gemma: Row = {"vocab_size": 256_000, "eos_id": 1, "pad_id": 0}
    table = [
        ("ViT-B-32-SigLIP2-256", "B", 32, 256),
        ("ViT-B-16-SigLIP2", "B", 16, 224),
        *((f"ViT-B-16-SigLIP2-{s}", "B", 16, s) for s in (256, 384, 512)),
        *((f"ViT-L-16-SigLIP2-{s}", "L", 16, s) for s in (256, 384, 512)),
        ("ViT-SO400M-14-SigLIP2", "SO400M", 14, 224),
        ("ViT-SO400M-14-SigLIP2-378", "SO400M", 14, 378),
        *((f"ViT-SO400M-16-SigLIP2-{s}", "SO400M", 16, s) for s in (256, 384, 512)),
        *((f"ViT-gopt-16-SigLIP2-{s}", "gopt", 16, s) for s in (256, 384)),
    ]
    for name, size, patch, pixels in table:
        text = _shape("text", "SO400M" if size == "gopt" else size)
        yield _siglip_row(name, patch, _shape("vision", size), text, pixels, **gemma)


def _eva02() -> Iterator[Row]:
    """EVA-02-CLIP (Sun et al. 2023): rotary positions, SwiGLU, LayerNorm inside attention."""
    eva: Row = {
        "vision_patch_bias": True,
        "vision_pre_norm": False,
        "vision_key_bias": False,
        "vision_projection": "linear_bias",
        "vision_norm_eps": 1e-6,
        "vision_init": "normal",
    }
    rotary: Row = eva | {"vision_rope": "yx", "vision_mlp": "swiglu", "vision_inner_norm": True}
    base = _vit("EVA02-B-16", 16, VIT_B, **_text(512), **rotary) | {"vision_mlp_dim": 2048}
    large: Row = _vit("EVA02-L-14", 14, VIT_L, **_text(768), **rotary) | {"vision_mlp_dim": 2730}
    yield from (base, large, large | {"name": "EVA02-L-14-336", "image_size": 336})
    plain: Row = {**eva, "vision_block_norm": "branch", "vision_mlp_dim": 15360}
    yield _vit("EVA02-E-14", 14, (1792, 64, 16), **_text(1024, 24)) | plain
    yield _vit("EVA02-E-14-plus", 14, (1792, 64, 16), **_text(1280, 32, embed=1024)) | plain


def _perception_encoder() -> Iterator[Row]:
    """Perception Encoder (Bolya et al. 2025): rotary positions, attention pooling."""

    def row(name: str, patch: int, size: int, shape: tuple[int, int, int], text: Row) -> Row:
        pe: Row = {
            "image_size": size,
            "vision_pool": "attention",
            "vision_pool_mlp_dim": 4 * shape[0],
            "vision_projection": "linear_bias",
            "vision_rope": "xy",
            "vision_rope_grid": size // patch,
            "vision_rope_offset": 1.0,
            "vision_init": "normal",
            "context_length": 32,
            "image_mean": HALF,
            "image_std": HALF,
            "image_resize": "squash",
            "image_interpolation": "bilinear",
        }
        return _vit(name, patch, shape, **text, **pe)

    yield row("PE-Core-T-16-384", 16, 384, (192, 12, 3), _text(512))
    yield row("PE-Core-S-16-384", 16, 384, VIT_S, _text(512))
    yield row("PE-Core-B-16", 16, 224, VIT_B, _text(1024, 24))
    yield row("PE-Core-L-14-336", 14, 336, VIT_L, _text(1024, 24))
    big: Row = row("PE-Core-bigG-14-448", 14, 448, (1536, 50, 16), _text(1280, 24))
    big |= {"vision_mlp_dim": 8960, "vision_class_token": False, "vision_rope_offset": 0.0}
    yield big | {"context_length": 72}


def _coca() -> Iterator[Row]:
    """CoCa (Yu et al. 2022) as LAION trained it: one pooler of 256 queries, the paper has two."""
    coca: Row = {"context_length": 76, "text_pool": "appended", "decoder_layers": 12}
    pooled: Row = coca | {"vision_pool": "queries"}
    yield _vit("coca_ViT-B-32", 32, VIT_B, **_text(512), **pooled)
    yield _vit("coca_ViT-L-14", 14, VIT_L, **_text(768), **pooled, decoder_heads=12)
    words: Row = {"vocab_size": 64_000, "decoder_vocab_size": 64_000, "decoder_heads": 12}
    yield _vit("coca_base", 18, VIT_B, image_size=288, **_text(768, embed=512), **coca, **words)


def _hugging_face_text() -> Iterator[Row]:
    """RoBERTa and XLM-RoBERTa text towers of LAION: mean over real tokens, two-layer projection."""
    roberta: Row = {
        "text_kind": "bert",
        "text_pool": "mean",
        "text_projection": "mlp",
        "text_causal": False,
        "text_init": "normal",
        "text_positions": 514,
        "text_position_offset": 2,
        "pad_id": 1,
        "eos_id": 2,
    }
    words: Row = {"vocab_size": 250_002}
    base = _text(768, embed=512)
    yield (
        _vit("roberta-ViT-B-32", 32, VIT_B, **base, **roberta, vocab_size=50_265)
        | {"vision_activation": "quick_gelu"}
    )
    captions: Row = roberta | {"text_projection": "linear", "decoder_layers": 12}
    yield _vit("coca_roberta-ViT-B-32", 32, VIT_B, **base, **captions, vocab_size=50_265)
    yield _vit("xlm-roberta-base-ViT-B-32", 32, VIT_B, **base, **roberta, **words)
    yield _vit("xlm-roberta-large-ViT-H-14", 14, VIT_H, **_text(1024, 24), **roberta, **words)


def _quick(row: Row) -> Row:
    """Returns the twin of a row that computes x·sigmoid(1.702 x)."""
    quick = {"vision_activation": "quick_gelu", "text_activation": "quick_gelu"}
    return row | quick | {"name": f"{row['name']}-quickgelu"}


def _rows() -> Iterator[Row]:
    for row in (*_OPENAI, *_OPEN_CLIP_QUICK_TWINS):
        yield from (row, _quick(row))
    yield from _OPEN_CLIP
    families = (_clipa, _worldwide, _siglip, _siglip2, _eva02, _perception_encoder)
    for family in (*families, _hugging_face_text, _coca, convnext, vitamin, mobileclip):
        yield from family()


ARCHITECTURES: dict[str, ClipConfig] = {
    row["name"]: override(ClipConfig(), **row) for row in _rows()
}


def list_models() -> tuple[str, ...]:
    """Returns the names that `create` and `get_architecture` take."""
    return tuple(ARCHITECTURES)


def get_architecture(name: str, **overrides: Any) -> ClipConfig:
    """Returns the row called `name` with fields changed.

    Raises `UserError`, with the nearest known names, for an unknown one.
    """
    if not isinstance(name, str):
        raise UserError(f"model {shown(name)}: must be a name of clip_jax.list_models()")
    if name == "custom":
        return override(ClipConfig(), **overrides)
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UserError(f"unknown model {name!r}{hint} (clip_jax.list_models() has all names)")
    return override(ARCHITECTURES[name], **overrides)


# _NEVER are fields that do not change what a model computes; those of _ONLY_IF do in some models.
_NEVER = (
    *("name", "dtype", "scan_layers", "remat", "batch_norm", "naflex", "text_positions"),
    *("vision_init", "text_init", "logit_scale_init", "logit_bias_init", "vision_norm_eps"),
    *("image_mean", "image_std", "image_resize", "image_interpolation", "image_fill"),
)
_ONLY_IF: dict[str, Callable[[ClipConfig], bool]] = {
    "pad_id": lambda c: c.text_kind == "bert" or c.text_pool == "appended",
    "eos_id": lambda c: c.text_pool == "eos",
    "text_class_mask": lambda c: c.text_pool == "appended",
    "vision_activation": lambda c: c.vision_kind != "resnet",
    "text_causal": lambda c: c.text_kind == "transformer",
    "vision_pool_heads": lambda c: c.vision_pool in ("attention", "queries"),
    "vision_pool_mlp_dim": lambda c: c.vision_pool == "attention",
    "vision_pool_queries": lambda c: c.vision_pool == "queries",
    "vision_post_norm": lambda c: c.vision_pool == "average",
    "vision_rope_grid": lambda c: c.vision_rope != "none",
    "vision_rope_offset": lambda c: c.vision_rope != "none",
    "decoder_heads": lambda c: c.decoder_layers > 0,
    "decoder_vocab_size": lambda c: c.decoder_layers > 0,
    **dict.fromkeys(("patch_size", "vision_mlp_dim"), lambda c: c.vision_kind == "vit"),
}


def _function(config: ClipConfig) -> tuple[Any, ...]:
    """Comparison key of a configuration: equal keys compute the same function."""
    if config.text_pool == "eos" and config.eos_id == config.vocab_size - 1:
        config = dataclasses.replace(config, text_pool="argmax")  # picks the same token
    fields = dataclasses.asdict(config)
    used = {
        name: value
        for name, value in fields.items()
        if name not in _NEVER and (name not in _ONLY_IF or _ONLY_IF[name](config))
    }
    derived = config.vision_eps, config.position_rows, config.logit_bias_init is not None
    return (*sorted(used.items()), *derived)


def same_function(config: ClipConfig) -> str:
    """Returns the name of the row that computes the same function as `config`, or "custom"."""
    wanted = _function(config)
    return next((n for n, row in ARCHITECTURES.items() if _function(row) == wanted), "custom")
