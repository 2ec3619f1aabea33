"""`ClipConfig` -> `open_clip_config.json`."""

from collections.abc import Iterator
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.config import ClipConfig
from clip_jax.weights.layouts.open_clip import has_custom_text, has_timm_tower
from clip_jax.weights.layouts.open_clip_config import HF_TEXT, ROBERTA, TIMM_TOWERS
from clip_jax.weights.rules.preprocessing import to_open_clip

# Fields of the image tower that a timm name does not fix.
_FREE_VISION = ("vision_projection", "image_size")


def config_to_open_clip(config: ClipConfig) -> dict[str, Any]:
    """Our configuration -> the content of `open_clip_config.json`.

    Raises `UserError` if open_clip has no such model.
    """
    document: dict[str, Any] = {"embed_dim": config.embed_dim}
    if _quick_gelu(config):
        document["quick_gelu"] = True
    if has_custom_text(config):
        document["custom_text"] = True
    if config.logit_bias_init is not None:
        document["init_logit_bias"] = config.logit_bias_init
    document["init_logit_scale"] = config.logit_scale_init
    document["vision_cfg"] = dict(_write_vision(config))
    document["text_cfg"] = dict(_write_text(config))
    if config.decoder_layers:
        document["multimodal_cfg"] = {
            "context_length": config.context_length,
            "vocab_size": config.decoder_vocab_size,
            "width": config.text_width,
            "heads": config.decoder_heads,
            "layers": config.decoder_layers,
            "attn_pooler_heads": config.vision_pool_heads,
        }
    whole = {"model_cfg": document, "preprocess_cfg": to_open_clip(_image_fields(config))}
    if has_timm_tower(config):  # open_clip has no keys for these, and ignores ours
        names = ("vision_activation", "text_activation")
        whole["clip_jax"] = {name: getattr(config, name) for name in names}
    return whole


def _quick_gelu(config: ClipConfig) -> bool:
    """open_clip's one switch for all its own towers; raises `UserError` if the towers differ."""
    switched = {}
    if config.vision_kind == "vit" and not has_timm_tower(config):
        switched["vision_activation"] = config.vision_activation
    if config.text_kind == "transformer":
        switched["text_activation"] = config.text_activation
    quick = [value == "quick_gelu" for value in switched.values()]
    if any(quick) and not all(quick):
        both = ", ".join(f"{name}={value!r}" for name, value in switched.items())
        raise UserError(
            f"format='open_clip': {both}: it has quick GELU in both towers or in neither; "
            "write clip_jax or huggingface"
        )
    return any(quick)


def _image_fields(config: ClipConfig) -> dict[str, Any]:
    names = "image_size image_mean image_std image_resize image_interpolation image_fill"
    return {name: getattr(config, name) for name in names.split()}


def _ratio(mlp_dim: int, width: int) -> float:
    """A ratio for which open_clip's int(width * ratio) is `mlp_dim` exactly."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width


def _write_vision(config: ClipConfig) -> Iterator[tuple[str, Any]]:
    yield "image_size", config.image_size
    if has_timm_tower(config):
        name, row = _timm_name(config)
        yield "timm_model_name", name
        yield "timm_model_pretrained", False
        pools = {"attention": "map", "class_token": "token", "average": ""}
        stages = {"convnext": "", "fastvit": "avg"}
        yield "timm_pool", stages.get(row.vision_kind, pools[row.vision_pool])
        projections = {"linear": "linear", "mlp_bias": "mlp", "none": "none", "linear_bias": None}
        yield "timm_proj", projections[config.vision_projection]
        return
    yield "width", config.vision_width
    yield "layers", config.vision_layers
    if config.vision_kind == "resnet":
        yield "head_width", config.vision_width * 32 // config.vision_heads
        return
    yield "head_width", config.vision_width // config.vision_heads
    yield "patch_size", config.patch_size
    yield "mlp_ratio", _ratio(config.vision_mlp_dim, config.vision_width)
    if not config.vision_pre_norm:
        yield "no_ln_pre", True
    if config.vision_pool == "average":
        yield "pool_type", "avg"
    if config.vision_post_norm == "after_pool":
        yield "final_ln_after_pool", True
    if config.vision_layer_scale is not None:
        yield "ls_init_value", config.vision_layer_scale
    if config.vision_pool == "queries":
        yield "attentional_pool", True
        yield "attn_pooler_queries", config.vision_pool_queries
        yield "attn_pooler_heads", config.vision_pool_heads
    if config.decoder_layers:
        yield "output_tokens", True
    yield from _write_kwargs(config.vision_activation, config.vision_eps)


def _write_kwargs(activation: str, eps: float) -> Iterator[tuple[str, Any]]:
    if eps != 1e-5:
        yield "norm_kwargs", {"eps": eps}
    if activation == "gelu_tanh":
        yield "act_kwargs", {"approximate": "tanh"}


def _timm_name(config: ClipConfig) -> tuple[str, ClipConfig]:
    """timm's name of an image tower, preferably of this image size."""

    def tower(row: ClipConfig) -> dict[str, Any]:
        fields = row.to_dict() | {"vision_norm_eps": row.vision_eps}
        keys = [k for k in fields if k.startswith("vision_") and k not in _FREE_VISION]
        # SigLIP's activation differs in open_clip whatever is written.
        return {k: fields[k] for k in keys if k != "vision_activation"}

    wanted = tower(config), config.patch_size
    found = [
        (name, ARCHITECTURES[row_name])
        for name, row_name in TIMM_TOWERS.items()
        if (tower(ARCHITECTURES[row_name]), ARCHITECTURES[row_name].patch_size) == wanted
    ]
    # timm's Transformers have one name per image size.
    sized = [pair for pair in found if pair[1].image_size == config.image_size]
    if config.vision_kind in ("convnext", "fastvit"):  # convolutional: one name for all sizes
        sized = sized or found
    if not sized:
        raise UserError(
            f"format='open_clip': timm has no image tower like that of {config.name} at "
            f"image_size={config.image_size}; write clip_jax or huggingface"
        )
    return sized[0]


def _check_bert(config: ClipConfig) -> None:
    """Raises `UserError` if the tower differs from the published one of its name."""
    published = {**ROBERTA, "norm_eps": 1e-5, "text_token_types": 1, "text_activation": "gelu"}
    for name, value in published.items():
        if name != "eos_id" and getattr(config, name) != value:
            raise UserError(
                f"format='open_clip': {name}={getattr(config, name)!r}: its text towers are known "
                f"by name, with {name}={value!r}; write clip_jax"
            )


def _write_text(config: ClipConfig) -> Iterator[tuple[str, Any]]:
    if config.text_kind == "bert":
        shape = (
            *(config.text_width, config.text_layers, config.text_heads, config.text_mlp_dim),
            config.vocab_size,
        )
        names = [name for name, known in HF_TEXT.items() if known == shape]
        if not names:
            raise UserError(
                "format='open_clip': its Hugging Face text towers are known by name only "
                f"({', '.join(HF_TEXT)}); this one has other sizes; write clip_jax"
            )
        _check_bert(config)
        poolers = {"mean": "mean_pooler", "pooler": "cls_pooler"}
        yield "hf_model_name", names[0]
        yield "hf_tokenizer_name", names[0]
        yield "hf_model_pretrained", False
        yield "hf_pooler_type", poolers.get(config.text_pool, "cls_last_hidden_state_pooler")
        yield "context_length", config.context_length
        projected = config.text_projection != "none"  # null: equal widths, no projection
        yield "hf_proj_type", config.text_projection if projected else None
        if config.decoder_layers:
            yield "output_tokens", True
        return
    yield "context_length", config.context_length
    yield "vocab_size", config.vocab_size
    yield "width", config.text_width
    yield "heads", config.text_heads
    yield "layers", config.text_layers
    yield "mlp_ratio", _ratio(config.text_mlp_dim, config.text_width)
    if not config.text_causal:
        yield "no_causal_mask", True
    if config.text_pool == "appended":
        yield "embed_cls", True
        yield "output_tokens", True
        if config.text_class_mask == "aligned":
            yield "correct_cls_mask", True
    elif config.text_pool != "argmax":
        yield "pool_type", config.text_pool
    if config.text_pool == "eos":
        yield "eos_id", config.eos_id
    if config.pad_id:
        yield "pad_id", config.pad_id
    if config.text_projection == "linear_bias":
        yield "proj_bias", True
    elif config.text_projection == "none":
        yield "proj_type", "none"
    yield from _write_kwargs(config.text_activation, config.norm_eps)
