"""Makes tests/support/goldens/*.npz: tiny CLIPs with random values, and what open_clip says.

Run it in an environment with open_clip installed (torch 2.13 on the CPU, open_clip_torch 3.3; never
a dependency of ours), from the root of the repository:

    python tests/oracle/make_goldens.py

Each file holds one model, every key a path:

    config                    JSON of the open_clip configuration
    state/NAME                every parameter and buffer, float16 (the values are exact in it)
    images, tokens            (B, S, S, 3) float16 NHWC, (B, L) int32
    image_features, text_features                 not normalised, evaluation mode
    image_embeds, text_embeds, scale              as the model's forward gives them
    softmax_loss, gradient/NAME                   open_clip's ClipLoss, world size 1
    sigmoid_loss, sigmoid_gradient/NAME           its SigLipLoss, for models with a logit bias; of
                              image_embeds, text_embeds, scale and bias
    train/…                   models with batch normalisation, in train mode: image_features,
                              softmax_loss, gradient/NAME, and state/NAME of the running statistics
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP

GOLDENS = Path(__file__).resolve().parents[1] / "support" / "goldens"
MAX_GRADIENT_SIZE = 400  # larger leaves are left out to keep the files small

TEXT = {"context_length": 10, "vocab_size": 60, "width": 16, "heads": 2, "layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    # logit_scale is the logarithm: exp(t) is 80, 0.6 and 14.
    "vit_quickgelu": {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 24,
            "patch_size": 8,
            "width": 24,
            "layers": 2,
            "head_width": 8,
        },
        "text_cfg": TEXT,
        "logit_scale": 4.375,
    },
    # 22 pixels are no multiple of the patch: the last ones are dropped.
    "vit_average_pool": {
        "embed_dim": 12,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": 22,
            "patch_size": 4,
            "width": 24,
            "layers": 3,
            "head_width": 12,
            "mlp_ratio": 3.0,
            "pool_type": "avg",
            "no_ln_pre": True,
        },
        "text_cfg": {**TEXT, "mlp_ratio": 2.0},
        "init_logit_bias": -10.0,
        "logit_scale": -0.5,
    },
    "resnet": {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": (2, 1, 1, 1), "width": 4, "head_width": 32},
        "text_cfg": {**TEXT, "layers": 1},
        "logit_scale": 2.625,
    },
}


def coarse(array: np.ndarray) -> np.ndarray:
    """Values of seven bits' mantissa, as float32: exact in float16, and small in a file."""
    bits = array.astype(np.float16).view(np.uint16) & 0xFFF8
    return bits.view(np.float16).astype(np.float32)


def random_state(model: CLIP, logit_scale: float, rng: np.random.Generator) -> dict[str, Any]:
    """A value for every parameter and buffer, none of them zero or one.

    Matrices have a gain that keeps activations of order one through the layers.
    """
    state = {}
    for name, old in model.state_dict().items():
        shape = tuple(old.shape)
        if name.endswith("num_batches_tracked"):
            continue
        if name == "logit_scale":
            value = np.array(logit_scale)
        elif name == "logit_bias":
            value = np.array(-1.75)
        elif name.endswith("running_var"):
            value = rng.uniform(0.3, 2.0, shape)
        elif len(shape) == 1:
            gain = name.endswith("weight")  # of a LayerNorm or BatchNorm
            value = gain + 0.4 * rng.standard_normal(shape)
        elif "embedding" in name:
            value = 0.7 * rng.standard_normal(shape)
        else:
            fan_in = shape[0] if name.endswith(("proj", "projection")) else np.prod(shape[1:])
            value = 1.2 * fan_in**-0.5 * rng.standard_normal(shape)
        state[name] = torch.tensor(coarse(np.asarray(value)))
    return state


def random_tokens(cfg: dict[str, Any], batch: int, rng: np.random.Generator) -> np.ndarray:
    """(B, L) int32: start, words, end of text (the largest id), zeros, of various lengths."""
    length, vocab = cfg["context_length"], cfg["vocab_size"]
    tokens = np.zeros((batch, length), np.int32)
    for row, words in zip(tokens, np.linspace(0, length - 2, batch).astype(int), strict=True):
        row[: words + 2] = [vocab - 2, *rng.integers(1, vocab - 2, words), vocab - 1]
    return tokens


def gradients(model: CLIP, loss: torch.Tensor) -> dict[str, np.ndarray]:
    """Gradient of every parameter that is not too large, by name."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: parameter.grad.numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.numel() <= MAX_GRADIENT_SIZE
    }


def with_prefix(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}


def make(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """One golden file as a dictionary of arrays."""
    rng = np.random.default_rng(seed)
    arguments = {key: value for key, value in settings.items() if key != "logit_scale"}
    model = CLIP(**arguments)
    state = random_state(model, settings["logit_scale"], rng)
    model.load_state_dict(state)
    batch, size = 5, settings["vision_cfg"]["image_size"]
    images = np.round(2 * rng.standard_normal((batch, size, size, 3))) / 2  # few levels, small file
    tokens = random_tokens(settings["text_cfg"], batch, rng)
    pixels, ids = torch.tensor(images.transpose(0, 3, 1, 2)).float(), torch.tensor(tokens)

    golden: dict[str, Any] = {
        "config": json.dumps(settings),
        "images": images.astype(np.float16),
        "tokens": tokens,
        **{f"state/{name}": value.numpy().astype(np.float16) for name, value in state.items()},
    }
    model.eval()
    with torch.no_grad():
        golden["image_features"] = model.encode_image(pixels).numpy()
        golden["text_features"] = model.encode_text(ids).numpy()
    image, text, scale, *bias = model(pixels, ids)
    golden |= {
        "image_embeds": image.detach().numpy(),
        "text_embeds": text.detach().numpy(),
        "scale": scale.detach().numpy(),
    }
    loss = ClipLoss()(image, text, scale)
    golden["softmax_loss"] = loss.detach().numpy()
    golden |= with_prefix("gradient/", gradients(model, loss))
    if bias:
        leaves = {"image_embeds": image, "text_embeds": text, "scale": scale, "bias": bias[0]}
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        loss = SigLipLoss()(*leaves.values())
        loss.backward()
        golden["sigmoid_loss"] = loss.detach().numpy()
        golden |= {f"sigmoid_gradient/{name}": x.grad.numpy() for name, x in leaves.items()}
    if any("running_var" in name for name in state):
        golden |= with_prefix("train/", train_mode(model, pixels, ids))
    return golden


def train_mode(model: CLIP, pixels: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
    """One forward and backward pass with the statistics of the batch, and the running ones after
    it."""
    model.train()
    features = model.encode_image(pixels)
    image = torch.nn.functional.normalize(features, dim=-1)
    loss = ClipLoss()(image, model.encode_text(ids, normalize=True), model.logit_scale.exp())
    result = {
        "image_features": features.detach().numpy(),
        "softmax_loss": loss.detach().numpy(),
        **with_prefix("gradient/", gradients(model, loss)),
    }
    after = {name: x.numpy() for name, x in model.state_dict().items() if "running_" in name}
    return result | with_prefix("state/", after)


def write(name: str, golden: dict[str, Any], stored: dict[str, Any] | None = None) -> None:
    """Writes a golden file, in another form if `stored` is given, and says how features spread."""
    path = GOLDENS / f"{name}.npz"
    np.savez_compressed(path, **(stored or golden))
    spread = golden["image_features"].std(), golden["text_features"].std()
    print(path.name, path.stat().st_size, "bytes, feature std", *spread, file=sys.stderr)


if __name__ == "__main__":
    for seed, (name, settings) in enumerate(MODELS.items()):
        write(name, make(settings, seed))
