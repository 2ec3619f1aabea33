"""README.md of exported weights."""

from typing import Any

from clip_jax.models.config import ClipConfig
from clip_jax.models.kinds import VitConfig
from clip_jax.models.two_tower import count_trainable
from clip_jax.text.tokenizer import Tokenizer

OURS = """import clip_jax

clip = clip_jax.load("PATH")
clip.classify(["photo.jpg"], ["a cat", "a dog"])"""
THEIRS = {
    "huggingface": """

from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("PATH"), AutoProcessor.from_pretrained("PATH")""",
    "open_clip": """

import open_clip

model, transform = open_clip.create_model_from_pretrained("local-dir:PATH")""",
}


def _towers(config: ClipConfig) -> list[str]:
    vision, text = config.vision, config.text
    kind = {"resnet": "ModifiedResNet"}.get(vision.kind, vision.kind)
    if isinstance(vision, VitConfig):
        kind = f"ViT, patches of {vision.patch_size}"
    image = f"{kind}; width {vision.width}, layers {vision.layers}"
    for name, field in (("activation", "activation"), ("pooling", "pool")):
        if hasattr(vision, field):
            image += f", {name} {getattr(vision, field)}"
    causal = "causal" if text.causal else "bidirectional"
    lines = [
        f"| image tower | {image} |",
        f"| text tower | {text.kind}, {causal}; width {text.width}, layers {text.layers}, "
        f"activation {text.activation}, pooling {text.pool} |",
    ]
    if config.decoder is not None:
        lines.append(f"| caption decoder | {config.decoder.layers} layers |")
    return lines


def model_card(
    config: ClipConfig, params: Any, tokenizer: Tokenizer | None, format: str, source: str | None
) -> str:
    """Markdown on architecture, preprocessing, tokenizer and loading, with a header that the hub
    reads."""
    mean, std = (", ".join(f"{x:.8g}" for x in v) for v in (config.image_mean, config.image_std))
    words = "none in this folder"
    if tokenizer is not None:
        words = (
            f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids, end of text "
            f"{tokenizer.eos_id}, padding {tokenizer.pad_id}"
        )
    lines = [
        "---",
        "library_name: clip_jax",
        "pipeline_tag: zero-shot-image-classification",
        "tags: [clip]",
        "---",
        "",
        f"# {config.name}",
        "",
        f"A CLIP of {count_trainable(params):,} parameters, written by clip_jax"
        + (f" from `{source}`." if source else "."),
        "",
        "| | |",
        "|---|---|",
        f"| architecture | {config.name}; embeddings of {config.embed_dim} |",
        *_towers(config),
        f"| images | {config.image_size} x {config.image_size} pixels, resize "
        f"{config.image_resize}, {config.image_interpolation}, mean ({mean}), std ({std}) |",
        f"| texts | {config.context_length} tokens |",
        f"| tokenizer | {words} |",
        f"| layout | {format} |",
        "",
        "Images and texts must be prepared in just this way; all of it is stored in this folder.",
        "",
        "## Use",
        "",
        f"```python\n{OURS}{THEIRS.get(format, '')}\n```",
        "",
    ]
    return "\n".join(lines)
