"""What the makers of goldens with an image tower of timm share.

Their files hold what make_goldens.py says, in fewer and larger arrays: `index` is a JSON object
{key: [dtype, shape]}, and the values of all keys of a dtype follow each other in `values_DTYPE`.
"""

import json
import sys
from typing import Any

import make_goldens
import numpy as np
import torch
from make_goldens import GOLDENS
from torch import nn

make_goldens.MAX_GRADIENT_SIZE = 32
# Its backward pass of small grouped convolutions writes beyond its buffers.
torch.backends.mkldnn.enabled = False
random_state = make_goldens.random_state


def tower(model: type[nn.Module], given: dict[str, Any], **settings: Any) -> nn.Module:
    """`model` with `settings` and with what open_clip gives to an entry point of timm."""
    unused = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    given = {key: value for key, value in given.items() if key not in unused}
    instance = model(**settings, **given)
    instance.default_cfg = {}
    return instance


def calibrated_state(model: nn.Module, scale: float, rng: np.random.Generator) -> dict[str, Any]:
    """Random parameters whose activations stay of order one: small layer scales, and running
    statistics near those that a batch meets in evaluation."""
    state = random_state(model, scale, rng)
    state = {name: x / 4 if name.endswith("gamma") else x for name, x in state.items()}
    model.load_state_dict(state)

    def calibrate(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        var, mean = (x.numpy() for x in torch.var_mean(inputs[0], dim=(0, 2, 3)))
        mean = mean + 0.3 * var**0.5 * rng.standard_normal(mean.shape)
        # A mean far from 0 against the deviation would make the tower a test of rounding.
        var = np.maximum(var * rng.uniform(0.5, 1.6, var.shape), 0.1 * mean**2)
        for buffer, value in ((norm.running_mean, mean), (norm.running_var, var)):
            buffer.copy_(torch.tensor(coarse(value)))

    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [norm.register_forward_pre_hook(calibrate) for norm in norms.values()]
    model.eval()
    with torch.no_grad():
        model.encode_image(
            torch.tensor(rng.standard_normal((16, 3, *model.visual.image_size))).float()
        )
    for hook in hooks:
        hook.remove()
    names = [f"{name}.running_{which}" for name in norms for which in ("mean", "var")]
    return state | {name: model.state_dict()[name].clone() for name in names}


def coarse(array: np.ndarray) -> np.ndarray:
    """Values of four bits' mantissa, as float32: exact in float16, and small in a file."""
    bits = array.astype(np.float16).view(np.uint16) & 0xFFC0
    return bits.view(np.float16).astype(np.float32)


make_goldens.random_state, make_goldens.coarse = calibrated_state, coarse


def pack(arrays: dict[str, Any]) -> dict[str, Any]:
    """Many small arrays as few large ones."""
    arrays = {name: np.asarray(array) for name, array in arrays.items() if name != "config"}
    index = {name: [array.dtype.name, array.shape] for name, array in arrays.items()}
    dtypes = {array.dtype for array in arrays.values()}
    values = {
        f"values_{dtype.name}": np.concatenate(
            [array.reshape(-1) for array in arrays.values() if array.dtype == dtype]
        )
        for dtype in dtypes
    }
    return {"index": json.dumps(index), **values}


def write(models: dict[str, dict[str, Any]]) -> None:
    """One golden file a model."""
    for seed, (name, settings) in enumerate(models.items()):
        path, arrays = GOLDENS / f"{name}.npz", make_goldens.make(settings, seed)
        np.savez_compressed(path, config=arrays["config"], **pack(arrays))
        spread = arrays["image_features"].std(), arrays["text_features"].std()
        print(path.name, path.stat().st_size, "bytes, feature std", *spread, file=sys.stderr)
