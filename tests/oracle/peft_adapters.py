"""Adapters made and read by PEFT, in the environment of `make oracle`.

    python peft_adapters.py make FOLDER
    python peft_adapters.py read FOLDER ADAPTER RESULTS.npz

`make` writes, for each setting, FOLDER/NAME/base (a random model of transformers), …/adapter (of
PEFT, with random values), …/merged (a model) and …/results.npz: inputs, outputs and the gradients
of a sum of outputs, weighted at random, by PEFT's names. `read` loads another ADAPTER onto the base
of FOLDER and writes the outputs.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision_shim  # noqa: F401  before transformers
from peft import LoraConfig, PeftModel, get_peft_model
from random_weights import randomize
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
SIDE = {"image_size": 32, "patch_size": 8}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip_lora": ("clip", {"r": 3, "lora_alpha": 5, "target_modules": [*ATTENTION, "fc1", "fc2"]}),
    "clip_stabilised": (
        "clip",
        {
            "r": 2,
            "lora_alpha": 1,
            "use_rslora": True,
            "target_modules": r".*encoder\.layers\.1\.self_attn\.(q_proj|v_proj)",
            "modules_to_save": ["visual_projection"],
        },
    ),
    "clip_ranks": (
        "clip",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "fc1", "visual_projection", "patch_embedding"],
            "rank_pattern": {"fc1": 4},
            "alpha_pattern": {"visual_projection": 7},
        },
    ),
    "clip_dora": ("clip", {"r": 3, "use_dora": True, "target_modules": ["v_proj", "fc2"]}),
    # The pooling head's attention is torch's own, of one matrix; a pattern leaves it out.
    "siglip_lora": (
        "siglip",
        {"r": 3, "target_modules": r".*encoder.*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"},
    ),
}


def base_model(kind: str) -> torch.nn.Module:
    """Returns a small model of transformers with random values everywhere."""
    text = {**SIZES, "vocab_size": 99, "max_position_embeddings": 12, "num_attention_heads": 2}
    vision = {**SIZES, **SIDE, "num_attention_heads": 4}
    if kind == "clip":
        text |= {"eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 98}
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model: torch.nn.Module = CLIPModel(config)
    else:
        text |= {"projection_size": 32, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    randomize(model, 0)
    return model.eval()


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Returns normalised pixels (3, 3, S, S) and tokens (4, L)."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 96, (4, 12), generator=generator)
    if kind == "clip":
        tokens[:, 0], tokens[:, -1] = 97, 98
    return {
        "pixel_values": torch.randn((3, 3, 32, 32), generator=generator),
        "input_ids": tokens,
    }


def outputs(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the embeddings of both towers, of length 1."""
    found = model(**given)
    return {"image": found.image_embeds, "text": found.text_embeds}


def make(folder: Path) -> None:
    """Writes all settings."""
    for name, (kind, options) in SETTINGS.items():
        here = folder / name
        base = base_model(kind)
        base.save_pretrained(here / "base")
        torch.manual_seed(2)
        model = get_peft_model(base, LoraConfig(**options)).eval()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in trained.values():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * noise * parameter.std().clamp(min=0.3))
        model.save_pretrained(here / "adapter")
        given = inputs(kind)
        found = outputs(model, given)
        results: dict[str, Any] = {**given, **found}
        loss = torch.zeros(())
        for tower, embeds in found.items():
            weights = torch.randn(embeds.shape, generator=generator)
            results[f"weights_{tower}"] = weights
            loss = loss + (embeds * weights).sum()
        for parameter, gradient in zip(
            trained, torch.autograd.grad(loss, list(trained.values())), strict=True
        ):
            results[f"gradient/{parameter}"] = gradient
        np.savez(here / "results.npz", **{k: v.detach().numpy() for k, v in results.items()})
        model.merge_and_unload().save_pretrained(here / "merged")


def read(folder: Path, adapter: Path, results: Path) -> None:
    """Writes the outputs of the base of one setting with an adapter."""
    kind = SETTINGS[folder.name][0]
    cls = CLIPModel if kind == "clip" else SiglipModel
    model = PeftModel.from_pretrained(cls.from_pretrained(folder / "base"), adapter).eval()
    found = outputs(model, inputs(kind))
    np.savez(results, **{k: v.detach().numpy() for k, v in found.items()})


if __name__ == "__main__":
    do, *paths = sys.argv[1:]
    {"make": make, "read": read}[do](*map(Path, paths))
