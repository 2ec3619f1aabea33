"""Table of architectures: one frozen row per name.

Names and sizes are those of the released models (CLIP paper, tables 19 and 20; open_clip's
configurations for the others). A plain name computes the exact GELU; its `-quickgelu` twin
computes x·sigmoid(1.702 x), with which OpenAI trained. Both have the same parameter shapes, so a
wrong choice loads without an error.
"""

import dataclasses
import difflib
import functools
from collections.abc import Iterator
from typing import Any

from clip_jax.arguments import shown
from clip_jax.errors import UserError
from clip_jax.models.architectures_timm import convnext, mobileclip, vitamin
from clip_jax.models.config import ClipConfig, effective_fields, override
from clip_jax.models.fields import FUNCTION
from clip_jax.models.kinds import (
    BertConfig,
    DecoderConfig,
    ResNetConfig,
    TransformerTextConfig,
    VitConfig,
)
from clip_jax.models.rows import Shape, row, text, vit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
LN_10 = 2.3025851  # the logit scale that SigLIP starts from, as a logarithm

VIT_B, VIT_L, VIT_H = (768, 12, 12), (1024, 24, 16), (1280, 32, 16)
VIT_S, VIT_M, VIT_B_PLUS = (384, 12, 6), (512, 12, 8), (896, 12, 14)
# The MLP widths of g, bigG and e are those of their papers.
VIT_G, VIT_BIGG, VIT_E = (1408, 40, 16, 6144), (1664, 48, 16, 8192), (1792, 56, 16, 15360)


def _resnet(
    name: str, width: int, layers: tuple[int, ...], size: int, embed: int, text_width: int
) -> ClipConfig:
    """Row of a ModifiedResNet tower (paper section 2.4) with OpenAI's text tower."""
    tower = ResNetConfig(width, layers, heads=width * 32 // 64)
    return row(name, tower, text(text_width), embed_dim=embed, image_size=size)


_OPENAI = (
    _resnet("RN50", 64, (3, 4, 6, 3), 224, 1024, 512),
    _resnet("RN101", 64, (3, 4, 23, 3), 224, 512, 512),
    _resnet("RN50x4", 80, (4, 6, 10, 6), 288, 640, 640),
    _resnet("RN50x16", 96, (6, 8, 18, 8), 384, 768, 768),
    _resnet("RN50x64", 128, (3, 15, 36, 10), 448, 1024, 1024),
    row("ViT-B-32", vit(32, VIT_B), text(512)),
    row("ViT-B-16", vit(16, VIT_B), text(512)),
    row("ViT-L-14", vit(14, VIT_L), text(768)),
    row("ViT-L-14-336", vit(14, VIT_L), text(768), image_size=336),
)

# These are the models of LAION, DataComp, DFN and MetaCLIP.
_OPEN_CLIP_QUICK_TWINS = (
    row("ViT-H-14", vit(14, VIT_H), text(1024, 24)),
    row("ViT-H-14-378", vit(14, VIT_H), text(1024, 24), image_size=378, image_resize="squash"),
    row("ViT-bigG-14", vit(14, VIT_BIGG), text(1280, 32)),
)
_OPEN_CLIP = (
    row("ViT-S-32", vit(32, VIT_S), text(384)),
    row("ViT-S-32-alt", vit(32, VIT_S), text(256, 10)),
    row("ViT-S-16", vit(16, VIT_S), text(384)),
    row("ViT-S-16-alt", vit(16, VIT_S), text(256, 10)),
    row("ViT-M-32", vit(32, VIT_M), text(512)),
    row("ViT-M-32-alt", vit(32, VIT_M), text(384)),
    row("ViT-M-16", vit(16, VIT_M), text(512)),
    row("ViT-M-16-alt", vit(16, VIT_M, layer_scale=1e-4), text(384)),
    row("ViT-B-32-256", vit(32, VIT_B), text(512), image_size=256),
    row("ViT-B-32-plus-256", vit(32, VIT_B_PLUS), text(640), image_size=256),
    row("ViT-B-16-plus", vit(16, VIT_B_PLUS), text(640)),
    row("ViT-B-16-plus-240", vit(16, VIT_B_PLUS), text(640), image_size=240),
    row("ViT-L-16", vit(16, VIT_L), text(768)),
    row("ViT-L-16-320", vit(16, VIT_L), text(768), image_size=320),
    row("ViT-L-14-280", vit(14, VIT_L), text(768), image_size=280),
    row("ViT-H-16", vit(16, VIT_H), text(1024, 24)),
    row("ViT-g-14", vit(14, VIT_G), text(1024, 24)),
    row("ViT-e-14", vit(14, VIT_E), text(1280, 36)),
)


def _clipa() -> Iterator[ClipConfig]:
    """CLIPA (Li et al. 2023): average-pooled, then normed patches; text read at the last token."""
    average: Any = {"pre_norm": False, "pool": "average", "post_norm": "after_pool"}
    shared: Any = {
        "context_length": 32,
        "vocab_size": 32_000,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "image_resize": "squash",
        "image_interpolation": "bilinear",
    }
    sizes = (("L", VIT_L, (768, 12)), ("H", VIT_H, (1024, 24)), ("bigG", VIT_BIGG, (1280, 32)))
    for pixels in (224, 336):
        suffix = "-CLIPA" if pixels == 224 else f"-CLIPA-{pixels}"
        for size, shape, words in sizes:
            tower = text(*words, causal=False, pool="last")
            vision = vit(14, shape, **average)
            yield row(f"ViT-{size}-14{suffix}", vision, tower, image_size=pixels, **shared)


def _worldwide() -> Iterator[ClipConfig]:
    """MetaCLIP 2 (2025): multilingual vocabularies; text read at the first end of text."""

    def xlm_v(width: int, layers: int) -> TransformerTextConfig:
        return text(width, layers, pool="eos", eos_id=2, pad_id=1)

    mt5 = text(768, pool="eos", eos_id=1)
    at_378: Any = {"image_size": 378, "image_resize": "squash"}
    large = row("ViT-L-14-worldwide", vit(14, VIT_L), mt5, vocab_size=250_100)
    huge = row("ViT-H-14-worldwide", vit(14, VIT_H), xlm_v(1024, 24), vocab_size=901_629)
    big = row("ViT-bigG-14-worldwide", vit(14, VIT_BIGG), xlm_v(1280, 32), vocab_size=901_629)
    yield from (large, _quick(large), huge, _quick(huge))
    yield dataclasses.replace(huge, name="ViT-H-14-worldwide-378", **at_378)
    yield big
    yield dataclasses.replace(big, name="ViT-bigG-14-worldwide-378", **at_378)


# width, layers, heads, width of the MLP; one shape serves both towers
_SIGLIP_SHAPES = {
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "SO400M": (1152, 27, 16, 4304),
    "gopt": (1536, 40, 16, 6144),
}


def _siglip_row(
    name: str, size: str, patch: int, pixels: int, vocab: int, pad_id: int, **shared: Any
) -> ClipConfig:
    """SigLIP (Zhai et al. 2023): attention-pooled patches, bidirectional text, sigmoid loss."""
    width, layers, heads, mlp_dim = _SIGLIP_SHAPES["SO400M" if size == "gopt" else size]
    vision = vit(
        patch,
        _SIGLIP_SHAPES[size],
        class_token=False,
        patch_bias=True,
        pre_norm=False,
        pool="attention",
        pool_heads=_SIGLIP_SHAPES[size][2],
        pool_mlp_dim=_SIGLIP_SHAPES[size][3],
        projection="none",
        activation="gelu_tanh",
        init="big_vision",
    )
    words = TransformerTextConfig(
        width,
        layers,
        heads,
        mlp_dim,
        causal=False,
        pool="last",
        eos_id=1,
        pad_id=pad_id,
        projection="none" if size == "SO400M" and vocab == 250_000 else "linear_bias",
        activation="gelu_tanh",
        init="big_vision",
    )
    fields: dict[str, Any] = {
        "embed_dim": vision.width,
        "image_size": pixels,
        "context_length": 64,
        "vocab_size": vocab,
        "norm_eps": 1e-6,
        "logit_scale_init": LN_10,
        "logit_bias_init": -10.0,
        "image_mean": HALF,
        "image_std": HALF,
        "image_resize": "squash",
    }
    return row(name, vision, words, **(fields | shared))


def _siglip() -> Iterator[ClipConfig]:
    """SigLIP; i18n rows have the multilingual vocabulary."""
    english, world = 32_000, 250_000
    table = [
        ("ViT-B-16-SigLIP", "B", 16, 224, english),
        *((f"ViT-B-16-SigLIP-{s}", "B", 16, s, english) for s in (256, 384, 512)),
        ("ViT-B-16-SigLIP-i18n-256", "B", 16, 256, world),
        *((f"ViT-L-16-SigLIP-{s}", "L", 16, s, english) for s in (256, 384)),
        ("ViT-SO400M-14-SigLIP", "SO400M", 14, 224, english),
        *((f"ViT-SO400M-14-SigLIP-{s}", "SO400M", 14, s, english) for s in (378, 384)),
        ("ViT-SO400M-16-SigLIP-i18n-256", "SO400M", 16, 256, world),
    ]
    for name, size, patch, pixels, vocab in table:
        short: dict[str, Any] = {"context_length": 16} if name == "ViT-SO400M-14-SigLIP" else {}
        yield _siglip_row(name, size, patch, pixels, vocab, 1, **short)


def _siglip2() -> Iterator[ClipConfig]:
    """SigLIP 2 (Tschannen et al. 2025) at fixed resolution: Gemma's vocabulary."""
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
    for entry in table:
        yield _siglip_row(*entry, vocab=256_000, pad_id=0)


def _eva02() -> Iterator[ClipConfig]:
    """EVA-02-CLIP (Sun et al. 2023): rotary positions, SwiGLU, LayerNorm inside attention."""
    eva: Any = {
        "patch_bias": True,
        "pre_norm": False,
        "key_bias": False,
        "projection": "linear_bias",
        "norm_eps": 1e-6,
        "init": "normal",
    }
    rotary: Any = eva | {"rope": "yx", "mlp": "swiglu", "inner_norm": True}
    yield row("EVA02-B-16", vit(16, (*VIT_B, 2048), **rotary), text(512))
    large = row("EVA02-L-14", vit(14, (*VIT_L, 2730), **rotary), text(768))
    yield from (large, dataclasses.replace(large, name="EVA02-L-14-336", image_size=336))
    enormous = vit(14, (1792, 64, 16, 15360), block_norm="branch", **eva)
    yield row("EVA02-E-14", enormous, text(1024, 24))
    yield row("EVA02-E-14-plus", enormous, text(1280, 32), embed_dim=1024)


def _perception_encoder() -> Iterator[ClipConfig]:
    """Perception Encoder (Bolya et al. 2025): rotary positions, attention pooling."""

    def pe(
        name: str, patch: int, size: int, shape: Shape, words: TransformerTextConfig, **more: Any
    ) -> ClipConfig:
        fields: dict[str, Any] = {
            "pool": "attention",
            "pool_mlp_dim": 4 * shape[0],
            "projection": "linear_bias",
            "rope": "xy",
            "rope_grid": size // patch,
            "rope_offset": 1.0,
            "init": "normal",
        }
        return row(
            f"PE-Core-{name}",
            vit(patch, shape, **(fields | more)),
            words,
            image_size=size,
            context_length=72 if "bigG" in name else 32,
            image_mean=HALF,
            image_std=HALF,
            image_resize="squash",
            image_interpolation="bilinear",
        )

    yield pe("T-16-384", 16, 384, (192, 12, 3), text(512))
    yield pe("S-16-384", 16, 384, VIT_S, text(512))
    yield pe("B-16", 16, 224, VIT_B, text(1024, 24))
    yield pe("L-14-336", 14, 336, VIT_L, text(1024, 24))
    shape, words = (1536, 50, 16, 8960), text(1280, 24)
    yield pe("bigG-14-448", 14, 448, shape, words, class_token=False, rope_offset=0.0)


def _coca() -> Iterator[ClipConfig]:
    """CoCa (Yu et al. 2022) as LAION trained it: one pooler of 256 queries, the paper has two."""

    def coca(
        name: str, vision: VitConfig, width: int, heads: int, vocab: int = 49_408, **shared: Any
    ) -> ClipConfig:
        decoder = DecoderConfig(12, heads, vocab)
        words = text(width, pool="appended")
        sizes: dict[str, Any] = {"context_length": 76, "vocab_size": vocab, **shared}
        return row(name, vision, words, decoder=decoder, **sizes)

    yield coca("coca_ViT-B-32", vit(32, VIT_B, pool="queries"), 512, 8)
    yield coca("coca_ViT-L-14", vit(14, VIT_L, pool="queries"), 768, 12)
    yield coca("coca_base", vit(18, VIT_B), 768, 12, 64_000, embed_dim=512, image_size=288)


def _hugging_face_text() -> Iterator[ClipConfig]:
    """RoBERTa and XLM-RoBERTa text towers of LAION: mean over real tokens, two-layer projection."""
    base = BertConfig(pad_id=1, positions=514, position_offset=2, projection="mlp")
    large = dataclasses.replace(base, width=1024, layers=24, heads=16, mlp_dim=4096)
    linear = dataclasses.replace(base, projection="linear")
    quick = vit(32, VIT_B, activation="quick_gelu")
    decoder = DecoderConfig(12)
    yield row("roberta-ViT-B-32", quick, base, embed_dim=512, vocab_size=50_265)
    yield row(
        "coca_roberta-ViT-B-32",
        vit(32, VIT_B),
        linear,
        embed_dim=512,
        vocab_size=50_265,
        decoder=decoder,
    )
    vocab = 250_002
    yield row("xlm-roberta-base-ViT-B-32", vit(32, VIT_B), base, embed_dim=512, vocab_size=vocab)
    yield row("xlm-roberta-large-ViT-H-14", vit(14, VIT_H), large, vocab_size=vocab)


def _quick(plain: ClipConfig) -> ClipConfig:
    """Returns the twin of a row that computes x·sigmoid(1.702 x)."""
    vision, words = plain.vision, dataclasses.replace(plain.text, activation="quick_gelu")
    if isinstance(vision, VitConfig):
        vision = dataclasses.replace(vision, activation="quick_gelu")
    return dataclasses.replace(plain, name=f"{plain.name}-quickgelu", vision=vision, text=words)


def _rows() -> Iterator[ClipConfig]:
    for plain in (*_OPENAI, *_OPEN_CLIP_QUICK_TWINS):
        yield from (plain, _quick(plain))
    yield from _OPEN_CLIP
    families = (_clipa, _worldwide, _siglip, _siglip2, _eva02, _perception_encoder)
    for family in (*families, _hugging_face_text, _coca, convnext, vitamin, mobileclip):
        yield from family()


ARCHITECTURES: dict[str, ClipConfig] = {config.name: config for config in _rows()}


def list_models() -> tuple[str, ...]:
    """Returns the names that `create` and `get_architecture` take."""
    return tuple(ARCHITECTURES)


def get_architecture(name: str, **overrides: Any) -> ClipConfig:
    """Returns the row called `name` with fields changed, as `override` changes them.

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


@functools.cache
def _function(config: ClipConfig) -> dict[str, Any]:
    """The fields that decide what a model computes."""
    text = config.text
    at_the_end = isinstance(text, TransformerTextConfig) and text.eos_id == config.vocab_size - 1
    if text.pool == "eos" and at_the_end:  # picks the same token
        config = dataclasses.replace(config, text=dataclasses.replace(text, pool="argmax"))
    return effective_fields(config, FUNCTION)


def same_function(config: ClipConfig) -> str:
    """Returns the name of the row that computes the same function as `config`, or "custom"."""
    wanted = _function(config)
    return next((n for n, row in ARCHITECTURES.items() if _function(row) == wanted), "custom")
