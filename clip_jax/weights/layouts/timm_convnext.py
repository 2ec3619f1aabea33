"""Names of timm's ConvNeXt, as open_clip stores it under `visual.trunk.`, its projection under
`visual.head.`."""

from collections.abc import Iterator

from clip_jax.models.config import ConvNextConfig
from clip_jax.weights.layouts.timm_layers import convolution, projection
from clip_jax.weights.rules.table import Rule, affine, linear, under


def _block(layer_scale: bool) -> Iterator[Rule]:
    yield from convolution("conv_dw", "depthwise")
    yield from affine("norm", "norm")
    yield from linear("mlp.fc1", "mlp/in")
    yield from linear("mlp.fc2", "mlp/out")
    if layer_scale:
        yield Rule("gamma", "mlp_scale")


def convnext_rules(config: ConvNextConfig) -> list[Rule]:
    """Rules of the whole image tower; paths from `vision/`, names from `visual.`."""
    trunk = [
        *convolution("stem.0", "stem"),
        *affine("stem.1", "stem_norm"),
        *affine("head.norm", "post_norm"),
    ]
    for stage, depth in enumerate(config.layers):
        theirs, ours = f"stages.{stage}", f"stage{stage + 1}"
        if stage:
            trunk += affine(f"{theirs}.downsample.0", f"{ours}_downsample_norm")
            trunk += convolution(f"{theirs}.downsample.1", f"{ours}_downsample")
        for index in range(depth):
            block = _block(config.layer_scale is not None)
            trunk += under(block, f"{theirs}.blocks.{index}.", f"{ours}_block{index}/")
    return [*under(trunk, "visual.trunk.", "vision/"), *projection(config.projection)]
