"""The references of the parity suite, in an environment of their own (see the Makefile's `oracle`).

Run as a program it answers requests, one JSON object a line, in the order they come:

    {"do": "versions"}                                  -> {"torch": …, …}
    {"do": "count", "names": […]}                       -> {name: trainable scalars}
    {"do": "make", "family": NAME, "folder": DIR}       -> {}; DIR/model is the weights in the
        reference's own layout, DIR/inputs.npz, DIR/outputs.npz, and where the family asks for it
        DIR/gradients.safetensors and DIR/training.npz
    {"do": "run", "family": NAME, "layout": LAYOUT, "folder": DIR, "inputs": FILE, "outputs": FILE}
        -> {}; loads what our side exported and runs it

A request that fails is answered by {"error": TRACEBACK}. Arrays of outputs: image_features and
text_features before normalisation, image_embeds and text_embeds after it, logits (image by text),
loss; of CoCa, caption_logits and captions.
"""

import dataclasses
import gc
import json
import os
import shutil
import sys
import traceback
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import reference_builders as builders
import torch
from families import FAMILIES, Family
from random_weights import (
    arrays,
    keep_off_kinks,
    random_images,
    random_tokens,
    randomize,
    settle_batch_norm,
)
from torch import nn
from torch.nn import functional

TRAINING = {"steps": 20, "batch": 8, "peak": 2e-4, "warmup": 5, "decay": 0.2}
TRAINING |= {"b1": 0.9, "b2": 0.98, "eps": 1e-6}
CAPTION_LENGTHS = {"seq_len": 16, "min_seq_len": 5}


def pixels_of(images: np.ndarray) -> torch.Tensor:
    """(B, S, S, 3) -> (B, 3, S, S)."""
    return torch.tensor(images.transpose(0, 3, 1, 2).copy())


def encode(
    model: nn.Module, images: np.ndarray, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of images and texts, (B, D) each, not normalised."""
    pixels = pixels_of(images)
    if hasattr(model, "encode_image"):
        return model.encode_image(pixels, normalize=False), model.encode_text(ids, normalize=False)
    pad = model.config.text_config.pad_token_id
    kind = model.config.model_type
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if kind == "siglip2":
        inputs = patches(images, model.config.vision_config.patch_size)
    # A dual encoder's BERT must be told what padding is; CLIP and SigLIP attend to it.
    text = {"attention_mask": (ids != pad).long()} if kind == "vision-text-dual-encoder" else {}
    found = model.get_image_features(**inputs), model.get_text_features(input_ids=ids, **text)
    return tuple(x if isinstance(x, torch.Tensor) else x.pooler_output for x in found)


def patches(images: np.ndarray, patch: int) -> dict[str, torch.Tensor]:
    """Inputs of `Siglip2Model`: whole square images, cut row by row."""
    batch, size = images.shape[:2]
    grid = size // patch
    cut = images[:, : grid * patch, : grid * patch]
    cut = cut.reshape(batch, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return {
        "pixel_values": torch.tensor(cut.reshape(batch, grid * grid, -1).copy()),
        "pixel_attention_mask": torch.ones(batch, grid * grid, dtype=torch.int64),
        "spatial_shapes": torch.full((batch, 2), grid),
    }


def loss_of(family: Family, logits: torch.Tensor) -> torch.Tensor:
    """The softmax or the sigmoid loss of a square matrix of logits."""
    if family.loss == "sigmoid":
        signs = 2 * torch.eye(len(logits)) - 1
        return -functional.logsigmoid(signs * logits).sum() / len(logits)
    labels = torch.arange(len(logits))
    losses = functional.cross_entropy(logits, labels), functional.cross_entropy(logits.T, labels)
    return (losses[0] + losses[1]) / 2


def forward(
    family: Family, model: nn.Module, images: np.ndarray, tokens: np.ndarray
) -> dict[str, torch.Tensor]:
    """All outputs, with their graph."""
    ids = torch.tensor(tokens).long()
    features = encode(model, images, ids)
    image, text = (functional.normalize(x, dim=-1) for x in features)
    bias = getattr(model, "logit_bias", None)
    logits = model.logit_scale.exp() * image @ text.T + (0 if bias is None else bias)
    return {
        "image_features": features[0],
        "text_features": features[1],
        "image_embeds": image,
        "text_embeds": text,
        "logits": logits,
        "loss": loss_of(family, logits),
    }


def captions(model: nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """Greedy captions, (B, L) token ids."""
    vocab = model.text.vocab_size
    written = model.generate(
        pixels,
        **CAPTION_LENGTHS,
        generation_type="top_k",
        top_k=1,
        sot_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        fixed_output_length=True,
    )
    return written.numpy().astype(np.int32)


def outputs(family: Family, model: nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the model gives for the inputs, as arrays."""
    images, tokens = inputs["images"], inputs["tokens"]
    with torch.no_grad():
        found = forward(family, model, images, tokens)
        if hasattr(model, "text_decoder"):
            pixels, ids = pixels_of(images), torch.tensor(tokens).long()
            # A Hugging Face text tower takes a token more than the decoder: the last one's label.
            longer = len(model.text_decoder.attn_mask) < ids.shape[1]
            found["caption_logits"] = model(pixels, ids, output_labels=longer)["logits"]
        if family.captions:
            found["captions"] = captions(model, pixels)
    return arrays(found)


def sizes(model: nn.Module) -> tuple[int, int, int]:
    """Image size, context length, vocabulary."""
    if hasattr(model, "visual"):
        size = model.visual.image_size
        text = getattr(model, "text", model)
        vocab = text.vocab_size
        # One position of CoCa's text tower is its class token's.
        length = text.context_length if vocab and hasattr(text, "positional_embedding") else 77
        if getattr(text, "cls_emb", None) is not None:
            length = text.positional_embedding.shape[0] - 1
        return (size if isinstance(size, int) else size[0]), length, vocab
    text, vision = model.config.text_config, model.config.vision_config
    size = vision.image_size if model.config.model_type != "siglip2" else 0
    size = size or round(vision.num_patches**0.5) * vision.patch_size
    length = 77 if model.config.model_type.startswith("vision-text") else None
    return size, length or text.max_position_embeddings, text.vocab_size


def gradients(family: Family, model: nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The loss's gradient with respect to every parameter, computed in float64.

    Of two float32 gradients each has rounding errors near what is allowed.
    """
    model.double()
    images = inputs["images"].astype(np.float64)
    forward(family, model, images, inputs["tokens"])["loss"].backward()
    found = {n: p.grad.float().contiguous() for n, p in model.named_parameters()}
    model.float().zero_grad()
    return found


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Matrices alone, and no table of positions."""
    return parameter.ndim > 1 and "positional_embedding" not in name


def learning_rate(step: int) -> float:
    """Linear from 0 over the warm-up, then a cosine to 0."""
    warmup, steps, peak = TRAINING["warmup"], TRAINING["steps"], TRAINING["peak"]
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))


PAIRS = 16  # that training goes over again and again


def train(family: Family, model: nn.Module, length: int, vocab: int, size: int) -> dict[str, Any]:
    """AdamW over batches of uint8 images; the loss before every step."""
    steps, batch = TRAINING["steps"], TRAINING["batch"]
    rng = np.random.default_rng(5)
    pictures = 128 + 60 * random_images(PAIRS, size, 5)
    pictures = np.clip(pictures, 0, 255).astype(np.uint8)
    texts = random_tokens(dataclasses.replace(family, batch=PAIRS), length, vocab, 6)
    rows = [rng.permutation(PAIRS)[:batch] for _ in range(steps)]
    images, tokens = pictures[np.array(rows)], texts[np.array(rows)]
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    groups = [
        {
            "params": [p for n, p in model.named_parameters() if decays(n, p) == with_decay],
            "weight_decay": TRAINING["decay"] if with_decay else 0.0,
        }
        for with_decay in (True, False)
    ]
    betas = TRAINING["b1"], TRAINING["b2"]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=TRAINING["eps"])
    with torch.no_grad():
        model.logit_scale.fill_(np.log(1 / 0.07))
    start = model.logit_scale.item()
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        pixels = (pixels_of(images[step]).float() / 255 - mean) / std
        found = forward(family, model, pixels.numpy().transpose(0, 2, 3, 1), tokens[step])
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        losses.append(found["loss"].item())
    return {
        "images": images,
        "tokens": tokens,
        "losses": np.array(losses),
        "logit_scale": np.float32(start),
        "settings": json.dumps(TRAINING),
    }


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make(family: Family, folder: Path) -> None:
    """Builds one reference with its inputs and outputs."""
    shutil.rmtree(folder, ignore_errors=True)
    seed = zlib.crc32(family.name.encode())
    model = builders.build(family, folder / "model")
    randomize(model, seed)
    size, length, vocab = sizes(model)
    inputs = {
        "images": random_images(family.batch, size, seed),
        "tokens": random_tokens(family, length, vocab, seed),
    }
    np.savez(folder / "inputs.npz", **inputs)
    model.eval()
    if hasattr(model, "visual"):
        if family.gradients:
            keep_off_kinks(model.visual, seed)
        settle_batch_norm(model.visual, pixels_of(inputs["images"]), seed)
    builders.save(model, family.layout, folder / "model")
    if family.layout == "openai":  # what is in the archive, as its own loader reads it
        model = builders.load(family, "openai", folder / "model")
    np.savez(folder / "outputs.npz", **outputs(family, model, inputs))
    if family.gradients:
        from safetensors.torch import save_file

        save_file(gradients(family, model, inputs), folder / "gradients.safetensors")
    if family.training:
        np.savez(folder / "training.npz", **train(family, model, length, vocab, size))


def run(family: Family, request: dict[str, Any]) -> None:
    """Loads a folder as a user of the reference would, and runs it."""
    model = builders.load(family, request["layout"], Path(request["folder"]))
    with np.load(request["inputs"]) as inputs:
        np.savez(request["outputs"], **outputs(family, model, dict(inputs)))


def versions() -> dict[str, str]:
    """Of the libraries that are compared with."""
    modules = torch, builders.open_clip, builders.timm, builders.transformers
    return {module.__name__: module.__version__ for module in modules}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One request."""
    if request["do"] == "versions":
        return versions()
    if request["do"] == "count":
        return {name: builders.parameter_count(name) for name in request["names"]}
    family = FAMILIES[request["family"]]
    if request["do"] == "make":
        make(family, Path(request["folder"]))
    else:
        run(family, request)
    return {}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not lie among the answers
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception:
            found = {"error": traceback.format_exc()}
        gc.collect()
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
