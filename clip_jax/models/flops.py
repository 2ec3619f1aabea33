"""How much arithmetic a model needs, by formula: what utilisation is measured against.

Counted are matrix products and convolutions, two operations a multiply-add. A formula and not the
compiler's own count, which sees the body of a scan once and counts recomputation as work.
"""

from __future__ import annotations

from clip_jax.models.config import ClipConfig

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


def _attention(queries: int, keys: int, width: int, key_width: int | None = None) -> float:
    """One attention: `queries` tokens attend to `keys` tokens of `key_width`."""
    projections = 2 * (2 * queries * width * width + 2 * keys * width * (key_width or width))
    return projections + 4 * queries * keys * width


def _mlp(tokens: int, width: int, mlp_dim: int, matrices: int = 2) -> float:
    return 2 * tokens * matrices * width * mlp_dim


def _project(kind: str, width: int, hidden: int, embed_dim: int) -> float:
    if kind == "none":
        return 0
    if kind.startswith("mlp"):
        return 2 * hidden * (width + embed_dim)
    return 2 * width * embed_dim


def _vit(config: ClipConfig) -> float:
    assert isinstance(config.vision_layers, int)
    width, tokens = config.vision_width, config.vision_tokens
    matrices = 3 if config.vision_mlp == "swiglu" else 2
    total = 2.0 * config.vision_grid**2 * config.patch_size**2 * 3 * width
    total += config.vision_layers * _attention(tokens, tokens, width)
    total += config.vision_layers * _mlp(tokens, width, config.vision_mlp_dim, matrices)
    if config.vision_pool == "attention":
        total += _attention(1, tokens, width) + _mlp(1, width, config.vision_pool_mlp_dim)
    elif config.vision_pool == "queries":
        total += _attention(config.vision_pool_queries, tokens, config.embed_dim, width)
        width = config.embed_dim
    return total + _project(config.vision_projection, width, 2 * config.embed_dim, config.embed_dim)


def _convnext(config: ClipConfig) -> float:
    assert not isinstance(config.vision_layers, int)
    side, channels = config.image_size // 4, config.vision_width
    total = 2.0 * side**2 * 16 * 3 * channels
    for stage, depth in enumerate(config.vision_layers):
        if stage:
            side //= 2
            total += 2.0 * side**2 * 4 * channels * 2 * channels
            channels *= 2
        total += depth * 2.0 * side**2 * (49 * channels + 8 * channels**2)
    hidden = 2 * config.embed_dim
    return total + _project(config.vision_projection, channels, hidden, config.embed_dim)


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


IMAGE_FLOPS = {"vit": _vit, "resnet": _resnet, "convnext": _convnext}


def image_flops(config: ClipConfig) -> float:
    """Forward operations of one image."""
    return IMAGE_FLOPS[config.vision_kind](config)


def text_flops(config: ClipConfig) -> float:
    """Forward operations of one text of full length."""
    width, tokens = config.text_width, config.context_length + (config.text_pool == "appended")
    block = _attention(tokens, tokens, width) + _mlp(tokens, width, config.text_mlp_dim)
    hidden = (width + config.embed_dim) // 2
    projection = _project(config.text_projection, width, hidden, config.embed_dim)
    if config.text_pool == "pooler":
        projection += 2 * width * width
    return config.text_layers * block + projection


def caption_flops(config: ClipConfig) -> float:
    """Forward operations of the caption decoder on one pair, text of full length."""
    width, tokens = config.text_width, config.context_length
    if config.vision_pool == "queries":
        memory, memory_width = config.vision_pool_queries - 1, config.embed_dim
    else:
        memory, memory_width = config.vision_grid**2, config.vision_width
    layer = _attention(tokens, tokens, width) + _attention(tokens, memory, width, memory_width)
    layer += 2 * _mlp(tokens, width, 4 * width)
    if not config.decoder_layers:
        return 0.0
    return config.decoder_layers * layer + 2.0 * tokens * width * config.decoder_vocab_size


def step_flops(config: ClipConfig, batch_size: int) -> float:
    """Operations of one training step: forward, and twice that backward; the loss matrix three
    times."""
    loss = 3 * 2 * batch_size**2 * config.embed_dim
    return 3 * batch_size * (image_flops(config) + text_flops(config)) + loss


def peak_flops(device_kind: str) -> float | None:
    """Peak operations a second of one device, or None where it is not known."""
    return PEAK_FLOPS.get(device_kind)
