"""The table of architectures: one frozen row a name.

Sizes are those of the CLIP paper (Radford et al. 2021, tables 19 and 20) and of the released
weights. A plain name computes the exact GELU; OpenAI's weights were trained with x·sigmoid(1.702
x), which is the `-quickgelu` twin (the parameter counts are equal, so a wrong choice would load
without an error).
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, Literal

from clip_jax.errors import UserError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Everything that fixes the function a CLIP computes, but for its parameters and its
    vocabulary."""

    name: str = "custom"
    embed_dim: int = 512  # width of the shared space

    image_size: int = 224  # pixels, square
    vision_kind: Literal["vit", "resnet"] = "vit"
    patch_size: int = 32  # pixels; ViT only
    vision_width: int = 768  # ViT: token width; ResNet: channels of the first stage
    vision_layers: int | tuple[int, ...] = (
        12  # ViT: blocks; ResNet: blocks of each of the four stages
    )
    vision_heads: int = 12  # ResNet: heads of the attention pool
    vision_mlp_dim: int = 3072  # ViT only
    vision_pool: Literal["class_token", "average"] = (
        "class_token"  # ViT only; a ResNet pools by attention
    )
    vision_pre_norm: bool = True  # ViT: LayerNorm between the embedding and the first block
    vision_activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    batch_norm: Literal["batch", "frozen"] = (
        "batch"  # ResNet, in training: statistics of the batch, or stored
    )

    context_length: int = 77  # tokens
    vocab_size: int = 49408
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_mlp_dim: int = 2048
    text_causal: bool = True
    text_pool: Literal["argmax", "eos", "last"] = "argmax"  # where the caption's feature is read
    eos_id: int = 49407  # for text_pool "eos": its first occurrence is read
    text_activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"

    norm_eps: float = 1e-5  # LayerNorm of both towers
    logit_scale_init: float = 2.6592600  # ln(1 / 0.07), stored as a logarithm
    logit_bias_init: float | None = None  # None: no bias (softmax loss)

    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    scan_layers: bool = False  # one compiled block, scanned: quicker to compile, parameters stacked
    remat: Literal["none", "full", "dots"] = "none"  # what the backward pass computes again

    image_mean: tuple[float, float, float] = OPENAI_MEAN  # of RGB in [0, 1]; applied on the device
    image_std: tuple[float, float, float] = OPENAI_STD
    image_resize: Literal["shortest", "squash"] = (
        "shortest"  # shorter side then centre crop, or both sides
    )
    image_interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    @property
    def vision_grid(self) -> int:
        """Side of the grid of patches (ViT) or of the last feature map (ResNet, total stride
        32)."""
        return self.image_size // (self.patch_size if self.vision_kind == "vit" else 32)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary that `ClipConfig.from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClipConfig:
        """The inverse of `to_dict`. Raises `UserError` for an unknown or impossible field."""
        return override(cls(), **values)


def _check(config: ClipConfig) -> None:
    """Raises `UserError` for sizes that no model can have."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        lowest = 0 if field.name == "eos_id" else 1
        if isinstance(value, int) and not isinstance(value, bool) and value < lowest:
            raise UserError(f"{field.name}={value}: must be at least {lowest}")
        if field.name in ("image_mean", "image_std") and len(value) != 3:
            raise UserError(f"{field.name}={value}: must be three numbers, for red, green, blue")
        allowed = CHOICES.get(field.name)
        if allowed and value not in allowed:
            raise UserError(f"{field.name}={value!r}: choose one of {', '.join(allowed)}")
    divisors = [("text_width", config.text_width, "text_heads", config.text_heads)]
    if config.vision_kind == "vit":
        divisors += [("vision_width", config.vision_width, "vision_heads", config.vision_heads)]
        if config.patch_size > config.image_size or config.patch_size < 1:
            raise UserError(
                f"patch_size={config.patch_size}: must be 1 to image_size={config.image_size}"
            )
        if not isinstance(config.vision_layers, int):
            raise UserError(
                f"vision_layers={config.vision_layers}: a ViT takes one number of blocks"
            )
    else:
        if isinstance(config.vision_layers, int) or len(config.vision_layers) != 4:
            raise UserError(
                f"vision_layers={config.vision_layers}: a ResNet takes four stage depths"
            )
        if config.image_size % 32 or config.image_size < 32:
            raise UserError(f"image_size={config.image_size}: a ResNet takes a multiple of 32")
        feature_dim = config.vision_width * 32
        divisors += [("32 x vision_width", feature_dim, "vision_heads", config.vision_heads)]
    for width_name, width, heads_name, heads in divisors:
        if heads < 1 or width % heads:
            raise UserError(f"{heads_name}={heads}: must divide {width_name}={width}")


CHOICES: dict[str, tuple[str, ...]] = {
    "vision_kind": ("vit", "resnet"),
    "vision_pool": ("class_token", "average"),
    "vision_activation": ("gelu", "gelu_tanh", "quick_gelu"),
    "text_activation": ("gelu", "gelu_tanh", "quick_gelu"),
    "batch_norm": ("batch", "frozen"),
    "text_pool": ("argmax", "eos", "last"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "dots"),
    "image_resize": ("shortest", "squash"),
    "image_interpolation": ("bicubic", "bilinear"),
}


def override(config: ClipConfig, **changes: Any) -> ClipConfig:
    """`config` with some fields changed. Raises `UserError` naming the nearest field if one is
    unknown."""
    fields = [field.name for field in dataclasses.fields(config)]
    for key, value in changes.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"unknown field {key!r} of ClipConfig{hint} (known: {', '.join(fields)})"
            )
        if isinstance(value, list):
            changes[key] = tuple(value)
    changed = dataclasses.replace(config, **changes)
    _check(changed)
    return changed


def _vit(
    name: str, patch: int, width: int, layers: int, heads: int, embed: int, text: int, **more: Any
) -> ClipConfig:
    """A ViT tower beside OpenAI's text tower of 12 blocks and heads of 64."""
    return ClipConfig(
        name=name,
        embed_dim=embed,
        patch_size=patch,
        vision_width=width,
        vision_layers=layers,
        vision_heads=heads,
        vision_mlp_dim=4 * width,
        text_width=text,
        text_heads=text // 64,
        text_mlp_dim=4 * text,
        **more,
    )


def _resnet(
    name: str, width: int, layers: tuple[int, ...], size: int, embed: int, text: int
) -> ClipConfig:
    """A ModifiedResNet tower (paper section 2.4) beside OpenAI's text tower."""
    return ClipConfig(
        name=name,
        embed_dim=embed,
        vision_kind="resnet",
        image_size=size,
        vision_width=width,
        vision_layers=layers,
        vision_heads=width * 32 // 64,
        text_width=text,
        text_heads=text // 64,
        text_mlp_dim=4 * text,
    )


_OPENAI = (
    _resnet("RN50", 64, (3, 4, 6, 3), 224, 1024, 512),
    _resnet("RN101", 64, (3, 4, 23, 3), 224, 512, 512),
    _resnet("RN50x4", 80, (4, 6, 10, 6), 288, 640, 640),
    _resnet("RN50x16", 96, (6, 8, 18, 8), 384, 768, 768),
    _resnet("RN50x64", 128, (3, 15, 36, 10), 448, 1024, 1024),
    _vit("ViT-B-32", 32, 768, 12, 12, 512, 512),
    _vit("ViT-B-16", 16, 768, 12, 12, 512, 512),
    _vit("ViT-L-14", 14, 1024, 24, 16, 768, 768),
    _vit("ViT-L-14-336", 14, 1024, 24, 16, 768, 768, image_size=336),
)


def _quick_gelu_twin(config: ClipConfig) -> ClipConfig:
    return dataclasses.replace(
        config,
        name=f"{config.name}-quickgelu",
        vision_activation="quick_gelu",
        text_activation="quick_gelu",
    )


ARCHITECTURES: dict[str, ClipConfig] = {
    row.name: row for base in _OPENAI for row in (base, _quick_gelu_twin(base))
}


def list_models() -> tuple[str, ...]:
    """The names that `create` and `get_architecture` take."""
    return tuple(ARCHITECTURES)


def get_architecture(name: str, **overrides: Any) -> ClipConfig:
    """The row called `name`, with fields changed. Raises `UserError` naming the nearest known
    name."""
    if name == "custom":
        return override(ClipConfig(), **overrides)
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown model {name!r}{hint} (known: custom, {', '.join(ARCHITECTURES)})")
    return override(ARCHITECTURES[name], **overrides)
