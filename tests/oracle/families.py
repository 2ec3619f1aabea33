"""The families of the parity suite: which reference, how it is made smaller, what is asked of it.

Plain data, read on both sides: by references.py in the environment of the references, and by
tests/weights/test_parity_families.py in ours. Widths are the released ones; there are fewer blocks
and a smaller vocabulary, so that a model has tens of millions of parameters instead of billions.
"""

import dataclasses
from typing import Any

VOCABULARY = 1000
END_LAST = (-2, -1, 0)  # OpenAI's: the end of text is the last id of the vocabulary
BERT_TOKENS, ROBERTA_TOKENS = (101, 102, 0), (0, 2, 1)
SIGLIP_TOKENS = (None, 1, 1)


@dataclasses.dataclass(frozen=True)
class Family:
    """One row of the table."""

    name: str
    layout: str  # "open_clip", "openai", "clip", "metaclip_2", "siglip", "siglip2" or "dual"
    like: str = ""  # open_clip's name of the full-size model
    edits: dict[str, Any] = dataclasses.field(default_factory=dict)  # of its configuration
    timm: dict[str, Any] = dataclasses.field(default_factory=dict)  # what timm is given beside
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)  # that load needs
    names: str = ""  # pattern of the names of ours that this row stands for
    formats: tuple[str, ...] = ("open_clip",)  # that the model is exported to
    tokens: tuple[int | None, int, int] = END_LAST  # start, end, padding; None: no start
    loss: str = "softmax"
    batch: int = 4
    gradients: bool = False
    training: bool = False
    captions: bool = False
    full_depth: bool = False


BOTH = ("open_clip", "huggingface")


def _native(
    name: str, names: str, vision: Any = 2, text: int = 2, vocab: int = VOCABULARY, **more: Any
) -> Family:
    """A model whose towers are open_clip's own."""
    edits = {
        "vision_cfg.layers": vision,
        "text_cfg.layers": text,
        "text_cfg.vocab_size": vocab,
        **more.pop("edits", {}),
    }
    return Family(name, "open_clip", more.pop("like", name), edits, names=names, **more)


def _timm(name: str, names: str, depth: dict[str, Any], text: int = 2, **more: Any) -> Family:
    """A model whose image tower is timm's: its depth is no part of open_clip's configuration."""
    edits = {
        "text_cfg.layers": text,
        "text_cfg.vocab_size": VOCABULARY,
        **more.pop("edits", {}),
    }
    layers = next(iter(depth.values()))
    overrides = {"vision__layers": layers, **more.pop("overrides", {})}
    like = more.pop("like", name)
    return Family(name, "open_clip", like, edits, depth, overrides, names, **more)


def _openai_layers(layers: Any) -> dict[str, Any]:
    return {"vision_cfg.layers": layers, "text_cfg.layers": 3}


OPENAI = (
    Family(
        "OpenAI RN50 (.pt)", "openai", "RN50-quickgelu", full_depth=True, names="RN50-quickgelu"
    ),
    Family(
        "OpenAI ViT-B-32 (.pt)",
        "openai",
        "ViT-B-32-quickgelu",
        _openai_layers(3),
        names=r"ViT-B-(32|16)-quickgelu",
    ),
    Family(
        "OpenAI ViT-L-14-336 (.pt)",
        "openai",
        "ViT-L-14-336-quickgelu",
        _openai_layers(2),
        names=r"ViT-L-14(-336)?-quickgelu",
    ),
)
FULL = {"full_depth": True, "gradients": True, "batch": 8}
NATIVE = (
    Family("RN50", "open_clip", "RN50", names="RN50", **FULL),
    _native("RN101", r"RN101(-quickgelu)?", [2, 2, 3, 2]),
    _native("RN50x4", r"RN50x(4|16|64)(-quickgelu)?", [1, 2, 2, 1]),
    Family("ViT-B-32", "open_clip", "ViT-B-32", names="ViT-B-32", formats=BOTH, **FULL),
    _native("ViT-B-32, two blocks", "", like="ViT-B-32", training=True, formats=BOTH),
    _native(
        "ViT-B-16-plus-240",
        r"ViT-(B-32-256|B-32-plus-256|B-16|B-16-plus(-240)?|[SM]-(16|32)|[SM]-32-alt|S-16-alt)",
        formats=BOTH,
    ),
    _native("ViT-M-16-alt", "ViT-M-16-alt"),
    _native("ViT-L-14-336", r"ViT-L-(14|16)(-280|-320|-336)?", formats=BOTH),
    _native("ViT-H-14-quickgelu", r"ViT-H-1[46](-378)?(-quickgelu)?", formats=BOTH),
    _native("ViT-g-14", "ViT-g-14", formats=BOTH),
    _native("ViT-bigG-14", r"ViT-bigG-14(-quickgelu)?", formats=BOTH),
    _native("ViT-e-14", "ViT-e-14", 1, 1, formats=BOTH),
    _native("ViT-L-14-CLIPA", r"ViT-.*-CLIPA(-336)?", tokens=BERT_TOKENS),
    _native(
        "ViT-H-14-worldwide-quickgelu",
        r"ViT-(H|bigG)-14-worldwide.*",
        tokens=ROBERTA_TOKENS,
        formats=BOTH,
    ),
    _native("ViT-L-14-worldwide", r"ViT-L-14-worldwide.*", tokens=(None, 1, 0), formats=BOTH),
)

# Several of timm's SigLIP towers, and open_clip's text towers beside the first SigLIP, compute the
# exact GELU; the weights were trained with tanh, which `load` takes unless told otherwise.
EXACT = {"vision__activation": "gelu"}
EXACT_TEXT = {"text__activation": "gelu"}
EXACT_BOTH = {**EXACT, **EXACT_TEXT}
SIGMOID: dict[str, Any] = {"loss": "sigmoid", "tokens": SIGLIP_TOKENS}
TWO = {"depth": 2}
# No names: the rows of the same towers through transformers have them.
SIGLIP_OPEN_CLIP = (
    _timm("ViT-B-16-SigLIP", "", TWO, overrides=EXACT_BOTH, **SIGMOID),
    _timm("ViT-SO400M-14-SigLIP-384", "", TWO, overrides=EXACT_BOTH, **SIGMOID),
    _timm("ViT-SO400M-16-SigLIP-i18n-256", "", TWO, overrides=EXACT_TEXT, **SIGMOID),
    _timm("ViT-B-16-SigLIP2", "", TWO, overrides=EXACT, **SIGMOID),
    _timm("ViT-gopt-16-SigLIP2-256", "", TWO, **SIGMOID),
)


def _siglip(layout: str, name: str, names: str, text: Any, vision: Any, **more: Any) -> Family:
    """A SigLIP of transformers; shapes are (width, heads, width of the MLP)."""
    keys = ("hidden_size", "num_attention_heads", "intermediate_size")
    common = {"num_hidden_layers": 2}
    edits = {
        "text_config": dict(zip(keys, text, strict=True)) | common | more.pop("text_config", {}),
        "vision_config": dict(zip(keys, vision, strict=True)) | common | more.pop("image"),
    }
    edits["text_config"] |= {"vocab_size": VOCABULARY, "projection_size": vision[0]}
    formats = more.pop("formats", ("huggingface",))
    return Family(name, layout, edits=edits, names=names, formats=formats, **SIGMOID, **more)


B, L, SO = (768, 12, 3072), (1024, 16, 4096), (1152, 16, 4304)
GOPT = (1536, 16, 6144)


def _square(image: int, patch: int) -> dict[str, int]:
    return {"image_size": image, "patch_size": patch}


SIGLIP = (
    _siglip("siglip", "SigLIP B/16", r"ViT-B-(16|32)-SigLIP.*", B, B, image=_square(224, 16)),
    _siglip("siglip", "SigLIP L/16", r"ViT-L-16-SigLIP.*", L, L, image=_square(256, 16)),
    _siglip(
        "siglip",
        "SigLIP SO400M/14 at 384",
        r"ViT-SO400M-1[46]-SigLIP.*",
        SO,
        SO,
        image=_square(384, 14),
    ),
    _siglip(
        "siglip", "SigLIP 2 gopt/16", r"ViT-gopt-16-SigLIP2-.*", SO, GOPT, image=_square(256, 16)
    ),
    _siglip(
        "siglip2",
        "SigLIP 2 B/16 naflex",
        "",
        B,
        B,
        image={"num_patches": 256, "patch_size": 16},
    ),
)


def _clip(layout: str, name: str, act: str, end: int, tokens: Any, **more: Any) -> Family:
    shared = {"num_hidden_layers": 2, "hidden_act": act}
    vision = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    text = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    edits = {
        "text_config": {**text, **shared, "vocab_size": VOCABULARY, "eos_token_id": end},
        "vision_config": {**vision, **shared, "patch_size": 32},
        "projection_dim": 512,
    }
    return Family(name, layout, edits=edits, tokens=tokens, formats=BOTH, **more)


HUGGING_FACE = (
    _clip("clip", "CLIPModel, largest id", "quick_gelu", 2, END_LAST),
    _clip("clip", "CLIPModel, first end of text", "gelu", VOCABULARY - 1, END_LAST),
    _clip("metaclip_2", "MetaClip2Model", "gelu", 2, ROBERTA_TOKENS),
)


def _dual(name: str, text: dict[str, Any], tokens: Any, vision: str, **more: Any) -> Family:
    shape = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    tower = {"num_hidden_layers": 2, **shape}
    edits = {
        "text_config": {**tower, "vocab_size": VOCABULARY, **text},
        "vision_config": {"model_type": vision, **tower, "patch_size": 32},
        "projection_dim": 512,
    }
    return Family(name, "dual", edits=edits, tokens=tokens, formats=(), **more)


ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
DUAL = (
    _dual("VisionTextDualEncoder, ViT and BERT", {"model_type": "bert"}, BERT_TOKENS, "vit"),
    _dual(
        "VisionTextDualEncoder, CLIP and RoBERTa",
        {"model_type": "roberta", **ROBERTA, "layer_norm_eps": 1e-5},
        ROBERTA_TOKENS,
        "clip_vision_model",
    ),
)


def _hf_text(name: str, names: str, **more: Any) -> Family:
    """A text tower of transformers in an open_clip model; `text_cfg` cannot say its depth."""
    overrides = {"text__layers": 2, "vocab_size": VOCABULARY}
    edits = {"vision_cfg.layers": 2, **more.pop("edits", {})}
    return Family(
        name,
        "open_clip",
        more.pop("like", name),
        edits,
        names=names,
        overrides=overrides,
        tokens=ROBERTA_TOKENS,
        **more,
    )


HF_TEXT = (
    _hf_text("roberta-ViT-B-32", "roberta-ViT-B-32"),
    _hf_text("xlm-roberta-base-ViT-B-32", "xlm-roberta-base-ViT-B-32"),
    _hf_text("xlm-roberta-large-ViT-H-14", "xlm-roberta-large-ViT-H-14"),
    _hf_text(
        "roberta, CLS pooling, linear projection",
        "",
        like="roberta-ViT-B-32",
        edits={"text_cfg.hf_pooler_type": "cls_pooler", "text_cfg.hf_proj_type": "linear"},
    ),
)

_SMALL_DECODER = {"multimodal_cfg.layers": 2, "multimodal_cfg.vocab_size": VOCABULARY}
COCA = (
    *(
        _native(name, name, edits=_SMALL_DECODER, captions=True)
        for name in ("coca_ViT-B-32", "coca_ViT-L-14", "coca_base")
    ),
    _hf_text("coca_roberta-ViT-B-32", "coca_roberta-ViT-B-32", edits=_SMALL_DECODER),
)
CONVNEXT = (
    _timm(
        "convnext_base",
        r"convnext_(tiny|small|base(_w|_w_320)?|large|xlarge)",
        {"depths": (1, 2, 3, 2)},
    ),
    _timm("convnext_large_d", r"convnext_large_d(_320)?", {"depths": (1, 1, 2, 1)}),
    _timm("convnext_xxlarge", r"convnext_xxlarge(_320)?", {"depths": (1, 1, 2, 1)}),
)
EVA02 = (
    _timm("EVA02-B-16", "EVA02-B-16", TWO),
    _timm("EVA02-L-14-336", r"EVA02-L-14(-336)?", TWO),
    _timm("EVA02-E-14", r"EVA02-E-14(-plus)?", {"depth": 1}),
)
PE = (
    _timm("PE-Core-B-16", r"PE-Core-[BST]-16(-384)?", TWO),
    _timm("PE-Core-L-14-336", r"PE-Core-L-14-336", TWO),
    _timm("PE-Core-bigG-14-448", "PE-Core-bigG-14-448", TWO),
)
MOBILE = (
    _timm("ViTamin-L-256", r"ViTamin-([SBL]|L2).*", TWO),
    _timm("ViTamin-XL-256", r"ViTamin-XL-.*", TWO),
    _timm("MobileCLIP-B", r"MobileCLIP2?-B", TWO),
    _timm("MobileCLIP-S2", r"MobileCLIP2?-S[0-2]", {"layers": (1, 2, 2, 1)}),
    _timm("MobileCLIP2-S3", r"MobileCLIP2-S[34]", {"layers": (1, 2, 2, 1, 1)}),
    _timm("MobileCLIP2-L-14", "MobileCLIP2-L-14", TWO),
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for group in (
        *(OPENAI, NATIVE, HUGGING_FACE, SIGLIP, SIGLIP_OPEN_CLIP, HF_TEXT, DUAL, COCA),
        *(CONVNEXT, EVA02, PE, MOBILE),
    )
    for family in group
}
