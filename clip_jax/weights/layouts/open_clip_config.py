"""`open_clip_config.json` -> `ClipConfig`; `open_clip_export.py` is the other direction.

An unsupported key that changes the function raises an error; keys that do not change it (dropout,
pretrained flags) are ignored.
"""

import math
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.kinds import norm_eps
from clip_jax.weights.rules.preprocessing import from_open_clip

# timm's name of an image tower -> one of our rows with that tower. Every row's tower is listed,
# up to its image size.
TIMM_TOWERS = {
    **{f"vit_base_patch16_siglip_{s}": f"ViT-B-16-SigLIP2-{s}" for s in (256, 384, 512)},
    "vit_base_patch16_siglip_224": "ViT-B-16-SigLIP2",
    "vit_base_patch32_siglip_256": "ViT-B-32-SigLIP2-256",
    **{f"vit_large_patch16_siglip_{s}": f"ViT-L-16-SigLIP2-{s}" for s in (256, 384, 512)},
    "vit_so400m_patch14_siglip_224": "ViT-SO400M-14-SigLIP2",
    "vit_so400m_patch14_siglip_378": "ViT-SO400M-14-SigLIP2-378",
    "vit_so400m_patch14_siglip_384": "ViT-SO400M-14-SigLIP-384",
    **{f"vit_so400m_patch16_siglip_{s}": f"ViT-SO400M-16-SigLIP2-{s}" for s in (256, 384, 512)},
    **{f"vit_giantopt_patch16_siglip_{s}": f"ViT-gopt-16-SigLIP2-{s}" for s in (256, 384)},
    "eva02_base_patch16_clip_224": "EVA02-B-16",
    "eva02_large_patch14_clip_224": "EVA02-L-14",
    "eva02_large_patch14_clip_336": "EVA02-L-14-336",
    "eva02_enormous_patch14_clip_224": "EVA02-E-14",
    "vit_pe_core_tiny_patch16_384": "PE-Core-T-16-384",
    "vit_pe_core_small_patch16_384": "PE-Core-S-16-384",
    "vit_pe_core_base_patch16_224": "PE-Core-B-16",
    "vit_pe_core_large_patch14_336": "PE-Core-L-14-336",
    "vit_pe_core_gigantic_patch14_448": "PE-Core-bigG-14-448",
    "vit_large_patch14_clip_224": "MobileCLIP2-L-14",
    "vit_base_mci_224": "MobileCLIP-B",
    **{f"fastvit_mci{n}": f"MobileCLIP2-S{n}" for n in (0, 2, 3, 4)},
    "fastvit_mci1": "MobileCLIP-S1",
    **{f"vitamin_{s}_224": f"ViTamin-{n}" for s, n in (("small", "S"), ("base", "B"))},
    "vitamin_large_224": "ViTamin-L",
    "vitamin_large2_224": "ViTamin-L2",
    **{f"vitamin_large_{s}": f"ViTamin-L-{s}" for s in (256, 336, 384)},
    **{f"vitamin_large2_{s}": f"ViTamin-L2-{s}" for s in (256, 336, 384)},
    **{f"vitamin_xlarge_{s}": f"ViTamin-XL-{s}" for s in (256, 336, 384)},
    **{f"convnext_{s}": f"convnext_{s}" for s in ("tiny", "small", "base", "large", "xlarge")},
    "convnext_xxlarge": "convnext_xxlarge",
}

_UNSUPPORTED_BLOCKS = (
    *("block_type", "qk_norm", "scaled_cosine_attn"),
    *("scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
)
_IGNORED = {
    "vision_cfg": "patch_dropout output_tokens timm_model_pretrained timm_drop timm_drop_path "
    "patch_dropout_exclude_first_token",
    "text_cfg": "output_tokens hf_tokenizer_name tokenizer_mode tokenizer_kwargs "
    "hf_model_pretrained final_ln_after_pool",
    "multimodal_cfg": "context_length vocab_size dim_head n_queries attn_pooler_heads",
    "model_cfg": "custom_text nonscalar_logit_scale nonscalar_logit_bias",
}


# Types accepted for a default of each type; sizes and depths may be lists.
_LIKE: dict[type, tuple[type, ...]] = {
    int: (int, float, list),
    float: (int, float),
    dict: (dict,),
}


class _Section(dict[str, Any]):
    """A section of the configuration whose keys are consumed one by one; the rest are refused."""

    def __init__(self, name: str, values: Any):
        if not isinstance(values, Mapping):
            raise UserError(f"open_clip_config.json: {name}={values!r}: must be an object")
        super().__init__(values)
        self.name = name

    def take(self, key: str, default: Any = None) -> Any:
        """Pops a value; null means the default. Raises `UserError` for a wrong type."""
        value = self.pop(key, default)
        if value is None:
            return default
        if type(default) in (int, float, dict) and not isinstance(value, _LIKE[type(default)]):
            raise UserError(
                f"open_clip_config.json: {self.name}.{key}={value!r}: must be "
                + ("an object" if isinstance(default, dict) else "a number")
            )
        return value

    def close(self) -> None:
        ignored = _IGNORED.get(self.name, "").split()
        for key, value in self.items():
            if key not in ignored and value not in (None, False, 0, 0.0, "", {}):
                raise UserError(
                    f"open_clip_config.json: {self.name}.{key}={value!r} is not supported"
                )


def _norm_and_activation(cfg: _Section, quick_gelu: bool) -> tuple[str, float]:
    norm, act = cfg.take("norm_kwargs", {}), cfg.take("act_kwargs", {})
    activation = "gelu_tanh" if act.get("approximate") == "tanh" else "gelu"
    return "quick_gelu" if quick_gelu else activation, float(norm.get("eps", 1e-5))


def _native_vision(cfg: _Section, quick_gelu: bool) -> tuple[int, dict[str, Any]]:
    """Pixels of the images, and the tower's fields."""
    layers, width = cfg.take("layers", 12), cfg.take("width", 768)
    size, head_width = cfg.take("image_size", 224), cfg.take("head_width", 64)
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise UserError(f"open_clip_config.json: image_size={size}: only squares are supported")
        size = size[0]
    activation, eps = _norm_and_activation(cfg, quick_gelu)
    if isinstance(layers, list | tuple):
        heads = width * 32 // head_width
        for key in ("patch_size", "mlp_ratio"):
            cfg.take(key)
        return size, {"kind": "resnet", "width": width, "layers": layers, "heads": heads}
    positions, pool = cfg.take("pos_embed_type", "learnable"), cfg.take("pool_type", "tok")
    if positions not in ("learnable", "sin_cos_2d") or pool not in ("tok", "avg"):
        raise UserError(
            f"open_clip_config.json: pos_embed_type={positions!r}, pool_type={pool!r}: supported "
            "are learnable or sin_cos_2d, and tok or avg"
        )
    queries = cfg.take("attentional_pool", False)
    if isinstance(queries, str):
        raise UserError(
            f"open_clip_config.json: attentional_pool={queries!r} is not supported; true is"
        )
    after = bool(cfg.take("final_ln_after_pool", False))
    return size, {
        "width": width,
        "norm_eps": eps,
        "patch_size": cfg.take("patch_size", 16),
        "layers": layers,
        "heads": width // head_width,
        "mlp_dim": int(width * cfg.take("mlp_ratio", 4.0)),
        "pre_norm": not cfg.take("no_ln_pre", False),
        "pool": "queries" if queries else {"tok": "class_token", "avg": "average"}[pool],
        "post_norm": "after_pool" if after and not queries else "before_pool",
        "pool_queries": cfg.take("attn_pooler_queries", 256),
        "pool_heads": cfg.take("attn_pooler_heads", 8),
        "layer_scale": cfg.take("ls_init_value"),
        "activation": activation,
    }


def _timm_vision(cfg: _Section) -> tuple[int, dict[str, Any]]:
    name = str(cfg.take("timm_model_name")).split(".")[0]
    if name not in TIMM_TOWERS:
        raise UserError(
            f"open_clip_config.json: timm_model_name={name!r} is not supported; supported are "
            + ", ".join(sorted(TIMM_TOWERS))
        )
    row = ARCHITECTURES[TIMM_TOWERS[name]]
    fields = row.to_dict()["vision"] | {"norm_eps": norm_eps(row.vision, row)}
    # The projection follows the trunk; otherwise the trunk has a head (a Linear with a bias).
    projection, bias = cfg.take("timm_proj", "trunk"), cfg.take("timm_proj_bias", False)
    kinds = {"linear": "linear", "mlp": "mlp_bias", "none": "none", "trunk": "linear_bias"}
    if projection not in kinds or (bias and projection != "linear"):
        raise UserError(
            f"open_clip_config.json: timm_proj={projection!r} with timm_proj_bias={bias} "
            "is not supported"
        )
    fields["projection"] = "linear_bias" if bias else kinds[projection]
    cfg.take("timm_pool")  # fixed by the tower
    return cfg.take("image_size", row.image_size), fields


def _native_text(cfg: _Section, quick_gelu: bool, siglip: bool) -> dict[str, Any]:
    """The fields of a model that text_cfg decides."""
    width, pool = cfg.take("width", 512), cfg.take("pool_type", "argmax")
    activation, eps = _norm_and_activation(cfg, quick_gelu)
    embed_class = cfg.take("embed_cls", False)
    if pool not in ("argmax", "eos", "last"):
        raise UserError(
            f"open_clip_config.json: text pool_type={pool!r} is not supported; argmax, eos and "
            "last are"
        )
    projection = "linear_bias" if cfg.take("proj_bias", False) else "linear"
    if cfg.take("proj_type", "linear") == "none":
        projection = "none"
    if cfg.take("ls_init_value") is not None:
        raise UserError("open_clip_config.json: text_cfg.ls_init_value is not supported")
    return {
        "context_length": cfg.take("context_length", 77),
        "vocab_size": cfg.take("vocab_size", 49408),
        "norm_eps": eps,
        "text": {
            "width": width,
            "heads": cfg.take("heads", 8),
            "layers": cfg.take("layers", 12),
            "mlp_dim": int(width * cfg.take("mlp_ratio", 4.0)),
            "causal": not cfg.take("no_causal_mask", False),
            "pool": "appended" if embed_class else pool,
            "eos_id": cfg.take("eos_id", 2) if pool == "eos" else (1 if siglip else 49407),
            "pad_id": cfg.take("pad_id", 0),
            "class_mask": "aligned" if cfg.take("correct_cls_mask", False) else "shifted",
            "projection": projection,
            # SigLIP's released weights were trained with tanh; open_clip computes the exact GELU.
            "activation": "gelu_tanh" if siglip else activation,
        },
    }


ROBERTA = {"positions": 514, "position_offset": 2, "pad_id": 1}
# Hugging Face text tower -> its width, layers, heads, MLP size and vocabulary.
HF_TEXT = {
    "roberta-base": (768, 12, 12, 3072, 50_265),
    "xlm-roberta-base": (768, 12, 12, 3072, 250_002),
    "xlm-roberta-large": (1024, 24, 16, 4096, 250_002),
}


def _hugging_face_text(cfg: _Section) -> dict[str, Any]:
    name = str(cfg.take("hf_model_name")).removeprefix("FacebookAI/")
    if name not in HF_TEXT:
        raise UserError(
            f"open_clip_config.json: hf_model_name={name!r} is not supported; supported are "
            + ", ".join(HF_TEXT)
        )
    last_hidden = "cls_last_hidden_state_pooler"
    poolers = {"mean_pooler": "mean", "cls_pooler": "pooler", last_hidden: "first"}
    # open_clip's default is an MLP; a key that is present but empty means equal widths.
    empty = "hf_proj_type" in cfg and not cfg["hf_proj_type"]
    pooler, projection = cfg.take("hf_pooler_type", "mean_pooler"), cfg.take("hf_proj_type", "mlp")
    projection = "none" if empty else projection
    if pooler not in poolers or projection not in ("mlp", "linear", "none"):
        raise UserError(
            f"open_clip_config.json: hf_pooler_type={pooler!r}, hf_proj_type={projection!r}: "
            f"supported are {', '.join(poolers)}, and mlp, linear"
        )
    width, layers, heads, mlp_dim, vocab = HF_TEXT[name]
    for key in ("width", "layers", "heads", "mlp_ratio"):
        cfg.take(key)
    return {
        "context_length": cfg.take("context_length", 77),
        "vocab_size": cfg.take("vocab_size", vocab),
        "norm_eps": 1e-5,
        "text": {
            "kind": "bert",
            "width": width,
            "layers": layers,
            "heads": heads,
            "mlp_dim": mlp_dim,
            "pool": poolers[pooler],
            "projection": projection,
            **ROBERTA,
        },
    }


def config_from_open_clip(document: Mapping[str, Any]) -> ClipConfig:
    """`open_clip_config.json` ("model_cfg", "preprocess_cfg") -> our configuration.

    Raises `UserError` naming an unsupported key.
    """
    try:
        return _config(document)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"open_clip_config.json: a value of another type than open_clip's ({error!r})"
        ) from error


def _config(document: Mapping[str, Any]) -> ClipConfig:
    model = _Section("model_cfg", document["model_cfg"])
    quick_gelu = bool(model.take("quick_gelu", False))
    embed_dim = model.take("embed_dim", 512)
    vision_cfg = _Section("vision_cfg", model.take("vision_cfg", {}))
    text_cfg = _Section("text_cfg", model.take("text_cfg", {}))
    for section in (vision_cfg, text_cfg):
        for key in _UNSUPPORTED_BLOCKS:
            if section.pop(key, None) not in (None, False, "default"):
                raise UserError(f"open_clip_config.json: {section.name}.{key} is not supported")
    if vision_cfg.get("timm_model_name"):
        image_size, vision = _timm_vision(vision_cfg)
    else:
        image_size, vision = _native_vision(vision_cfg, quick_gelu)
    siglip = "siglip" in str(document["model_cfg"]["vision_cfg"].get("timm_model_name"))
    hf_text = bool(text_cfg.get("hf_model_name"))
    words = text_cfg.get("vocab_size", 49408)  # the caption decoder's, not the text tower's
    fields = _hugging_face_text(text_cfg) if hf_text else _native_text(text_cfg, quick_gelu, siglip)
    width = fields["text"]["width"]
    if decoder := model.take("multimodal_cfg"):
        decoder = _Section("multimodal_cfg", decoder)
        fields["decoder"] = {
            "layers": decoder.take("layers", 12),
            "heads": decoder.take("heads", 8),
            "vocab_size": words,
        }
        if decoder.take("mlp_ratio", 4) != 4 or decoder.take("width", 512) != width:
            raise UserError(
                "open_clip_config.json: multimodal_cfg: supported are mlp_ratio=4 and the text "
                f"tower's width={width}"
            )
        decoder.close()
    fields["logit_scale_init"] = float(model.take("init_logit_scale", math.log(1 / 0.07)))
    bias = model.take("init_logit_bias")
    fields["logit_bias_init"] = None if bias is None else float(bias)  # their files say -10
    for section in (vision_cfg, text_cfg, model):
        section.close()
    ours = document.get("clip_jax")  # our exports add what open_clip's keys cannot express
    for name, tower in (("vision_activation", vision), ("text_activation", fields["text"])):
        if isinstance(ours, Mapping) and name in ours:
            tower["activation"] = ours[name]
    fields |= from_open_clip({"size": image_size, **document.get("preprocess_cfg", {})})
    config = override(ClipConfig(), embed_dim=embed_dim, vision=vision, **fields)
    if config.vision_grid != config.vision.grid(image_size):
        raise UserError(
            f"open_clip_config.json: preprocess_cfg.size={config.image_size}, but "
            f"vision_cfg.image_size={image_size}"
        )
    return config
