"""`ClipConfig` -> `open_clip_config.json`."""

from collections.abc import Iterator
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.config import ClipConfig, effective_fields, image_fields
from clip_jax.models.kinds import (
    BertConfig,
    ConvNextConfig,
    FastVitConfig,
    HybridConfig,
    ResNetConfig,
    TransformerTextConfig,
    VitConfig,
    norm_eps,
)
from clip_jax.weights.layouts.open_clip import has_custom_text
from clip_jax.weights.layouts.open_clip_config import HF_TEXT, ROBERTA, TIMM_TOWERS
from clip_jax.weights.layouts.timm import has_timm_tower
from clip_jax.weights.rules.preprocessing import to_open_clip


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
    if config.decoder is not None:
        document["multimodal_cfg"] = {
            "context_length": config.context_length,
            "vocab_size": config.decoder.vocab_size,
            "width": config.text.width,
            "heads": config.decoder.heads,
            "layers": config.decoder.layers,
            "attn_pooler_heads": getattr(config.vision, "pool_heads", 8),
        }
    whole = {"model_cfg": document, "preprocess_cfg": to_open_clip(image_fields(config))}
    if has_timm_tower(config.vision):  # open_clip has no keys for these, and ignores ours
        whole["clip_jax"] = {
            f"{name}_activation": getattr(config, name).activation for name in ("vision", "text")
        }
    return whole


def _quick_gelu(config: ClipConfig) -> bool:
    """open_clip's one switch for all its own towers; raises `UserError` if the towers differ."""
    switched = {}
    if isinstance(config.vision, VitConfig) and not has_timm_tower(config.vision):
        switched["vision.activation"] = config.vision.activation
    if isinstance(config.text, TransformerTextConfig):
        switched["text.activation"] = config.text.activation
    quick = [value == "quick_gelu" for value in switched.values()]
    if any(quick) and not all(quick):
        both = ", ".join(f"{name}={value!r}" for name, value in switched.items())
        raise UserError(
            f"format='open_clip': {both}: it has quick GELU in both towers or in neither; "
            "write clip_jax or huggingface"
        )
    return any(quick)


def _ratio(mlp_dim: int, width: int) -> float:
    """A ratio for which open_clip's int(width * ratio) is `mlp_dim` exactly."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width


def _write_vision(config: ClipConfig) -> Iterator[tuple[str, Any]]:
    yield "image_size", config.image_size
    tower = config.vision
    if isinstance(tower, ResNetConfig):
        yield "width", tower.width
        yield "layers", tower.layers
        yield "head_width", tower.width * 32 // tower.heads
        return
    if not isinstance(tower, VitConfig) or has_timm_tower(tower):
        yield "timm_model_name", _timm_name(config)
        yield "timm_model_pretrained", False
        pools = {"attention": "map", "class_token": "token", "average": ""}
        if isinstance(tower, VitConfig | HybridConfig):
            yield "timm_pool", pools[tower.pool]
        else:
            yield "timm_pool", "avg" if isinstance(tower, FastVitConfig) else ""
        projections = {"linear": "linear", "mlp_bias": "mlp", "none": "none", "linear_bias": None}
        yield "timm_proj", projections[tower.projection]
        return
    yield "width", tower.width
    yield "layers", tower.layers
    yield "head_width", tower.width // tower.heads
    yield "patch_size", tower.patch_size
    yield "mlp_ratio", _ratio(tower.mlp_dim, tower.width)
    if not tower.pre_norm:
        yield "no_ln_pre", True
    if tower.pool == "average":
        yield "pool_type", "avg"
    if tower.post_norm == "after_pool":
        yield "final_ln_after_pool", True
    if tower.layer_scale is not None:
        yield "ls_init_value", tower.layer_scale
    if tower.pool == "queries":
        yield "attentional_pool", True
        yield "attn_pooler_queries", tower.pool_queries
        yield "attn_pooler_heads", tower.pool_heads
    if config.decoder is not None:
        yield "output_tokens", True
    yield from _write_kwargs(tower.activation, norm_eps(tower, config))


def _write_kwargs(activation: str, eps: float) -> Iterator[tuple[str, Any]]:
    if eps != 1e-5:
        yield "norm_kwargs", {"eps": eps}
    if activation == "gelu_tanh":
        yield "act_kwargs", {"approximate": "tanh"}


def _timm_name(config: ClipConfig) -> str:
    """timm's name of an image tower, preferably of this image size."""

    def tower(row: ClipConfig) -> dict[str, Any]:
        # A name does not fix the projection; SigLIP's activation differs in open_clip whatever is
        # written.
        free = ("vision.projection", "vision.activation")
        fields = effective_fields(row, ("shape", "function"))
        return {k: v for k, v in fields.items() if k.startswith("vision.") and k not in free}

    found = {
        name: ARCHITECTURES[row_name].image_size
        for name, row_name in TIMM_TOWERS.items()
        if tower(ARCHITECTURES[row_name]) == tower(config)
    }
    # timm's Transformers have one name per image size.
    sized = [name for name, size in found.items() if size == config.image_size]
    if isinstance(config.vision, ConvNextConfig | FastVitConfig):  # one name for all sizes
        sized = sized or list(found)
    if not sized:
        raise UserError(
            f"format='open_clip': timm has no image tower like that of {config.name} at "
            f"image_size={config.image_size}; write clip_jax or huggingface"
        )
    return sized[0]


def _check_bert(config: ClipConfig) -> None:
    """Raises `UserError` if the tower differs from the published one of its name."""
    found = {f"text.{name}": value for name, value in vars(config.text).items()}
    found["norm_eps"] = config.norm_eps
    published: dict[str, Any] = {f"text.{name}": value for name, value in ROBERTA.items()}
    published |= {"norm_eps": 1e-5, "text.token_types": 1, "text.activation": "gelu"}
    for name, value in published.items():
        if found[name] != value:
            raise UserError(
                f"format='open_clip': {name}={found[name]!r}: its text towers are known by name, "
                f"with {name}={value!r}; write clip_jax"
            )


def _write_text(config: ClipConfig) -> Iterator[tuple[str, Any]]:
    tower = config.text
    if isinstance(tower, BertConfig):
        shape = (tower.width, tower.layers, tower.heads, tower.mlp_dim, config.vocab_size)
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
        yield "hf_pooler_type", poolers.get(tower.pool, "cls_last_hidden_state_pooler")
        yield "context_length", config.context_length
        projected = tower.projection != "none"  # null: equal widths, no projection
        yield "hf_proj_type", tower.projection if projected else None
        if config.decoder is not None:
            yield "output_tokens", True
        return
    yield "context_length", config.context_length
    yield "vocab_size", config.vocab_size
    yield "width", tower.width
    yield "heads", tower.heads
    yield "layers", tower.layers
    yield "mlp_ratio", _ratio(tower.mlp_dim, tower.width)
    if not tower.causal:
        yield "no_causal_mask", True
    if tower.pool == "appended":
        yield "embed_cls", True
        yield "output_tokens", True
        if tower.class_mask == "aligned":
            yield "correct_cls_mask", True
    elif tower.pool != "argmax":
        yield "pool_type", tower.pool
    if tower.pool == "eos":
        yield "eos_id", tower.eos_id
    if tower.pad_id:
        yield "pad_id", tower.pad_id
    if tower.projection == "linear_bias":
        yield "proj_bias", True
    elif tower.projection == "none":
        yield "proj_type", "none"
    yield from _write_kwargs(tower.activation, config.norm_eps)
