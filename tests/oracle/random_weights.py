"""A random value in every parameter and running statistic of a torch model, and random inputs."""

import math
import re
from typing import Any

import numpy as np
import torch
from families import Family
from torch import nn

LN_100 = math.log(100)
NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
MAPS = (nn.Linear, nn.modules.conv._ConvNd)
# Queries and keys of ResNet's pooling, and the last gain of its blocks. At full scale random blocks
# are chaotic where trained ones are not: torch's own bfloat16 outputs then have a cosine of 0.96.
CALMER = re.compile(r"attnpool\.[qk]_proj|layer\d.*\.bn3\.weight$")
FIRST_WORD = 150  # smaller ids are kept for starts, ends and padding


def randomize(model: nn.Module, seed: int) -> None:
    """Fills the model: nothing stays 0 or 1, and activations stay of order one through depth."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(_value(module, name, noise))
        for name, parameter in model.named_parameters():
            if CALMER.search(name):
                parameter.mul_(0.4)


def _value(module: nn.Module, name: str, noise: torch.Tensor) -> torch.Tensor:
    if name == "logit_scale":
        return torch.full_like(noise, LN_100)
    if name == "logit_bias":
        return noise - 9.0
    if isinstance(module, NORMS):
        return 0.3 * noise + (name == "weight")
    if name.endswith("bias"):
        return 0.3 * noise
    if isinstance(module, MAPS) or name.endswith("proj_weight"):
        return 1.1 * noise / math.sqrt(noise[0].numel())
    if name in ("proj", "text_projection"):  # (in, out)
        return noise / math.sqrt(len(noise))
    return 0.5 * noise  # tables, tokens, layer scales


def keep_off_kinks(tower: nn.Module, seed: int) -> None:
    """Offsets of batch norms so far from 0 that every ReLU is clearly on or off, by channel.

    For gradients: a unit within rounding of 0 is on in one implementation and off in another, and
    a few such units in millions change a random ResNet's gradient by percents, torch's float32
    against its float64 as well.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    for norm in tower.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            shape = norm.weight.shape
            noise, more = (torch.rand(shape, generator=generator) for _ in range(2))
            sign = torch.randn(shape, generator=generator).sign()
            on = torch.arange(len(norm.weight)) % 2 * 2 - 1
            with torch.no_grad():
                norm.weight.copy_(sign * (0.7 + 0.3 * noise))
                norm.bias.copy_(on * (4 + more))


def settle_batch_norm(tower: nn.Module, images: torch.Tensor, seed: int) -> None:
    """Running statistics near those of the images, but not at them.

    Norm after norm in one forward pass, so that activations stay of order one at any depth.
    """
    generator = torch.Generator().manual_seed(seed + 1)

    def settle(norm: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        x = arguments[0]
        variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1])
        shift = 0.3 * variance.sqrt() * torch.randn(mean.shape, generator=generator)
        norm.running_mean.copy_(mean + shift)
        norm.running_var.copy_(variance * (torch.rand(mean.shape, generator=generator) + 0.5))

    norms = [m for m in tower.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_pre_hook(settle) for norm in norms]
    with torch.no_grad():
        tower.eval()(images)
    for handle in handles:
        handle.remove()


def random_images(batch: int, size: int, seed: int) -> np.ndarray:
    """(B, S, S, 3) float32, normalised: coarse blotches of each image's own, and noise."""
    rng = np.random.default_rng(seed)
    blotches = rng.standard_normal((batch, 8, 8, 3))
    at = np.arange(size) * 8 // size
    smooth = blotches[:, at][:, :, at]
    return (smooth + 0.5 * rng.standard_normal((batch, size, size, 3))).astype(np.float32)


def random_tokens(family: Family, length: int, vocab: int, seed: int) -> np.ndarray:
    """(B, L) int32: start, words, end, padding, from no words to as many as fit."""
    rng = np.random.default_rng(seed)
    start, end, pad = (vocab + x if x is not None and x < 0 else x for x in family.tokens)
    begin = [] if start is None else [start]
    assert end is not None
    tokens = np.full((family.batch, length), pad, np.int32)
    most = length - len(begin) - 1
    for row, words in zip(tokens, np.linspace(0, most, family.batch).astype(int), strict=True):
        filled = [*begin, *rng.integers(FIRST_WORD, vocab - 2, words), end]
        row[: len(filled)] = filled
    return tokens


def arrays(values: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensors as float32 arrays."""
    return {
        name: value.detach().float().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }
