"""README.md of exported weights."""

from typing import Any

from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import count_trainable
from clip_jax.text.tokenizer import Tokenizer

LOADING = {
    "clip_jax": """```python
import clip_jax

clip = clip_jax.load("PATH")
clip.classify(["photo.jpg"], ["a cat", "a dog"])
```""",
    "huggingface": """```python
import clip_jax

clip = clip_jax.load("PATH")
clip.classify(["photo.jpg"], ["a cat", "a dog"])

from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("PATH"), AutoProcessor.from_pretrained("PATH")
```""",
    "open_clip": """```python
import clip_jax

clip = clip_jax.load("PATH")
clip.classify(["photo.jpg"], ["a cat", "a dog"])

import open_clip

model, transform = open_clip.create_model_from_pretrained("local-dir:PATH")
```""",
}


def _towers(config: ClipConfig) -> list[str]:
    image = {"vit": f"ViT, patches of {config.patch_size}", "resnet": "ModifiedResNet"}
    kind = image.get(config.vision_kind, config.vision_kind)
    causal = "causal" if config.text_causal else "bidirectional"
    text = f"{config.text_kind}, {causal}"
    lines = [
        f"| image tower | {kind}; width {config.vision_width}, layers {config.vision_layers}, "
        f"activation {config.vision_activation}, pooling {config.vision_pool} |",
        f"| text tower | {text}; width {config.text_width}, layers {config.text_layers}, "
        f"activation {config.text_activation}, pooling {config.text_pool} |",
    ]
    if config.decoder_layers:
        lines.append(f"| caption decoder | {config.decoder_layers} layers |")
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
        LOADING[format],
        "",
    ]
    return "\n".join(lines)
