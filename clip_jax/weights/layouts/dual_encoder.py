"""Hugging Face's `VisionTextDualEncoderModel`: any image model beside any text model, projected.

Image towers: CLIP's, and the plain ViT with its pooler; text towers: BERT, RoBERTa, XLM-RoBERTa,
read through their poolers.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.kinds import BertConfig, VitConfig
from clip_jax.weights.layouts.bert import bert_rules
from clip_jax.weights.layouts.huggingface import BLOCK
from clip_jax.weights.layouts.huggingface_config import Section
from clip_jax.weights.rules.table import Rule, affine, attention, blocks, linear

IGNORED = re.compile(r"\.embeddings\.(position_ids|token_type_ids)$")
# transformers' defaults for keys that config.json leaves out.
_TOWER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_TOWER |= {"intermediate_size": 3072}
_VISION = _TOWER | {"image_size": 224, "num_channels": 3}
_VISION_DEFAULTS = {
    "clip_vision_model": _VISION
    | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "vit": _VISION | {"patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
}
_TEXT = _TOWER | {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512}
_TEXT_DEFAULTS = {
    "bert": _TEXT | {"vocab_size": 30522, "type_vocab_size": 2, "pad_token_id": 0},
    "roberta": _TEXT | {"vocab_size": 50265, "type_vocab_size": 2, "pad_token_id": 1},
    "xlm-roberta": _TEXT | {"vocab_size": 30522, "type_vocab_size": 2, "pad_token_id": 1},
}


def _section(
    document: Mapping[str, Any], name: str, defaults: Mapping[str, dict[str, Any]]
) -> Section:
    values = document.get(name)
    kind = values.get("model_type") if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in defaults:
        raise UserError(
            f"config.json: {name}.model_type={kind!r}; accepted are {', '.join(defaults)}"
        )
    assert isinstance(values, Mapping)
    return Section(name, {k: v for k, v in values.items() if v is not None}, defaults[kind])


def _vision_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    vision = _section(document, "vision_config", _VISION_DEFAULTS)
    width, plain = vision.count("hidden_size"), vision.values["model_type"] == "vit"
    only = {"num_channels": 3, "qkv_bias": True, "pooler_act": "tanh", "pooler_output_size": width}
    _only(vision, only)
    tower = {
        **vision.tower(),
        "patch_size": vision.side("patch_size"),
        "norm_eps": vision.number("layer_norm_eps"),
    }
    size = vision.side("image_size")
    if not plain:
        return {"image_size": size, "vision": VitConfig(**tower)}
    return {
        "image_size": size,
        "vision": VitConfig(**tower, pre_norm=False, patch_bias=True, pooler=True),
        "image_resize": "squash",
        "image_interpolation": "bilinear",
        "image_mean": (0.5,) * 3,
        "image_std": (0.5,) * 3,
    }


def _text_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    text = _section(document, "text_config", _TEXT_DEFAULTS)
    _only(text, {"position_embedding_type": "absolute", "is_decoder": False})
    pad_id, rows = text.count("pad_token_id", lowest=0), text.count("max_position_embeddings")
    counted = text.values["model_type"] != "bert"  # RoBERTa counts real tokens, after pad_token_id
    offset = pad_id + 1 if counted else 0
    tower = BertConfig(
        **text.tower(),
        pool="pooler",
        pad_id=pad_id,
        positions=rows,
        position_offset=offset,
        token_types=text.count("type_vocab_size"),
    )
    return {
        "text": tower,
        "context_length": rows - offset,
        "vocab_size": text.count("vocab_size"),
        "norm_eps": text.number("layer_norm_eps"),
    }


def _only(section: Section, accepted: Mapping[str, Any]) -> None:
    """Raises `UserError` for a present key with another value."""
    for key, value in accepted.items():
        if section.values.get(key, value) != value:
            raise section.refuse(key, repr(value))


def config_from_dual_encoder(document: Mapping[str, Any]) -> ClipConfig:
    """The content of config.json -> our configuration.

    Raises `UserError` naming a key whose value is not supported.
    """
    top = {"projection_dim": 512, "logit_scale_init_value": 2.6592}
    model = Section("vision-text-dual-encoder", document, top)
    return override(
        ClipConfig(),
        embed_dim=model.count("projection_dim"),
        logit_scale_init=model.number("logit_scale_init_value"),
        **_vision_fields(document),
        **_text_fields(document),
    )


def _clip_vision(theirs: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}embeddings.class_embedding", "vision/class_token")
    yield Rule(
        f"{theirs}embeddings.patch_embedding.weight", "vision/patch_embedding", "convolution"
    )
    yield Rule(
        f"{theirs}embeddings.position_embedding.weight", "vision/positions", resize="grid", prefix=1
    )
    yield from affine(f"{theirs}pre_layrnorm", "vision/pre_norm")  # their spelling
    yield from affine(f"{theirs}post_layernorm", "vision/post_norm")


def _plain_vision(theirs: str) -> Iterator[Rule]:
    patches = f"{theirs}embeddings.patch_embeddings.projection"
    yield Rule(f"{theirs}embeddings.cls_token", "vision/class_token", "two_more_axes")
    yield Rule(f"{patches}.weight", "vision/patch_embedding", "convolution")
    yield Rule(f"{patches}.bias", "vision/patch_embedding_bias")
    positions = Rule(f"{theirs}embeddings.position_embeddings", "vision/positions", "one_more_axis")
    yield positions._replace(resize="grid", prefix=1)
    yield from affine(f"{theirs}layernorm", "vision/post_norm")
    yield from linear(f"{theirs}pooler.dense", "vision/pooler")


def _plain_block(old: bool) -> Iterator[Rule]:
    """Rules of a `ViTModel` block; `old` means the names before transformers 5."""
    names, query = ("query", "key", "value"), "attention.attention.{}"
    if not old:
        names, query = ("q", "k", "v"), "attention.{}_proj"
    out = "attention.output.dense" if old else "attention.o_proj"
    widen, narrow = ("intermediate.dense", "output.dense") if old else ("mlp.fc1", "mlp.fc2")
    yield from attention([query.format(name) for name in names], out)
    yield from affine("layernorm_before", "attention_norm")
    yield from affine("layernorm_after", "mlp_norm")
    yield from linear(widen, "mlp/in")
    yield from linear(narrow, "mlp/out")


def dual_encoder_rules(config: ClipConfig, names: Collection[str]) -> list[Rule]:
    """The full table of one model; the file's `names` tell which version wrote it."""
    nested = any(name.startswith("vision_model.vision_model.") for name in names)
    theirs = "vision_model.vision_model." if nested else "vision_model."
    old = any(".attention.attention." in name for name in names)
    layers = "encoder.layer.{}." if old else "layers.{}."
    vision = config.vision
    assert isinstance(vision, VitConfig)
    block = _plain_block(old) if vision.pooler else BLOCK
    layers = layers if vision.pooler else "encoder.layers.{}."
    return [
        Rule("logit_scale", "logit_scale"),
        Rule("visual_projection.weight", "vision/projection", "matrix"),
        Rule("text_projection.weight", "text/projection", "matrix"),
        *(_plain_vision(theirs) if vision.pooler else _clip_vision(theirs)),
        *blocks(block, theirs + layers, "vision/transformer", vision.layers, config.scan_layers),
        *bert_rules(config, "text_model."),
    ]
