"""`ClipConfig`: everything that defines the function of a CLIP except its parameters.

It nests as the model does: fields of the image tower, of the text tower and of a caption decoder
are each a class of their own, one a kind of tower; what towers share is at the top.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Literal

from clip_jax.errors import UserError
from clip_jax.models.fields import (
    Effect,
    about_of,
    changed,
    computing,
    field,
    function,
    image,
    matters,
    resizable,
    shape,
    start,
    training,
    unknown_field,
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

    name: str = field("about", "custom", {})
    embed_dim: int = shape(512)  # width of the shared space

    image_size: int = resizable(224, tower="vision")  # pixels, square
    context_length: int = resizable(77, tower="text")  # tokens
    vocab_size: int = shape(49408, tower="text")

    norm_eps: float = function(1e-5)  # LayerNorm
    logit_scale_init: float = start(2.6592600)  # ln(1 / 0.07), stored as a logarithm
    logit_bias_init: float | None = start(None)  # None: no bias (softmax loss)

    dtype: Literal["float32", "bfloat16"] = computing("float32")  # parameters are float32
    # Scans one compiled block: faster to compile, parameters stacked.
    scan_layers: bool = field("layout", False, {})
    # The backward pass recomputes activations, from the most memory to the least; models/remat.py.
    remat: Literal["none", "dots", "qkv", "full", "offload"] = computing("none")
    attention: Literal["auto", "xla", "cudnn"] = computing("auto")  # auto: cuDNN if available

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
        _check_divides("vision.heads", self.heads, "vision.width", self.width)
        if self.pool == "attention":
            _check_divides("vision.pool_heads", self.pool_heads, "vision.width", self.width)
        if self.pool == "queries":
            _check_divides("vision.pool_heads", self.pool_heads, "embed_dim", shared.embed_dim)
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
    naflex: bool = field("about", False, {})  # SigLIP 2 NaFlex at one square size; only on disk

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
        _check_divides("vision.heads", self.heads, "32 x vision.width", self.width * 32)


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
        _check_divides("vision.width", self.width, "vision.mlp_dim", self.mlp_dim)
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


@dataclasses.dataclass(frozen=True)
class ClipConfig(SharedConfig):
    """Everything that defines the function of a CLIP except its parameters and vocabulary."""

    vision: VisionConfig = dataclasses.field(default_factory=VitConfig)
    text: TextConfig = dataclasses.field(default_factory=TransformerTextConfig)
    decoder: DecoderConfig | None = None

    @property
    def vision_grid(self) -> int:
        """Side of the patch grid (ViT) or of the last feature map."""
        return self.vision.grid(self.image_size)

    @property
    def position_rows(self) -> int:
        """Number of rows of the text tower's position table."""
        return self.text.position_rows(self.context_length)

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dictionary that `ClipConfig.from_dict` reads back."""
        values = dataclasses.asdict(self)
        for part in ("vision", "text"):
            values[part] = {"kind": getattr(self, part).kind, **values[part]}
        return values

    @classmethod
    def from_dict(cls, values: Any) -> "ClipConfig":
        """Inverts `to_dict`. Raises `UserError` for an unknown field or invalid value."""
        if not isinstance(values, dict):
            raise UserError(f"the architecture is {values!r}: must be an object of fields")
        return override(cls(), **values)


def norm_eps(tower: Any, shared: SharedConfig) -> float:
    """LayerNorm's epsilon in an image tower: its own, or the model's."""
    eps = getattr(tower, "norm_eps", None)
    return shared.norm_eps if eps is None else eps


def _stride(layers: tuple[int, ...]) -> int:
    return 2 * 2 ** len(layers)


def _check_divides(name: str, value: int, whole_name: str, whole: int) -> None:
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
    _check_divides("text.heads", heads, "text.width", width)
    if projection == "none":
        _check_width("text", width, shared.embed_dim)


def override(config: ClipConfig, **changes: Any) -> ClipConfig:
    """Returns `config` with some fields changed.

    A part (`vision`, `text`, `decoder`) is changed by a dict of its fields, or replaced by one of
    its classes; a dict with another "kind" starts from the defaults of that kind. Raises
    `UserError` for an invalid value, or an unknown field (with the nearest known one).
    """
    known = [declared.name for declared in dataclasses.fields(config)]
    for key in changes:
        if key not in known:
            inner = [f"{part}.{name}" for part in KINDS for name in part_fields(part)]
            raise unknown_field(key, [*known, *inner])
    parts = {
        part: _part(part, getattr(config, part), changes[part]) for part in KINDS if part in changes
    }
    result: ClipConfig = dataclasses.replace(changed(config, changes), **parts)
    if min(result.image_std) <= 0:
        raise UserError(f"image_std={result.image_std}: must be above 0")
    result.vision.check(result)
    result.text.check(result)
    if result.decoder is not None:
        _check_divides("decoder.heads", result.decoder.heads, "text.width", result.text.width)
    return result


def part_fields(part: str) -> list[str]:
    """The fields of a part of any kind, each once; "kind" first if there are kinds."""
    names = [field.name for cls in KINDS[part].values() for field in dataclasses.fields(cls)]
    return list(dict.fromkeys(["kind", *names] if len(KINDS[part]) > 1 else names))


def _part(part: str, now: Any, value: Any) -> Any:
    """A tower or the decoder with `value`, a dict of fields, over what it is now."""
    kinds = KINDS[part]
    if value is None and part == "decoder":
        return None
    if isinstance(value, tuple(kinds.values())):
        return changed(value, vars(value), f"{part}.")
    if not isinstance(value, Mapping):
        raise UserError(f"{part}={value!r}: must be a dict of fields, such as {{'width': 64}}")
    changes = dict(value)
    kind = changes.pop("kind", None if len(kinds) > 1 else "") or getattr(now, "kind", "")
    if kind not in kinds:
        raise UserError(f"{part}.kind={kind!r}: choose one of {', '.join(kinds)}")
    cls = kinds[kind]
    known = [declared.name for declared in dataclasses.fields(cls)]
    for key in changes:
        if key in known:
            continue
        others = [name for name, other in kinds.items() if key in other.__dataclass_fields__]
        hint = f"a {kind} has none; {' and '.join(others)} do" if others else ""
        raise unknown_field(f"{part}.{key}", [f"{part}.{name}" for name in known], hint)
    return changed(now if type(now) is cls else cls(), changes, f"{part}.")


def image_fields(config: SharedConfig) -> dict[str, Any]:
    """The fields that say how images are prepared."""
    declared = {field.name: about_of(field).effect for field in dataclasses.fields(SharedConfig)}
    names = ["image_size", *(name for name, effect in declared.items() if effect == "image")]
    return {name: getattr(config, name) for name in names}


def effective_fields(config: ClipConfig, effects: tuple[Effect, ...]) -> dict[str, Any]:
    """{"vision.width": value} of the fields with one of these effects, as far as they matter."""
    found = {
        path: value
        for path, value, effect, used in _walk(config)
        if used and (effect in effects or effect is None)
    }
    if "vision.norm_eps" in found:
        found["vision.norm_eps"] = norm_eps(config.vision, config)
    if "text.positions" in found:
        found["text.positions"] = config.position_rows
    if "shape" in effects:
        found["logit_bias"] = config.logit_bias_init is not None
    return found


def _walk(config: ClipConfig) -> Iterator[tuple[str, Any, Effect | None, bool]]:
    """Yields (path, value, effect, whether it matters) of every field; kinds have no effect."""
    for declared in dataclasses.fields(SharedConfig):
        effect = about_of(declared).effect
        yield declared.name, getattr(config, declared.name), effect, True
    for part in KINDS:
        values = getattr(config, part)
        yield f"{part}.kind", getattr(values, "kind", values is not None), None, True
        for declared in dataclasses.fields(values) if values is not None else ():
            value, effect = getattr(values, declared.name), about_of(declared).effect
            yield f"{part}.{declared.name}", value, effect, matters(values, declared)


def differences(
    ours: ClipConfig,
    theirs: ClipConfig,
    effects: tuple[Effect, ...],
    towers: Collection[str] = tuple(KINDS),
) -> dict[str, tuple[Any, Any]]:
    """{"vision.width": (ours, theirs)} of the fields with these effects that differ and matter.

    Only the fields of some `towers` are compared, and the shared ones that they use.
    """
    a, b = effective_fields(ours, effects), effective_fields(theirs, effects)
    return {
        path: (a.get(path), b.get(path))
        for path in dict.fromkeys([*a, *b])
        if a.get(path) != b.get(path) and _is_of(path, towers)
    }


def _is_of(path: str, towers: Collection[str]) -> bool:
    part, dot, _ = path.partition(".")
    if dot or set(towers) >= KINDS.keys():
        return part in towers or not dot
    shared = SharedConfig.__dataclass_fields__.get(path)
    return shared is not None and about_of(shared).tower in (*towers, None)
