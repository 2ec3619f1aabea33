"""Names of timm's FastViT, as open_clip stores it under `visual.trunk.`."""

from collections.abc import Iterator

from clip_jax.models.config import FastVitConfig
from clip_jax.models.fastvit import ATTENTION_FROM, entry_squeeze
from clip_jax.weights.layouts.timm_layers import (
    batch_norm,
    convolution,
    convolution_with_norm,
    projection,
)
from clip_jax.weights.rules.table import Rule, affine, under


def _conv_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return convolution_with_norm(theirs, f"{ours}/conv", f"{ours}/norm")


def _squeeze_excite(theirs: str, ours: str) -> Iterator[Rule]:
    yield from convolution(f"{theirs}.fc1", f"{ours}/squeeze")
    yield from convolution(f"{theirs}.fc2", f"{ours}/excite")


def _branches(pointwise: bool, identity: bool) -> Iterator[Rule]:
    yield from _conv_norm("conv_kxk.0", "convolution")
    if pointwise:
        yield from _conv_norm("conv_scale", "pointwise")
    if identity:
        yield from batch_norm("identity", "input_norm")


def _entry(squeeze: int) -> Iterator[Rule]:
    yield from _conv_norm("proj.0.large_conv", "large")
    yield from _conv_norm("proj.0.small_conv", "small")
    if squeeze:
        yield from _squeeze_excite("proj.0.se", "squeeze_excite")
    yield from under(_branches(pointwise=False, identity=True), "proj.1.", "mix/")


def _gain(theirs: str, ours: str) -> Rule:
    return Rule(f"{theirs}.gamma", ours, "matrix")  # (C, 1, 1) <-> (1, 1, C) reverses all axes


def _block(attention: bool, variant: str) -> Iterator[Rule]:
    if attention:
        norm = batch_norm if variant == "small" else affine
        yield from norm("norm", "mixer_norm")
        yield Rule("token_mixer.qkv.weight", "mixer/query_key_value", "into_heads")
        yield Rule("token_mixer.proj.weight", "mixer/out", "out_of_heads")
        yield Rule("token_mixer.proj.bias", "mixer/out_bias")
        yield _gain("layer_scale_1", "mixer_scale")
        yield _gain("layer_scale_2", "mlp_scale")
    else:
        yield from batch_norm("token_mixer.norm.identity", "mixer_norm")
        mixer = _branches(pointwise=True, identity=True)
        yield from under(mixer, "token_mixer.mixer.", "mixer/")
        yield _gain("token_mixer.layer_scale", "mixer_scale")
        yield _gain("layer_scale", "mlp_scale")
    yield from _conv_norm("mlp.conv", "mlp_convolution")
    yield from convolution("mlp.fc1", "mlp_in")
    yield from convolution("mlp.fc2", "mlp_out")


def _trunk(config: FastVitConfig) -> Iterator[Rule]:
    small = config.variant == "small"
    for index in range(3):
        pointwise = small and index < 2
        stem = _branches(pointwise, identity=index == 2)
        yield from under(stem, f"stem.{index}.", f"stem{index + 1}/")
    for stage, depth in enumerate(config.layers):
        theirs, ours = f"stages.{stage}.", f"stage{stage + 1}_"
        attention = stage >= ATTENTION_FROM
        if stage:
            entry = _entry(entry_squeeze(config, stage))
            yield from under(entry, f"{theirs}downsample.", f"{ours}entry/")
        if attention:
            yield from convolution(f"{theirs}pos_emb.pos_enc", f"{ours}positions")
        for index in range(depth):
            block = _block(attention, config.variant)
            yield from under(block, f"{theirs}blocks.{index}.", f"{ours}block{index}/")
    final = _branches(pointwise=True, identity=False)
    yield from under(final, "final_conv.", "final/")
    yield from _squeeze_excite("final_conv.se", "final/squeeze_excite")
    if config.projection == "linear_bias":
        yield Rule("head.fc.weight", "projection", "matrix")
        yield Rule("head.fc.bias", "projection_bias")


def fastvit_rules(config: FastVitConfig) -> list[Rule]:
    """Rules of the whole image tower; paths from `vision/`, names from `visual.`."""
    return [*under(_trunk(config), "visual.trunk.", "vision/"), *projection(config.projection)]
