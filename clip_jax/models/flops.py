"""How much arithmetic a model needs, by formula: what utilisation is measured against.

Counted are matrix products and convolutions, two operations a multiply-add. A formula and not the
compiler's own count, which sees the body of a scan once and counts recomputation as work.
"""

from __future__ import annotations

from clip_jax.models.architectures import ClipConfig

# Peak dense bfloat16 operations a second of one device, by `jax.Device.device_kind`, from the
# vendors' data sheets. A kind that is not here has an unknown peak, and utilisation is null.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def _transformer(layers: int, width: int, mlp_dim: int, tokens: int) -> float:
    per_token = 2 * (4 * width * width + 2 * width * mlp_dim)
    attention = 4 * tokens * width  # queries·keys and weights·values, a token
    return layers * tokens * (per_token + attention)


def _vit(config: ClipConfig) -> float:
    assert isinstance(config.vision_layers, int)
    patches = config.vision_grid**2
    embedding = 2 * patches * config.patch_size**2 * 3 * config.vision_width
    blocks = _transformer(
        config.vision_layers, config.vision_width, config.vision_mlp_dim, patches + 1
    )
    return embedding + blocks + 2 * config.vision_width * config.embed_dim


def _resnet(config: ClipConfig) -> float:
    assert not isinstance(config.vision_layers, int)
    width, side = config.vision_width, config.image_size // 2
    half = width // 2
    total = 2.0 * side**2 * 9 * (3 * half + half * half + half * width)
    side, inputs = side // 2, width
    for stage, depth in enumerate(config.vision_layers):
        planes = width * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            total += 2.0 * side**2 * (inputs * planes + 9 * planes * planes)
            side //= stride
            total += 2.0 * side**2 * planes * 4 * planes
            if not block:
                total += 2.0 * side**2 * inputs * 4 * planes
            inputs = 4 * planes
    tokens = side**2 + 1
    # Attention pool: one query, keys and values of every token, one output.
    total += 2.0 * inputs * (inputs * (1 + 2 * tokens) + 2 * tokens + config.embed_dim)
    return total


def image_flops(config: ClipConfig) -> float:
    """Forward operations of one image."""
    return _vit(config) if config.vision_kind == "vit" else _resnet(config)


def text_flops(config: ClipConfig) -> float:
    """Forward operations of one text of full length."""
    blocks = _transformer(
        config.text_layers, config.text_width, config.text_mlp_dim, config.context_length
    )
    return blocks + 2 * config.text_width * config.embed_dim


def step_flops(config: ClipConfig, batch_size: int) -> float:
    """Operations of one training step: forward, and twice that backward; the loss matrix three
    times."""
    loss = 3 * 2 * batch_size**2 * config.embed_dim
    return 3 * batch_size * (image_flops(config) + text_flops(config)) + loss


def peak_flops(device_kind: str) -> float | None:
    """Peak operations a second of one device, or None where it is not known."""
    return PEAK_FLOPS.get(device_kind)
