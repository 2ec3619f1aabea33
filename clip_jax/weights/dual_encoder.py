"""Hugging Face's `VisionTextDualEncoderModel`: any image model beside any text model, projected.

Image towers: CLIP's, and the plain ViT with its pooler; text towers: BERT, RoBERTa, XLM-RoBERTa,
read through their poolers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, override
from clip_jax.weights.bert import bert_rules
from clip_jax.weights.huggingface import BLOCK
from clip_jax.weights.table import Rule, affine, blocks, linear

IGNORED = re.compile(r"\.embeddings\.(position_ids|token_type_ids)$")
VISION_TYPES = ("clip_vision_model", "vit")
TEXT_TYPES = ("bert", "roberta", "xlm-roberta")
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}

# What transformers takes for a key that config.json leaves out.
_TOWER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_TOWER |= {"intermediate_size": 3072}
_VISION = _TOWER | {"image_size": 224, "num_channels": 3, "qkv_bias": True}
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


def _section(document: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    section = document.get(name)
    kind = section.get("model_type") if isinstance(section, Mapping) else None
    if not isinstance(kind, str) or kind not in defaults:
        raise UserError(
            f"config.json: {name}.model_type={kind!r}; accepted are {', '.join(defaults)}"
        )
    assert isinstance(section, Mapping)
    values = {**defaults[kind], **{key: v for key, v in section.items() if v is not None}}
    if values["hidden_act"] not in ACTIVATIONS:
        raise UserError(
            f"config.json: {name}.hidden_act={values['hidden_act']!r}; accepted are "
            + ", ".join(ACTIVATIONS)
        )
    return values


def config_from_dual_encoder(document: Mapping[str, Any]) -> ClipConfig:
    """The content of config.json -> our configuration.

    Raises `UserError` naming a key whose value we cannot honour.
    """
    vision = _section(document, "vision_config", _VISION_DEFAULTS)
    text = _section(document, "text_config", _TEXT_DEFAULTS)
    plain = vision["model_type"] == "vit"
    if vision["num_channels"] != 3 or not vision["qkv_bias"]:
        raise UserError("config.json: vision_config: accepted are num_channels=3, qkv_bias=true")
    if text.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            "config.json: text_config.position_embedding_type="
            f"{text['position_embedding_type']!r}; accepted is 'absolute'"
        )
    counted = text["model_type"] != "bert"  # RoBERTa counts real tokens, from pad_token_id + 1
    offset = text["pad_token_id"] + 1 if counted else 0
    rows = text["max_position_embeddings"]
    return override(
        ClipConfig(),
        embed_dim=document.get("projection_dim", 512),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision_width=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        vision_mlp_dim=vision["intermediate_size"],
        vision_activation=ACTIVATIONS[vision["hidden_act"]],
        vision_norm_eps=vision["layer_norm_eps"],
        vision_pre_norm=not plain,
        vision_patch_bias=plain,
        vision_pooler=plain,
        text_kind="bert",
        context_length=rows - offset,
        text_positions=rows,
        text_position_offset=offset,
        pad_id=text["pad_token_id"],
        vocab_size=text["vocab_size"],
        text_width=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_mlp_dim=text["intermediate_size"],
        text_activation=ACTIVATIONS[text["hidden_act"]],
        text_token_types=text["type_vocab_size"],
        text_causal=False,
        text_pool="pooler",
        text_init="normal",
        norm_eps=text["layer_norm_eps"],
        logit_scale_init=document.get("logit_scale_init_value", 2.6592),
        image_resize="squash" if plain else "shortest",
        image_interpolation="bilinear" if plain else "bicubic",
        **({"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3} if plain else {}),
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
    """A block of `ViTModel`; `old` are the names before transformers 5."""
    query = "attention.attention.{}" if old else "attention.{}_proj"
    out = "attention.output.dense" if old else "attention.o_proj"
    widen, narrow = ("intermediate.dense", "output.dense") if old else ("mlp.fc1", "mlp.fc2")
    for index, name in enumerate(("query", "key", "value") if old else ("q", "k", "v")):
        theirs, ours = query.format(name), "attention/query_key_value"
        yield Rule(f"{theirs}.weight", ours, "into_heads", (slice(None), index))
        yield Rule(f"{theirs}.bias", f"{ours}_bias", "flat", (index,))
    yield Rule(f"{out}.weight", "attention/out", "out_of_heads")
    yield Rule(f"{out}.bias", "attention/out_bias")
    yield from affine("layernorm_before", "attention_norm")
    yield from affine("layernorm_after", "mlp_norm")
    yield from linear(widen, "mlp/in")
    yield from linear(narrow, "mlp/out")


def dual_encoder_rules(config: ClipConfig, names: Collection[str]) -> list[Rule]:
    """The whole table of one model; `names` are the file's, which tell its age."""
    nested = any(name.startswith("vision_model.vision_model.") for name in names)
    theirs = "vision_model.vision_model." if nested else "vision_model."
    old = any(".attention.attention." in name for name in names)
    layers = "encoder.layer.{}." if old else "layers.{}."
    block = _plain_block(old) if config.vision_pooler else BLOCK
    layers = layers if config.vision_pooler else "encoder.layers.{}."
    assert isinstance(config.vision_layers, int)
    return [
        Rule("logit_scale", "logit_scale"),
        Rule("visual_projection.weight", "vision/projection", "matrix"),
        Rule("text_projection.weight", "text/projection", "matrix"),
        *(_plain_vision(theirs) if config.vision_pooler else _clip_vision(theirs)),
        *blocks(
            block, theirs + layers, "vision/transformer", config.vision_layers, config.scan_layers
        ),
        *bert_rules(config, "text_model."),
    ]
