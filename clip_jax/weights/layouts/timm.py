"""Names of timm's image towers, as open_clip stores them under `visual.trunk.`: Transformers
(SigLIP, EVA-02, Perception Encoder), ViTamin and MobileCLIP-B, ConvNeXt, FastViT.

Matrices are (out, in), convolutions (out, in, h, w). open_clip's projection after the trunk is
under `visual.head.`; "linear_bias" is the trunk's own head.
"""

from collections.abc import Callable, Iterator

from clip_jax.models.fastvit import ATTENTION_FROM, entry_squeeze
from clip_jax.models.hybrid import INVERTED_DEPTHS
from clip_jax.models.kinds import (
    ConvNextConfig,
    FastVitConfig,
    HybridConfig,
    ResNetConfig,
    VisionConfig,
    VitConfig,
)
from clip_jax.weights.rules.table import (
    Rule,
    affine,
    attention_out,
    batch_norm,
    blocks,
    linear,
    under,
)

KERNEL, BIAS = "attention/query_key_value", "attention/query_key_value_bias"


def _convolution(theirs: str, ours: str) -> tuple[Rule, ...]:
    kernel = Rule(f"{theirs}.weight", f"{ours}/kernel", "convolution")
    return kernel, Rule(f"{theirs}.bias", f"{ours}/bias")


def _convolution_with_norm(theirs: str, ours: str, norm: str) -> tuple[Rule, ...]:
    """A convolution without a bias (`conv`) and its batch normalisation (`bn`)."""
    kernel = Rule(f"{theirs}.conv.weight", f"{ours}/kernel", "convolution")
    return kernel, *batch_norm(f"{theirs}.bn", norm)


# Blocks of Transformers: query, key and value are one `qkv`, or three `q_proj`, `k_proj`, `v_proj`.


def _attention(config: VitConfig | HybridConfig) -> Iterator[Rule]:
    """Rules for query, key, value and output of one block, under `attn.`."""
    if config.inner_norm:  # EVA-02 B and L have three matrices, and keys without a bias
        for index, name in enumerate("qkv"):
            part = (slice(None), index)
            yield Rule(f"attn.{name}_proj.weight", KERNEL, "into_heads", part)
        yield Rule("attn.q_proj.bias", BIAS, "flat", (0,))
        yield Rule("attn.v_proj.bias", BIAS, "flat", (1,))
        yield from affine("attn.norm", "attention/inner_norm")
    else:
        yield Rule("attn.qkv.weight", KERNEL, "into_heads")
        if config.key_bias:
            yield Rule("attn.qkv.bias", BIAS, "flat")
        else:
            yield Rule("attn.q_bias", BIAS, "flat", (0,))
            yield Rule("attn.v_bias", BIAS, "flat", (1,))
    yield from attention_out("attn.proj")


# Kind of MLP -> (their name, our name) of its layers.
_LAYERS = {
    "plain": (("fc1", "in"), ("fc2", "out")),
    "swiglu": (("fc1_g", "gate"), ("fc1_x", "in"), ("fc2", "out")),
    "geglu": (("w0", "gate"), ("w1", "in"), ("w2", "out")),
}


def _mlp(kind: str) -> Iterator[Rule]:
    for theirs, ours in _LAYERS[kind]:
        yield from linear(f"mlp.{theirs}", f"mlp/{ours}")
    if kind != "plain":
        yield from affine("mlp.norm", "mlp/norm")


def _transformer(config: VitConfig | HybridConfig, scanned: bool) -> Iterator[Rule]:
    """Rules of what all Transformers have, under `visual.trunk.`."""
    tower: list[Rule] = []
    if config.class_token:
        tower.append(Rule("cls_token", "class_token", "two_more_axes"))
    if config.projection == "linear_bias":
        tower += [Rule("head.weight", "projection", "matrix"), Rule("head.bias", "projection_bias")]
    block = [
        *affine("norm1", "attention_norm"),
        *_attention(config),
        *affine("norm2", "mlp_norm"),
        *_mlp(config.mlp),
    ]
    yield from tower
    yield from blocks(block, "blocks.{}.", "transformer", config.layers, scanned)


def _attention_pool() -> Iterator[Rule]:
    yield Rule("latent", "probe", "one_more_axis")
    yield Rule("q.weight", KERNEL, "into_heads", (slice(None), 0))
    yield Rule("kv.weight", KERNEL, "into_heads", (slice(None), slice(1, 3)))
    yield Rule("q.bias", BIAS, "flat", (0,))
    yield Rule("kv.bias", BIAS, "flat", (slice(1, 3),))
    yield from attention_out("proj")
    yield from affine("norm", "mlp_norm")
    yield from _mlp("plain")


def _vit(config: VitConfig, scanned: bool) -> Iterator[Rule]:
    prefix = int(config.class_token)
    yield Rule("patch_embed.proj.weight", "patch_embedding", "convolution")
    yield Rule("pos_embed", "positions", "one_more_axis", resize="grid", prefix=prefix)
    yield from affine("norm", "post_norm")
    if config.patch_bias:
        yield Rule("patch_embed.proj.bias", "patch_embedding_bias")
    if config.pre_norm:
        yield from affine("norm_pre", "pre_norm")
    if config.pool == "attention":
        yield from under(_attention_pool(), "attn_pool.", "attention_pool/")
    yield from _transformer(config, scanned)


def _convolution_stem() -> Iterator[Rule]:
    for index in (0, 1):
        yield from _convolution_with_norm(f"{index}", f"conv{index + 1}", f"norm{index + 1}")
    yield from _convolution("2.conv", "conv3")


def _inverted_stem() -> Iterator[Rule]:
    yield from _convolution("stem.conv1", "conv1")
    yield from affine("stem.norm1", "norm")
    yield from _convolution("stem.conv2", "conv2")
    for stage, depth in enumerate(INVERTED_DEPTHS):
        for index in range(depth):
            block = [
                *affine("pre_norm", "norm"),
                *_convolution("conv1_1x1", "widen"),
                *_convolution("conv2_kxk", "depthwise"),
                *_convolution("conv3_1x1", "narrow"),
            ]
            if stage and not index:  # the first stage is as wide as the stem
                block += _convolution("shortcut.expand", "shortcut")
            yield from under(block, f"stages.{stage}.{index}.", f"stage{stage + 1}_block{index}/")
    yield from affine("pool.norm", "out_norm")
    yield from _convolution("pool.proj", "out")


def _hybrid(config: HybridConfig, scanned: bool) -> Iterator[Rule]:
    stem = _inverted_stem() if config.stem == "inverted" else _convolution_stem()
    yield from under(stem, "patch_embed.backbone.", "stem/")
    yield from affine("fc_norm" if config.post_norm == "after_pool" else "norm", "post_norm")
    if config.positions:
        yield Rule("pos_embed", "positions", "one_more_axis", resize="grid")
    yield from _transformer(config, scanned)


def _convnext(config: ConvNextConfig, scanned: bool) -> Iterator[Rule]:
    yield from _convolution("stem.0", "stem")
    yield from affine("stem.1", "stem_norm")
    yield from affine("head.norm", "post_norm")
    block = [*_convolution("conv_dw", "depthwise"), *affine("norm", "norm"), *_mlp("plain")]
    if config.layer_scale is not None:
        block.append(Rule("gamma", "mlp_scale"))
    for stage, depth in enumerate(config.layers):
        theirs, ours = f"stages.{stage}", f"stage{stage + 1}"
        if stage:
            yield from affine(f"{theirs}.downsample.0", f"{ours}_downsample_norm")
            yield from _convolution(f"{theirs}.downsample.1", f"{ours}_downsample")
        for index in range(depth):
            yield from under(block, f"{theirs}.blocks.{index}.", f"{ours}_block{index}/")


def _conv_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return _convolution_with_norm(theirs, f"{ours}/conv", f"{ours}/norm")


def _squeeze_excite(theirs: str, ours: str) -> Iterator[Rule]:
    yield from _convolution(f"{theirs}.fc1", f"{ours}/squeeze")
    yield from _convolution(f"{theirs}.fc2", f"{ours}/excite")


def _branches(pointwise: bool, identity: bool) -> Iterator[Rule]:
    yield from _conv_norm("conv_kxk.0", "convolution")
    if pointwise:
        yield from _conv_norm("conv_scale", "pointwise")
    if identity:
        yield from batch_norm("identity", "input_norm")


def _fastvit_entry(squeeze: int) -> Iterator[Rule]:
    yield from _conv_norm("proj.0.large_conv", "large")
    yield from _conv_norm("proj.0.small_conv", "small")
    if squeeze:
        yield from _squeeze_excite("proj.0.se", "squeeze_excite")
    yield from under(_branches(pointwise=False, identity=True), "proj.1.", "mix/")


def _gain(theirs: str, ours: str) -> Rule:
    return Rule(f"{theirs}.gamma", ours, "matrix")  # (C, 1, 1) <-> (1, 1, C) reverses all axes


def _fastvit_block(attention: bool, variant: str) -> Iterator[Rule]:
    if attention:
        norm = batch_norm if variant == "small" else affine
        yield from norm("norm", "mixer_norm")
        yield Rule("token_mixer.qkv.weight", "mixer/query_key_value", "into_heads")
        yield from attention_out("token_mixer.proj", "mixer")
        yield _gain("layer_scale_1", "mixer_scale")
        yield _gain("layer_scale_2", "mlp_scale")
    else:
        yield from batch_norm("token_mixer.norm.identity", "mixer_norm")
        mixer = _branches(pointwise=True, identity=True)
        yield from under(mixer, "token_mixer.mixer.", "mixer/")
        yield _gain("token_mixer.layer_scale", "mixer_scale")
        yield _gain("layer_scale", "mlp_scale")
    yield from _conv_norm("mlp.conv", "mlp_convolution")
    yield from _convolution("mlp.fc1", "mlp_in")
    yield from _convolution("mlp.fc2", "mlp_out")


def _fastvit(config: FastVitConfig, scanned: bool) -> Iterator[Rule]:
    small = config.variant == "small"
    for index in range(3):
        stem = _branches(small and index < 2, identity=index == 2)
        yield from under(stem, f"stem.{index}.", f"stem{index + 1}/")
    for stage, depth in enumerate(config.layers):
        theirs, ours = f"stages.{stage}.", f"stage{stage + 1}_"
        attention = stage >= ATTENTION_FROM
        if stage:
            entry = _fastvit_entry(entry_squeeze(config, stage))
            yield from under(entry, f"{theirs}downsample.", f"{ours}entry/")
        if attention:
            yield from _convolution(f"{theirs}pos_emb.pos_enc", f"{ours}positions")
        for index in range(depth):
            block = _fastvit_block(attention, config.variant)
            yield from under(block, f"{theirs}blocks.{index}.", f"{ours}block{index}/")
    final = _branches(pointwise=True, identity=False)
    yield from under(final, "final_conv.", "final/")
    yield from _squeeze_excite("final_conv.se", "final/squeeze_excite")
    if config.projection == "linear_bias":
        yield Rule("head.fc.weight", "projection", "matrix")
        yield Rule("head.fc.bias", "projection_bias")


# open_clip's projection after the trunk.
_HEADS = {
    "linear": (Rule("proj.weight", "projection", "matrix"),),
    "mlp_bias": (
        Rule("mlp.fc1.weight", "projection_in", "matrix"),
        Rule("mlp.fc1.bias", "projection_in_bias"),
        Rule("mlp.fc2.weight", "projection_out", "matrix"),
    ),
}
_TRUNKS: dict[str, Callable[..., Iterator[Rule]]] = {
    "vit": _vit,
    "hybrid": _hybrid,
    "convnext": _convnext,
    "fastvit": _fastvit,
}


def has_timm_tower(tower: VisionConfig) -> bool:
    """Whether open_clip takes an image tower from timm."""
    if isinstance(tower, VitConfig):
        native = tower.class_token and not tower.patch_bias
        return not (native and tower.projection != "linear_bias" and tower.rope == "none")
    return not isinstance(tower, ResNetConfig)


def timm_rules(config: VisionConfig, scanned: bool) -> Iterator[Rule]:
    """Rules of the whole image tower; paths from `vision/`, names from `visual.`."""
    trunk = _TRUNKS[config.kind](config, scanned)
    yield from under(trunk, "visual.trunk.", "vision/")
    yield from under(_HEADS.get(getattr(config, "projection", ""), ()), "visual.head.", "vision/")
