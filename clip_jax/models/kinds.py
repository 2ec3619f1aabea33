"""Classes of a configuration's fields: those that towers share, and one for each kind of tower.

`ClipConfig` in models/config.py has one of each part.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from clip_jax.errors import UserError
from clip_jax.models.fields import (
    computing,
    field,
    function,
    image,
    resizable,
    shape,
    start,
    training,
)

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
MOST_LAYERS = 1000

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
# "linear" is one matrix, "linear_bias" adds a bias; "mlp" is matrix, GELU, matrix, "mlp_bias" adds
# a bias to the first; with "none" the tower's width is the embedding's.
ProjectionKind = Literal["linear", "linear_bias", "mlp", "mlp_bias", "none"]
# The initial parameters follow OpenAI's code, big_vision (xavier), or N(0, 0.02²) with zero biases.
InitKind = Literal["openai", "big_vision", "normal"]
BatchNormKind = Literal["batch", "frozen"]  # in training: statistics of the batch, or stored


@dataclasses.dataclass(frozen=True)
class SharedConfig:
    """Fields that towers share."""

    name: str = field("about", "custom")
    embed_dim: int = shape(512)  # width of the shared space

    image_size: int = resizable(224, tower="vision")  # pixels, square
    context_length: int = resizable(77, tower="text")  # tokens
    vocab_size: int = shape(49408, tower="text")

    norm_eps: float = function(1e-5)  # LayerNorm
    logit_scale_init: float = start(2.6592600)  # ln(1 / 0.07), stored as a logarithm
    logit_bias_init: float | None = start(None)  # None: no bias (softmax loss)

    dtype: Literal["float32", "bfloat16"] = computing("float32")  # parameters are float32
    # Scans one compiled block: faster to compile, parameters stacked.
    scan_layers: bool = field("layout", False)
    # The backward pass recomputes activations, from the most memory to the least; models/remat.py.
    remat: Literal["none", "dots", "qkv", "full", "offload"] = computing("none")
    attention: Literal["auto", "xla", "cudnn", "tpu"] = computing("auto")  # kernels/choice.py

    image_mean: tuple[float, float, float] = image(OPENAI_MEAN)  # of RGB in [0, 1]; on the device
    image_std: tuple[float, float, float] = image(OPENAI_STD)
    # Shorter side then centre crop; both sides; longer side then padding.
    image_resize: Literal["shortest", "squash", "longest"] = image("shortest")
    image_interpolation: Literal["bicubic", "bilinear"] = image("bicubic")
    image_fill: int = image(0, least=0, most=255)  # "longest": grey level of the padding


@dataclasses.dataclass(frozen=True)
class _TransformerVision:
    """Fields of an image tower whose blocks are a Transformer's."""

    width: int = shape(768)  # of a token
    layers: int = shape(12, most=MOST_LAYERS)
    heads: int = shape(12)
    mlp_dim: int = shape(3072)
    # "attention" is SigLIP's head of one learned query, "queries" CoCa's.
    pool: Literal["class_token", "average", "attention", "queries"] = shape("class_token")
    pool_heads: int = shape(8, pool=("attention", "queries"))
    pool_mlp_dim: int = shape(3072, pool=("attention",))
    pool_queries: int = shape(256, pool=("queries",))  # the first is the embedding, others memory
    pooler: bool = shape(False)  # Linear and tanh before the projection, as in BERT
    projection: ProjectionKind = shape("linear")
    class_token: bool = shape(True)
    pre_norm: bool = shape(True)  # LayerNorm between the embedding and the first block
    post_norm: Literal["before_pool", "after_pool"] = function("before_pool", pool=("average",))
    block_norm: Literal["pre", "branch"] = function("pre")  # LN before a branch, or on its output
    mlp: Literal["plain", "swiglu", "geglu"] = shape("plain")  # see BlockConfig in attention.py
    inner_norm: bool = shape(False)  # LayerNorm on attention's output, before its projection
    key_bias: bool = shape(True)  # whether keys have a bias, as queries and values do
    layer_scale: float | None = shape(None)  # initial gain of every branch; None: no gain
    rope: Literal["none", "yx", "xy"] = function("none")  # rotary positions; coordinates' order
    rope_grid: int = function(16, rope=("yx", "xy"))  # side of the grid that positions scale to
    rope_offset: float = function(0.0, rope=("yx", "xy"))  # of the first patch, in patches
    activation: Activation = function("gelu")
    init: InitKind = start("openai")
    norm_eps: float | None = function(None)  # None: the model's
    patch_dropout: float = training(0.0, least=0, below=1)  # share of patches to drop (FLIP)

    def _check_blocks(self, shared: SharedConfig) -> None:
        if self.pool == "class_token" and not self.class_token:
            raise UserError("vision.pool='class_token': needs vision.class_token=True")
        if self.projection == "none" and self.pool != "queries":
            _check_width("vision", self.width, shared.embed_dim)
        if self.patch_dropout and self.rope != "none":
            raise UserError(
                f"vision.patch_dropout={self.patch_dropout}: needs vision.rope='none', as rotary "
                "positions take the whole grid"
            )
        check_divides("vision.heads", self.heads, "vision.width", self.width)
        if self.pool == "attention":
            check_divides("vision.pool_heads", self.pool_heads, "vision.width", self.width)
        if self.pool == "queries":
            check_divides("vision.pool_heads", self.pool_heads, "embed_dim", shared.embed_dim)
        if self.rope != "none" and self.width // self.heads % 4:
            raise UserError(
                f"vision.rope={self.rope!r}: needs vision.width={self.width} over "
                f"vision.heads={self.heads} to be a multiple of 4"
            )


@dataclasses.dataclass(frozen=True)
class VitConfig(_TransformerVision):
    """Vision Transformer; models/vision.py."""

    kind: ClassVar[str] = "vit"
    patch_size: int = shape(32)  # pixels
    patch_bias: bool = shape(False)  # bias of the patch embedding
    naflex: bool = field("about", False)  # SigLIP 2 NaFlex at one square size; only on disk

    def grid(self, image_size: int) -> int:
        """Side of the grid of patches."""
        return image_size // self.patch_size

    def check(self, shared: SharedConfig) -> None:
        """Raises `UserError` for sizes that no tower can have."""
        if self.patch_size > shared.image_size:
            raise UserError(
                f"vision.patch_size={self.patch_size}: must be 1 to image_size={shared.image_size}"
            )
        self._check_blocks(shared)


@dataclasses.dataclass(frozen=True)
class HybridConfig(_TransformerVision):
    """ViT whose patches are the features of a convolutional stem; models/hybrid.py."""

    kind: ClassVar[str] = "hybrid"
    patch_size: ClassVar[int] = 16  # total stride of the stem
    positions: bool = shape(True)  # learned positions of the patches
    # Three convolutions (MobileCLIP), or stages of inverted bottlenecks (ViTamin).
    stem: Literal["convolutions", "inverted"] = shape("convolutions")
    stem_width: int = shape(64)  # channels of the first convolution
    batch_norm: BatchNormKind = training("batch", stem=("convolutions",))

    def grid(self, image_size: int) -> int:
        """Side of the grid of patches."""
        return image_size // self.patch_size

    def check(self, shared: SharedConfig) -> None:
        """Raises `UserError` for sizes that no tower can have."""
        _check_multiple(shared.image_size, self.patch_size, "hybrid ViT")
        self._check_blocks(shared)


@dataclasses.dataclass(frozen=True)
class _StagesVision:
    """Fields of a convolutional image tower, whose stages halve the side and double the width."""

    width: int = shape(64)  # channels of the first stage
    layers: tuple[int, ...] = shape((3, 4, 6, 3), most=MOST_LAYERS)  # blocks of each stage

    def grid(self, image_size: int) -> int:
        """Side of the last feature map."""
        return image_size // _stride(self.layers)

    def _check_stages(self, shared: SharedConfig, tower: str, more: bool = False) -> None:
        if len(self.layers) not in ((4, 5) if more else (4,)):
            wanted = "four or five" if more else "four"
            raise UserError(f"vision.layers={self.layers}: a {tower} takes {wanted} stage depths")
        _check_multiple(shared.image_size, _stride(self.layers), tower)


@dataclasses.dataclass(frozen=True)
class ResNetConfig(_StagesVision):
    """ModifiedResNet; models/resnet.py."""

    kind: ClassVar[str] = "resnet"
    heads: int = shape(32)  # of the attention pool
    batch_norm: BatchNormKind = training("batch")

    def check(self, shared: SharedConfig) -> None:
        """Raises `UserError` for sizes that no tower can have."""
        self._check_stages(shared, "ResNet")
        check_divides("vision.heads", self.heads, "32 x vision.width", self.width * 32)


@dataclasses.dataclass(frozen=True)
class ConvNextConfig(_StagesVision):
    """ConvNeXt; models/convnext.py."""

    kind: ClassVar[str] = "convnext"
    width: int = shape(96)
    layers: tuple[int, ...] = shape((3, 3, 9, 3), most=MOST_LAYERS)
    projection: ProjectionKind = shape("linear")
    layer_scale: float | None = shape(1e-6)  # initial gain of every branch; None: no gain
    activation: Activation = function("gelu")
    norm_eps: float | None = function(None)  # None: the model's

    def check(self, shared: SharedConfig) -> None:
        """Raises `UserError` for sizes that no tower can have."""
        self._check_stages(shared, "ConvNeXt")


@dataclasses.dataclass(frozen=True)
class FastVitConfig(_StagesVision):
    """FastViT; models/fastvit.py."""

    kind: ClassVar[str] = "fastvit"
    variant: Literal["small", "large"] = shape("small")
    layers: tuple[int, ...] = shape((2, 6, 10, 2), most=MOST_LAYERS)
    mlp_dim: int = shape(192)  # in the first stage
    projection: ProjectionKind = shape("linear")
    layer_scale: float = shape(1e-5)  # initial gain of every branch
    activation: Activation = function("gelu")
    norm_eps: float | None = function(None)  # None: the model's
    batch_norm: BatchNormKind = training("batch")

    def check(self, shared: SharedConfig) -> None:
        """Raises `UserError` for sizes that no tower can have."""
        self._check_stages(shared, "FastViT", more=True)
        check_divides("vision.width", self.width, "vision.mlp_dim", self.mlp_dim)
        if self.width % 4:
            raise UserError(f"vision.width={self.width}: a FastViT takes a multiple of 4")


@dataclasses.dataclass(frozen=True)
class TransformerTextConfig:
    """Transformer over tokens; models/text.py."""

    kind: ClassVar[str] = "transformer"
    width: int = shape(512)
    layers: int = shape(12, most=MOST_LAYERS)
    heads: int = shape(8)
    mlp_dim: int = shape(2048)
    causal: bool = function(True)
    # The position at which the caption's feature is read.
    pool: Literal["argmax", "eos", "last", "appended"] = shape("argmax")
    eos_id: int = function(49407, least=0, pool=("eos",))  # its first occurrence is read
    pad_id: int = function(0, least=0, pool=("appended",))  # masked by "appended"
    class_mask: Literal["shifted", "aligned"] = function("shifted", pool=("appended",))
    projection: ProjectionKind = shape("linear")
    activation: Activation = function("gelu")
    init: InitKind = start("openai")

    def position_rows(self, context_length: int) -> int:
        """Rows of the position table."""
        return context_length + (self.pool == "appended")

    def check(self, shared: SharedConfig) -> None:
        """Raises `UserError` for sizes that no tower can have."""
        _check_text(self.width, self.heads, self.projection, shared)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """BERT, RoBERTa, XLM-RoBERTa; models/bert.py."""

    kind: ClassVar[str] = "bert"
    causal: ClassVar[bool] = False
    width: int = shape(768)
    layers: int = shape(12, most=MOST_LAYERS)
    heads: int = shape(12)
    mlp_dim: int = shape(3072)
    pool: Literal["first", "mean", "pooler"] = shape("mean")
    pad_id: int = function(0, least=0)  # masked
    positions: int | None = shape(None)  # rows of the position table; None: as many as needed
    position_offset: int = function(0, least=0)  # RoBERTa counts from pad_id + 1, real tokens only
    token_types: int = shape(1)  # rows of the table of token types
    projection: ProjectionKind = shape("linear")
    activation: Activation = function("gelu")
    init: InitKind = start("normal")

    def position_rows(self, context_length: int) -> int:
        """Rows of the position table."""
        return self.positions or context_length + self.position_offset

    def check(self, shared: SharedConfig) -> None:
        """Raises `UserError` for sizes that no tower can have."""
        _check_text(self.width, self.heads, self.projection, shared)
        needed = shared.context_length + self.position_offset
        if self.position_rows(shared.context_length) < needed:
            raise UserError(
                f"text.positions={self.positions}: context_length={shared.context_length} needs "
                f"at least {needed}"
            )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """CoCa's caption decoder, as wide as the text tower; models/decoder.py."""

    layers: int = shape(12, most=MOST_LAYERS)
    heads: int = shape(8)
    vocab_size: int = shape(49408)


VisionConfig = VitConfig | HybridConfig | ResNetConfig | ConvNextConfig | FastVitConfig
TextConfig = TransformerTextConfig | BertConfig
# The kinds of each part; a part of one kind has no name for it.
KINDS: dict[str, dict[str, Any]] = {
    "vision": {
        cls.kind: cls
        for cls in (VitConfig, HybridConfig, ResNetConfig, ConvNextConfig, FastVitConfig)
    },
    "text": {cls.kind: cls for cls in (TransformerTextConfig, BertConfig)},
    "decoder": {"": DecoderConfig},
}


def norm_eps(tower: Any, shared: SharedConfig) -> float:
    """LayerNorm's epsilon in an image tower: its own, or the model's."""
    eps = getattr(tower, "norm_eps", None)
    return shared.norm_eps if eps is None else eps


def _stride(layers: tuple[int, ...]) -> int:
    return 2 * 2 ** len(layers)


def check_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """Raises `UserError` unless `value` divides `whole`."""
    if whole % value:
        raise UserError(f"{name}={value}: must divide {whole_name}={whole}")


def _check_multiple(image_size: int, stride: int, tower: str) -> None:
    if image_size % stride:
        raise UserError(f"image_size={image_size}: a {tower} takes a multiple of {stride}")


def _check_width(tower: str, width: int, embed_dim: int) -> None:
    if width != embed_dim:
        raise UserError(
            f"{tower}.projection='none': needs {tower}.width={width} equal to embed_dim={embed_dim}"
        )


def _check_text(width: int, heads: int, projection: str, shared: SharedConfig) -> None:
    check_divides("text.heads", heads, "text.width", width)
    if projection == "none":
        _check_width("text", width, shared.embed_dim)
