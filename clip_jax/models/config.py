"""`ClipConfig`: everything that defines the function of a CLIP except its parameters."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from typing import Any, Literal

from clip_jax.errors import UserError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
# "linear" is one matrix, "linear_bias" adds a bias; "mlp" is matrix, GELU, matrix, "mlp_bias" adds
# a bias to the first; with "none" the tower's width is the embedding's.
ProjectionKind = Literal["linear", "linear_bias", "mlp", "mlp_bias", "none"]
# The initial parameters follow OpenAI's code, big_vision (xavier), or N(0, 0.02²) with zero biases.
InitKind = Literal["openai", "big_vision", "normal"]


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Everything that defines the function of a CLIP except its parameters and vocabulary."""

    name: str = "custom"
    embed_dim: int = 512  # width of the shared space

    image_size: int = 224  # pixels, square
    vision_kind: Literal["vit", "hybrid", "resnet", "convnext", "fastvit"] = (
        "vit"  # "hybrid": a ViT whose patches are the features of a convolutional stem
    )
    patch_size: int = 32  # pixels; ViT; hybrid: the total stride of the stem
    vision_width: int = 768  # ViT: token width; else channels of the first stage
    vision_layers: int | tuple[int, ...] = 12  # ViT: blocks; else blocks of each stage
    vision_heads: int = 12  # ResNet: heads of the attention pool
    vision_mlp_dim: int = 3072  # ViT; FastViT: width in the first stage
    vision_pool: Literal["class_token", "average", "attention", "queries"] = (
        "class_token"  # ViT: "attention" is SigLIP's head of one learned query, "queries" CoCa's
    )
    vision_pool_heads: int = 8  # "attention" and "queries"
    vision_pool_mlp_dim: int = 3072  # "attention"
    vision_pool_queries: int = 256  # "queries": the first is the embedding, the others memory
    vision_pooler: bool = False  # ViT: Linear and tanh before the projection, as in BERT
    vision_projection: ProjectionKind = "linear"
    vision_class_token: bool = True  # ViT
    vision_patch_bias: bool = False  # ViT: bias of the patch embedding
    vision_pre_norm: bool = True  # ViT: LayerNorm between the embedding and the first block
    vision_post_norm: Literal["before_pool", "after_pool"] = "before_pool"  # ViT
    vision_block_norm: Literal["pre", "branch"] = "pre"  # LN before a branch, or on its output
    vision_mlp: Literal["plain", "swiglu", "geglu"] = "plain"  # see BlockConfig in transformer.py
    vision_inner_norm: bool = False  # LayerNorm on attention's output, before its projection
    vision_key_bias: bool = True  # whether keys have a bias, as queries and values do
    vision_layer_scale: float | None = None  # initial gain of every branch; None: no gain
    vision_rope: Literal["none", "yx", "xy"] = "none"  # rotary positions; order of the coordinates
    vision_rope_grid: int = 16  # side of the grid that positions are scaled to
    vision_rope_offset: float = 0.0  # position of the first patch, in patches
    vision_positions: bool = True  # hybrid: learned positions of the patches
    vision_stem: Literal["convolutions", "inverted"] = (
        "convolutions"  # hybrid: three (MobileCLIP), or stages of inverted bottlenecks (ViTamin)
    )
    vision_stem_width: int = 64  # hybrid: channels of the first convolution
    vision_fastvit: Literal["small", "large"] = "small"  # FastViT; see models/fastvit.py
    vision_activation: Activation = "gelu"
    vision_init: InitKind = "openai"
    batch_norm: Literal["batch", "frozen"] = (
        "batch"  # ResNet, in training: statistics of the batch, or stored
    )
    naflex: bool = False  # SigLIP 2 NaFlex, used at one square size; only matters on disk

    text_kind: Literal["transformer", "bert"] = "transformer"  # "bert": BERT, RoBERTa, XLM-RoBERTa
    context_length: int = 77  # tokens
    vocab_size: int = 49408
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_mlp_dim: int = 2048
    text_causal: bool = True
    text_pool: Literal["argmax", "eos", "last", "first", "mean", "pooler", "appended"] = (
        "argmax"  # where the caption's feature is read; see models/text.py
    )
    eos_id: int = 49407  # for text_pool "eos": its first occurrence is read
    pad_id: int = 0  # masked by "bert" and by text_pool "appended"
    text_class_mask: Literal["shifted", "aligned"] = "shifted"  # "appended": CoCa's released quirk
    text_positions: int | None = None  # rows of the position table; None: one per token
    text_position_offset: int = 0  # "bert": RoBERTa counts from pad_id + 1, over real tokens only
    text_token_types: int = 1  # "bert": rows of the table of token types
    text_projection: ProjectionKind = "linear"
    text_activation: Activation = "gelu"
    text_init: InitKind = "openai"

    decoder_layers: int = 0  # CoCa's caption decoder; 0: none
    decoder_heads: int = 8
    decoder_vocab_size: int = 49408

    norm_eps: float = 1e-5  # LayerNorm
    vision_norm_eps: float | None = None  # None: norm_eps
    logit_scale_init: float = 2.6592600  # ln(1 / 0.07), stored as a logarithm
    logit_bias_init: float | None = None  # None: no bias (softmax loss)

    dtype: Literal["float32", "bfloat16"] = "float32"  # of computation; parameters are float32
    scan_layers: bool = False  # scans one compiled block: faster to compile, parameters stacked
    # The backward pass recomputes activations, from the most memory to the least; models/remat.py.
    remat: Literal["none", "dots", "qkv", "full", "offload"] = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"  # kernel; auto: cuDNN if available
    patch_dropout: float = 0.0  # share of an image's patches that training drops (FLIP)

    image_mean: tuple[float, float, float] = OPENAI_MEAN  # of RGB in [0, 1]; applied on the device
    image_std: tuple[float, float, float] = OPENAI_STD
    image_resize: Literal["shortest", "squash", "longest"] = (
        "shortest"  # shorter side then centre crop; both sides; longer side then padding
    )
    image_interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    image_fill: int = 0  # "longest": grey level of the padding, 0 to 255

    @property
    def vision_grid(self) -> int:
        """Side of the patch grid (ViT) or of the last feature map."""
        if isinstance(self.vision_layers, int):
            return self.image_size // self.patch_size
        return self.image_size // (2 * 2 ** len(self.vision_layers))

    @property
    def vision_tokens(self) -> int:
        """Number of tokens of a ViT, including the class token."""
        return self.vision_grid**2 + self.vision_class_token

    @property
    def vision_eps(self) -> float:
        """LayerNorm's epsilon in the image tower."""
        return self.norm_eps if self.vision_norm_eps is None else self.vision_norm_eps

    @property
    def position_rows(self) -> int:
        """Number of rows of the text tower's position table."""
        appended = self.text_pool == "appended"
        return self.text_positions or self.context_length + self.text_position_offset + appended

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dictionary that `ClipConfig.from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClipConfig:
        """Inverts `to_dict`. Raises `UserError` for an unknown field or invalid value."""
        if not isinstance(values, dict):
            raise UserError(f"the architecture is {values!r}: must be an object of fields")
        return override(cls(), **values)


HINTS = typing.get_type_hints(ClipConfig)
LARGEST = 2**31 - 1
MOST_LAYERS = 1000
MAY_BE_ZERO = ("eos_id", "pad_id", "text_position_offset", "decoder_layers", "image_fill")


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value has an annotated type; a whole number counts as a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        right_length = arguments[-1] is ... or len(arguments) == len(value)
        return right_length and all(_is_a(item, arguments[0]) for item in value)
    if arguments:  # a union
        return any(_is_a(value, option) for option in arguments)
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float)
        return number and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint)


def _wanted(hint: Any) -> str:
    """Describes the values that an annotation accepts, for the end of an error message."""
    if typing.get_origin(hint) is Literal:
        return f"choose one of {', '.join(typing.get_args(hint))}"
    if typing.get_origin(hint) is tuple:
        return "must be three numbers, for red, green, blue"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    names[type(None)] = "null"
    options = typing.get_args(hint) or (hint,)
    return "must be " + " or ".join(names.get(option, "numbers, one a stage") for option in options)


def _check(config: ClipConfig) -> None:
    """Raises `UserError` for sizes that no model can have."""
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), HINTS[field.name]
        if not _is_a(value, hint):
            raise UserError(f"{field.name}={value!r}: {_wanted(hint)}")
        lowest = 0 if field.name in MAY_BE_ZERO else 1
        if isinstance(value, int) and not isinstance(value, bool):
            if int in (hint, *typing.get_args(hint)) and value < lowest:
                raise UserError(f"{field.name}={value}: must be at least {lowest}")
            if value > LARGEST:
                raise UserError(f"{field.name}={value}: must be at most {LARGEST}")
    if not 0 <= config.patch_dropout < 1:
        raise UserError(f"patch_dropout={config.patch_dropout}: must be 0 to less than 1")
    if config.patch_dropout and config.vision_kind not in ("vit", "hybrid"):
        raise UserError(
            f"patch_dropout={config.patch_dropout}: needs a ViT; vision_kind={config.vision_kind!r}"
        )
    if min(config.image_std) <= 0:
        raise UserError(f"image_std={config.image_std}: must be above 0")
    divisors = [("text_width", config.text_width, "text_heads", config.text_heads)]
    if config.vision_kind in ("vit", "hybrid"):
        divisors += _check_vit(config)
    else:
        divisors += _check_stages(config)
    for width_name, width, heads_name, heads in divisors:
        if heads < 1 or width % heads:
            raise UserError(f"{heads_name}={heads}: must divide {width_name}={width}")
    _check_text(config)


def _check_vit(config: ClipConfig) -> list[tuple[str, int, str, int]]:
    if config.patch_size > config.image_size or config.patch_size < 1:
        raise UserError(
            f"patch_size={config.patch_size}: must be 1 to image_size={config.image_size}"
        )
    if not isinstance(config.vision_layers, int) or config.vision_layers > MOST_LAYERS:
        raise UserError(
            f"vision_layers={config.vision_layers}: a ViT takes one number of blocks, at most "
            f"{MOST_LAYERS}"
        )
    if config.vision_kind == "hybrid" and (config.patch_size != 16 or config.image_size % 16):
        raise UserError(
            f"patch_size={config.patch_size}, image_size={config.image_size}: a hybrid ViT takes "
            "16 and a multiple of 16"
        )
    if config.vision_pool == "class_token" and not config.vision_class_token:
        raise UserError("vision_pool='class_token': needs vision_class_token=True")
    if config.vision_projection == "none" and config.vision_pool != "queries":
        _check_width("vision", config.vision_width, config.embed_dim)
    if config.patch_dropout and config.vision_rope != "none":
        raise UserError(
            f"patch_dropout={config.patch_dropout}: needs vision_rope='none', as rotary positions "
            "take the whole grid"
        )
    divisors = [("vision_width", config.vision_width, "vision_heads", config.vision_heads)]
    pooled = {"attention": ("vision_width", config.vision_width)}
    pooled["queries"] = ("embed_dim", config.embed_dim)
    if config.vision_pool in pooled:
        divisors.append(
            (*pooled[config.vision_pool], "vision_pool_heads", config.vision_pool_heads)
        )
    if config.vision_rope != "none":
        divisors.append(("head width", config.vision_width // config.vision_heads, "4 bands", 4))
    return divisors


def _check_stages(config: ClipConfig) -> list[tuple[str, int, str, int]]:
    kind = {"resnet": "ResNet", "convnext": "ConvNeXt", "fastvit": "FastViT"}[config.vision_kind]
    stages = (4, 5) if config.vision_kind == "fastvit" else (4,)
    if isinstance(config.vision_layers, int) or len(config.vision_layers) not in stages:
        wanted = "four or five" if len(stages) > 1 else "four"
        raise UserError(
            f"vision_layers={config.vision_layers}: a {kind} takes {wanted} stage depths"
        )
    stride = 2 * 2 ** len(config.vision_layers)
    if config.image_size % stride or config.image_size < stride:
        raise UserError(f"image_size={config.image_size}: a {kind} takes a multiple of {stride}")
    if config.vision_kind == "convnext":
        return []
    if config.vision_kind == "fastvit":
        if config.vision_layer_scale is None:
            raise UserError("vision_layer_scale=None: a FastViT takes a number")
        mlp = ("vision_mlp_dim", config.vision_mlp_dim, "vision_width", config.vision_width)
        return [mlp, ("8 x vision_width", config.vision_width * 8, "head width", 32)]
    return [("32 x vision_width", config.vision_width * 32, "vision_heads", config.vision_heads)]


def _check_text(config: ClipConfig) -> None:
    if max(config.text_layers, config.decoder_layers) > MOST_LAYERS:
        raise UserError(f"text_layers={config.text_layers}: must be at most {MOST_LAYERS}")
    bert_only = {"first", "mean", "pooler"}
    if (config.text_kind == "bert") != (config.text_pool in bert_only):
        raise UserError(
            f"text_pool={config.text_pool!r}: text_kind={config.text_kind!r} takes "
            + (
                "first, mean or pooler"
                if config.text_kind == "bert"
                else "argmax, eos, last or appended"
            )
        )
    if config.text_projection == "none":
        _check_width("text", config.text_width, config.embed_dim)
    needed = config.context_length + config.text_position_offset + (config.text_pool == "appended")
    if config.position_rows < needed:
        raise UserError(
            f"text_positions={config.text_positions}: context_length={config.context_length} "
            f"needs at least {needed}"
        )


def _check_width(tower: str, width: int, embed_dim: int) -> None:
    if width != embed_dim:
        raise UserError(
            f"{tower}_projection='none': needs {tower}_width={width} equal to embed_dim={embed_dim}"
        )


def override(config: ClipConfig, **changes: Any) -> ClipConfig:
    """Returns `config` with some fields changed.

    Raises `UserError` for an invalid value, or an unknown field (with the nearest known one).
    """
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
