"""Tiny models of transformers with a random value in every parameter, their outputs, and ours."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower

LN_100 = 4.6051702  # a logit scale of 100, as a logarithm

TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 11,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


def build(kind: str, text: dict[str, Any], vision: dict[str, Any], **top: Any) -> Any:
    """A random model of class `{kind}Model`, in eval mode; the dictionaries change the sizes."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, **text}, vision_config={**VISION, **vision}, **top
    )
    return randomise(getattr(transformers, f"{kind}Model")(config), seed=len(str(config)))


def randomise(model: Any, seed: int = 0) -> Any:
    """A random value in every parameter, of a size that keeps activations of order one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                parameter.fill_(LN_100)
            elif "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim > 1 and "embedding" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif "patch_embedding" in name:
                parameter.copy_(noise * 0.1)
            else:
                parameter.copy_(noise * 0.3)
    return model.eval()


def outputs(model: Any, pixels_BSSC: np.ndarray, tokens_BL: np.ndarray) -> dict[str, np.ndarray]:
    """Normalised embeddings and the logits of images against texts."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(pixels_BSSC.transpose(0, 3, 1, 2)))
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if model.config.model_type == "siglip2":
        inputs = _patches(pixels_BSSC, model.config.vision_config.patch_size)
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(tokens_BL), **inputs)
    return {
        "image": out.image_embeds.numpy(),
        "text": out.text_embeds.numpy(),
        "logits": out.logits_per_image.numpy(),
    }


def _patches(pixels_BSSC: np.ndarray, patch: int) -> dict[str, Any]:
    """Inputs of `Siglip2Model` for whole square images."""
    import torch
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    rows = [convert_image_to_patches(image.transpose(2, 0, 1), patch) for image in pixels_BSSC]
    grid, batch = pixels_BSSC.shape[1] // patch, len(rows)
    return {
        "pixel_values": torch.from_numpy(np.stack(rows)),
        "pixel_attention_mask": torch.ones(batch, grid * grid, dtype=torch.int64),
        "spatial_shapes": torch.full((batch, 2), grid),
    }


def save(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """Saves as transformers does; the tensors of the file."""
    from safetensors.numpy import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def our_outputs(
    config: ClipConfig, params: Any, pixels_BSSC: np.ndarray, tokens_BL: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the same as `outputs`, from our model."""
    out = jax.jit(TwoTower(config).apply)({"params": params}, pixels_BSSC, tokens_BL)
    logits = out.logit_scale * out.image_embeds @ out.text_embeds.T + out.logit_bias
    found = {"image": out.image_embeds, "text": out.text_embeds, "logits": logits}
    return {name: np.asarray(array) for name, array in found.items()}


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Embeddings within 2e-5 and cosine 0.999999, logits within 1e-3; no two rows alike."""
    for name in ("image", "text"):
        assert np.sum(found[name] * wanted[name], axis=-1).min() >= 0.999999, name
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=2e-5, err_msg=name)
        assert np.abs(wanted[name] - wanted[name][:1])[1:].max() > 0.05, f"{name}: rows alike"
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=0, atol=1e-3)
