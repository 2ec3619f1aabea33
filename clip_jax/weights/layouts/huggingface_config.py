"""Hugging Face's `config.json` of `CLIPModel`, `MetaClip2Model`, `SiglipModel` and `Siglip2Model`
<-> `ClipConfig`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.config import ClipConfig, differences, override
from clip_jax.models.fields import FUNCTION
from clip_jax.models.kinds import (
    TextConfig,
    TransformerTextConfig,
    VisionConfig,
    VitConfig,
    norm_eps,
)

# transformers' defaults for keys that config.json leaves out.
_CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_CLIP_VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_TEXT = _CLIP_TEXT | _SIGLIP
_SIGLIP_TEXT |= {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072}
_SIGLIP_TEXT |= {"num_attention_heads": 12, "max_position_embeddings": 64, "projection_size": None}
_SIGLIP_VISION = _CLIP_VISION | _SIGLIP | {"patch_size": 16, "vision_use_head": True}
_SIGLIP2_VISION = _SIGLIP_VISION | {"num_patches": 256}
_DEFAULTS = {
    "clip": (_CLIP_TEXT, _CLIP_VISION),
    "metaclip_2": (_CLIP_TEXT, _CLIP_VISION),
    "siglip": (_SIGLIP_TEXT, _SIGLIP_VISION),
    "siglip2": (_SIGLIP_TEXT, _SIGLIP2_VISION),
}
_CLASSES = {
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
}
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_LOGIT_SCALE = 2.6592  # transformers' rounding of ln(1 / 0.07)
# CLIP's config.json had this wrong id for years; transformers reads it as "the largest id".
_ARGMAX_EOS = 2


class Section:
    """One object of config.json, with transformers' defaults."""

    def __init__(self, name: str, values: Any, defaults: Mapping[str, Any]):
        if not isinstance(values, Mapping):
            raise UserError(f"config.json: {name}={values!r}; accepted is an object")
        self.name, self.values = name, {**defaults, **values}

    def refuse(self, key: str, accepted: str) -> UserError:
        """Returns the error for a value that is not `accepted`."""
        return UserError(
            f"config.json: {self.name}.{key}={self.values[key]!r}; accepted is {accepted}"
        )

    def count(self, key: str, lowest: int = 1) -> int:
        """Returns a whole number of at least `lowest`. Raises `UserError`."""
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise self.refuse(key, f"a whole number from {lowest}")
        return value

    def number(self, key: str) -> float:
        """Returns a number. Raises `UserError`."""
        value = self.values[key]
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refuse(key, "a number")
        return float(value)

    def side(self, key: str) -> int:
        """Pixels: N, or [N, N]."""
        value = self.values[key]
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            self.values[key] = value[0]
        elif isinstance(value, list | tuple):
            raise self.refuse(key, "a square: N or [N, N]")
        return self.count(key)

    def activation(self) -> str:
        """Returns our name of the activation. Raises `UserError`."""
        value = self.values["hidden_act"]
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.refuse("hidden_act", " or ".join(_ACTIVATIONS))
        return _ACTIVATIONS[value]

    def tower(self) -> dict[str, Any]:
        """Configuration fields that both towers have."""
        return {
            "width": self.count("hidden_size"),
            "layers": self.count("num_hidden_layers"),
            "heads": self.count("num_attention_heads"),
            "mlp_dim": self.count("intermediate_size"),
            "activation": self.activation(),
        }


def _sections(config: Mapping[str, Any], model_type: str) -> tuple[Section, Section]:
    """The sections of the text and of the image tower."""
    text, vision = (
        _section(config, name, defaults)
        for name, defaults in zip(
            ("text_config", "vision_config"), _DEFAULTS[model_type], strict=True
        )
    )
    if vision.count("num_channels") != 3:
        raise vision.refuse("num_channels", "3")
    return text, vision


def _section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> Section:
    values = config.get(name) or {}
    older = config.get(f"{name}_dict")
    if older is not None:
        # In files of 2022 this object, completed by the defaults, takes precedence.
        values = {**values, **defaults, **older} if isinstance(values, Mapping) else values
    return Section(name, values, defaults)


def _vision_norm_eps(text: Section, vision: Section) -> float | None:
    eps = vision.number("layer_norm_eps")
    return None if eps == text.number("layer_norm_eps") else eps


def _pad_id(vocab_size: int, text_pool: str, eos_id: int, default: int) -> int:
    """The padding id of a known architecture with this vocabulary, or `default`.

    config.json's matches no tokenizer (transformers ignores it).
    """
    wanted = (vocab_size, text_pool, eos_id)
    for row in ARCHITECTURES.values():
        if (row.vocab_size, row.text.pool, getattr(row.text, "eos_id", None)) == wanted:
            return row.text.pad_id
    return default


def config_from_huggingface(config: Mapping[str, Any]) -> ClipConfig:
    """The content of `config.json` -> the model's configuration, `name` "custom".

    The image fields are those of the family's release; `preprocessor_config.json` has the model's
    own. Raises `UserError` naming a key whose value is not supported.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _DEFAULTS:
        raise UserError(
            f"config.json: model_type={model_type!r}; accepted are {', '.join(_DEFAULTS)} and "
            "vision-text-dual-encoder"
        )
    text, vision = _sections(config, model_type)
    if model_type in ("clip", "metaclip_2"):
        return _clip_config(config, text, vision)
    return _siglip_config(text, vision, naflex=model_type == "siglip2")


def _clip_config(config: Mapping[str, Any], text: Section, vision: Section) -> ClipConfig:
    top = {"projection_dim": 512, "logit_scale_init_value": _LOGIT_SCALE}
    model = Section(config["model_type"], config, top)
    scale = model.number("logit_scale_init_value")
    vocab_size, eos_id = text.count("vocab_size"), text.count("eos_token_id", lowest=0)
    text_pool = "eos"
    if config["model_type"] == "clip" and eos_id == _ARGMAX_EOS:
        text_pool, eos_id = "argmax", vocab_size - 1
    return override(
        ClipConfig(),
        embed_dim=model.count("projection_dim"),
        image_size=vision.side("image_size"),
        context_length=text.count("max_position_embeddings"),
        vocab_size=vocab_size,
        norm_eps=text.number("layer_norm_eps"),
        logit_scale_init=ClipConfig.logit_scale_init if scale == _LOGIT_SCALE else scale,
        vision={
            **vision.tower(),
            "patch_size": vision.side("patch_size"),
            "norm_eps": _vision_norm_eps(text, vision),
        },
        text={
            **text.tower(),
            "pool": text_pool,
            "eos_id": eos_id,
            "pad_id": _pad_id(vocab_size, text_pool, eos_id, default=0),
        },
    )


def _siglip_config(text: Section, vision: Section, naflex: bool) -> ClipConfig:
    if not vision.values["vision_use_head"]:
        raise vision.refuse("vision_use_head", "true")
    width, projected = vision.count("hidden_size"), text.values["projection_size"]
    if width != (projected or text.count("hidden_size")):
        key = "projection_size" if projected else "hidden_size"
        raise text.refuse(key, f"vision_config.hidden_size={width}, so that embeddings compare")
    patch_size = vision.side("patch_size")
    if naflex:
        patches = vision.count("num_patches")
        image_size = math.isqrt(patches) * patch_size
        if math.isqrt(patches) ** 2 != patches:
            raise vision.refuse("num_patches", "the square of a whole number")
    else:
        image_size = vision.side("image_size")
    tower = {"patch_size": patch_size, "norm_eps": _vision_norm_eps(text, vision), "naflex": naflex}
    return siglip_config(
        vision.tower() | tower,
        text.tower(),
        embed_dim=width,
        image_size=image_size,
        # transformers' processor uses bilinear if it keeps the aspect ratio.
        image_interpolation="bilinear" if naflex else "bicubic",
        context_length=text.count("max_position_embeddings"),
        vocab_size=text.count("vocab_size"),
        norm_eps=text.number("layer_norm_eps"),
    )


def siglip_config(vision: dict[str, Any], text: dict[str, Any], **shared: Any) -> ClipConfig:
    """A SigLIP with these fields; the pooling head has the image tower's heads and MLP size."""
    base = ARCHITECTURES["ViT-B-16-SigLIP"]
    vision = {"pool_heads": vision["heads"], "pool_mlp_dim": vision["mlp_dim"], **vision}
    config = override(base, name="custom", vision=vision, text=text, **shared)
    assert isinstance(config.text, TransformerTextConfig)
    pad_id = _pad_id(config.vocab_size, config.text.pool, config.text.eos_id, base.text.pad_id)
    return override(config, text={"pad_id": pad_id})


# config.json has these fields, so any value can be saved.
_SAID = ("embed_dim", "image_size", "context_length", "vocab_size", "norm_eps")
_SAID_OF_TOWER = ("width", "layers", "heads", "mlp_dim", "activation", "patch_size", "norm_eps")


def _nearest(config: ClipConfig, siglip: bool) -> ClipConfig:
    """The configuration nearest to `config` that a `CLIPModel` or a `SiglipModel` can have."""
    base = ARCHITECTURES["ViT-B-16-SigLIP"] if siglip else ClipConfig()
    fields = {name: getattr(config, name) for name in _SAID}
    vision, text = _with_said(base.vision, config.vision), _with_said(base.text, config.text)
    if not siglip and isinstance(config.text, TransformerTextConfig) and config.text.pool == "eos":
        text = dataclasses.replace(text, pool="eos", eos_id=config.text.eos_id)
    if siglip and isinstance(config.vision, VitConfig):
        tower = config.vision
        vision = dataclasses.replace(vision, pool_heads=tower.heads, pool_mlp_dim=tower.mlp_dim)
        if tower.naflex:  # Siglip2Model stores the number of patches
            fields["image_size"] = config.vision_grid * tower.patch_size
    return dataclasses.replace(base, **fields, vision=vision, text=text)


def _with_said(base: Any, tower: VisionConfig | TextConfig) -> Any:
    """`base` with those fields of `tower` that config.json has."""
    said = {n: getattr(tower, n) for n in _SAID_OF_TOWER if hasattr(base, n) and hasattr(tower, n)}
    return dataclasses.replace(base, **said)


def _model_type(config: ClipConfig) -> str:
    """The `model_type` of the transformers class that computes `config`. Raises `UserError`."""
    obstacles = {
        kind: [
            f"{path}={ours!r}"
            for path, (ours, _) in differences(
                config, _nearest(config, siglip=kind == "SiglipModel"), FUNCTION
            ).items()
        ]
        for kind in ("CLIPModel", "SiglipModel")
    }
    if not obstacles["SiglipModel"]:
        return "siglip2" if getattr(config.vision, "naflex", False) else "siglip"
    if not obstacles["CLIPModel"]:
        # CLIPModel would read this id as "the largest"; MetaClip2Model reads it literally.
        literal = config.text.pool == "eos" and config.text.eos_id == _ARGMAX_EOS
        return "metaclip_2" if literal else "clip"
    kind = min(obstacles, key=lambda kind: len(obstacles[kind]))
    raise UserError(
        f"{config.name}: cannot be saved for Hugging Face; {kind} has no "
        f"{', '.join(obstacles[kind])} (clip_jax's own layout holds every model, open_clip's most)"
    )


def config_to_huggingface(
    config: ClipConfig, dtype: str = "float32", end_of_text: int | None = None
) -> dict[str, Any]:
    """The content of `config.json`, which transformers 4.5x and 5 load.

    `dtype`: of the tensors. `end_of_text`: the id that ends the tokenizer's texts, if there is a
    tokenizer.

    Raises `UserError` naming the obstructing fields if no transformers class computes the model.
    """
    model_type = _model_type(config)
    is_siglip = model_type.startswith("siglip")
    vision_config, text_config = config.vision, config.text
    assert isinstance(vision_config, VitConfig)
    assert isinstance(text_config, TransformerTextConfig)
    eos_id = text_config.eos_id
    if text_config.pool == "argmax":
        # If end of text is the largest id, writing it selects the same position as "the largest
        # id", and still does when a user of transformers adds tokens after it.
        is_largest = end_of_text == config.vocab_size - 1
        eos_id = end_of_text if end_of_text is not None and is_largest else _ARGMAX_EOS
    text = {
        **_tower(text_config),
        "model_type": f"{model_type}_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "layer_norm_eps": config.norm_eps,
        "bos_token_id": None,  # transformers' default may exceed a small vocabulary
        "pad_token_id": text_config.pad_id,
        "eos_token_id": eos_id,
        "projection_size" if is_siglip else "projection_dim": config.embed_dim,
    }
    vision = {
        **_tower(vision_config),
        "model_type": f"{model_type}_vision_model",
        "num_channels": 3,
        "patch_size": vision_config.patch_size,
        "layer_norm_eps": norm_eps(vision_config, config),
        **({"vision_use_head": True} if is_siglip else {"projection_dim": config.embed_dim}),
    }
    if vision_config.naflex:
        vision["num_patches"] = config.vision_grid**2
    else:
        vision["image_size"] = config.image_size
    document = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "initializer_factor": 1.0,
        "text_config": text,
        "torch_dtype": dtype,
        "vision_config": vision,
    }
    if not is_siglip:
        scale = config.logit_scale_init
        document["projection_dim"] = config.embed_dim
        document["logit_scale_init_value"] = (
            _LOGIT_SCALE if scale == ClipConfig.logit_scale_init else scale
        )
    return document


def _tower(config: VitConfig | TransformerTextConfig) -> dict[str, Any]:
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": activations[config.activation],
        "attention_dropout": 0.0,
    }
