"""Names of timm's ViTamin and of MobileCLIP-B's tower, as open_clip stores them under
`visual.trunk.`."""

from collections.abc import Iterator

from clip_jax.models.config import HybridConfig
from clip_jax.models.hybrid import INVERTED_DEPTHS
from clip_jax.weights.layouts.timm_layers import convolution, convolution_with_norm, projection
from clip_jax.weights.rules.table import Rule, affine, blocks, linear, under


def _block(gated: bool) -> Iterator[Rule]:
    yield from affine("norm1", "attention_norm")
    yield Rule("attn.qkv.weight", "attention/query_key_value", "into_heads")
    yield Rule("attn.qkv.bias", "attention/query_key_value_bias", "flat")
    yield Rule("attn.proj.weight", "attention/out", "out_of_heads")
    yield Rule("attn.proj.bias", "attention/out_bias")
    yield from affine("norm2", "mlp_norm")
    if gated:
        yield from affine("mlp.norm", "mlp/norm")
        yield from linear("mlp.w0", "mlp/gate")
        yield from linear("mlp.w1", "mlp/in")
        yield from linear("mlp.w2", "mlp/out")
    else:
        yield from linear("mlp.fc1", "mlp/in")
        yield from linear("mlp.fc2", "mlp/out")


def _convolutions() -> Iterator[Rule]:
    for index in (0, 1):
        yield from convolution_with_norm(f"{index}", f"conv{index + 1}", f"norm{index + 1}")
    yield from convolution("2.conv", "conv3")


def _inverted() -> Iterator[Rule]:
    yield from convolution("stem.conv1", "conv1")
    yield from affine("stem.norm1", "norm")
    yield from convolution("stem.conv2", "conv2")
    for stage, depth in enumerate(INVERTED_DEPTHS):
        for index in range(depth):
            block = [
                *affine("pre_norm", "norm"),
                *convolution("conv1_1x1", "widen"),
                *convolution("conv2_kxk", "depthwise"),
                *convolution("conv3_1x1", "narrow"),
            ]
            if stage and not index:  # the first stage is as wide as the stem
                block += convolution("shortcut.expand", "shortcut")
            yield from under(block, f"stages.{stage}.{index}.", f"stage{stage + 1}_block{index}/")
    yield from affine("pool.norm", "out_norm")
    yield from convolution("pool.proj", "out")


def hybrid_rules(config: HybridConfig, scanned: bool) -> list[Rule]:
    """Rules of the whole image tower; paths from `vision/`, names from `visual.`."""
    stem = _inverted() if config.stem == "inverted" else _convolutions()
    norm = "fc_norm" if config.post_norm == "after_pool" else "norm"
    trunk = [*under(stem, "patch_embed.backbone.", "stem/"), *affine(norm, "post_norm")]
    if config.positions:
        trunk.append(Rule("pos_embed", "positions", "one_more_axis", resize="grid"))
    if config.class_token:
        trunk.append(Rule("cls_token", "class_token", "two_more_axes"))
    if config.projection == "linear_bias":
        trunk += [
            Rule("head.weight", "projection", "matrix"),
            Rule("head.bias", "projection_bias"),
        ]
    return [
        *under(trunk, "visual.trunk.", "vision/"),
        *blocks(
            _block(config.mlp == "geglu"),
            "visual.trunk.blocks.{}.",
            "vision/transformer",
            config.layers,
            scanned,
        ),
        *projection(config.projection),
    ]
