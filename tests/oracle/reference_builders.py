"""Builds the references of the parity suite, and loads them from a folder as their users would."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchvision_shim  # noqa: F401  isort: skip
import open_clip
import timm
import torch
import transformers
from families import Family
from open_clip import coca_model
from open_clip.transform import PreprocessCfg
from torch import nn

CONFIG = "open_clip_config.json"
HF_CLASSES = {
    "clip": "CLIP",
    "metaclip_2": "MetaClip2",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
    "dual": "VisionTextDualEncoder",
}
# Text towers of transformers that open_clip takes by name: type, width, layers, heads, width of
# the MLP, vocabulary. Written down because their configurations are on the hub.
ROBERTAS = {
    "roberta-base": ("roberta", 768, 12, 12, 3072, 50265),
    "xlm-roberta-base": ("xlm-roberta", 768, 12, 12, 3072, 250002),
    "xlm-roberta-large": ("xlm-roberta", 1024, 24, 16, 4096, 250002),
}

# CoCa's generation wants all of these, and of late one of them is no more; it asks for none of the
# beam search's here.
for _name in ("LogitsProcessorList", "StoppingCriteriaList", "MaxLengthCriteria"):
    setattr(coca_model, _name, getattr(transformers, _name))
for _name in ("MinLengthLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "EosTokenCriteria"):
    setattr(coca_model, _name, getattr(transformers, _name))
coca_model.GENERATION_TYPES["top_k"] = transformers.TopKLogitsWarper
coca_model._has_transformers = True


def _roberta_config(name: str, layers: int | None = None, vocab: int | None = None) -> Any:
    model_type, width, depth, heads, mlp, words = ROBERTAS[name]
    return transformers.AutoConfig.for_model(
        model_type,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=mlp,
        num_hidden_layers=layers or depth,
        vocab_size=vocab or words,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )


@contextlib.contextmanager
def reduced(family: Family) -> Iterator[None]:
    """Inside, timm and transformers build towers of the family's depth, without the hub."""
    small = family.overrides.get("text__layers"), family.overrides.get("vocab_size")

    def create_reduced(name: str, **options: Any) -> nn.Module:
        return timm_create(name, **options, **family.timm)

    def config(name: str, *_: Any, **__: Any) -> Any:
        return _roberta_config(name, *small)

    timm_create, from_pretrained = timm.create_model, transformers.AutoConfig.from_pretrained
    timm.create_model, transformers.AutoConfig.from_pretrained = create_reduced, config
    try:
        yield
    finally:
        timm.create_model, transformers.AutoConfig.from_pretrained = timm_create, from_pretrained


def open_clip_document(family: Family) -> dict[str, Any]:
    """What open_clip_config.json says of the reduced model."""
    model = open_clip.get_model_config(family.like)
    for path, value in family.edits.items():
        section, key = path.split(".")
        model[section][key] = value
    tags = open_clip.list_pretrained_tags_by_model(family.like)
    released = open_clip.get_pretrained_cfg(family.like, tags[0]) if tags else {}
    preprocess = vars(PreprocessCfg()) | {
        key: released[key]
        for key in ("mean", "std", "interpolation", "resize_mode")
        if released.get(key)
    }
    preprocess["size"] = model["vision_cfg"]["image_size"]
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def build(family: Family, folder: Path) -> nn.Module:
    """A new model; what is not weights is written to the folder."""
    folder.mkdir(parents=True)
    if family.layout in HF_CLASSES:
        return _hugging_face(family)
    document = open_clip_document(family)
    if family.layout == "open_clip":
        (folder / CONFIG).write_text(json.dumps(document, indent=1), encoding="utf-8")
        return load(family, "open_clip", folder, weights=False)
    return open_clip.model.CLIP(**document["model_cfg"])


def _hugging_face(family: Family) -> nn.Module:
    kind = HF_CLASSES[family.layout]
    edits = dict(family.edits)
    if family.layout == "dual":
        parts = [
            transformers.AutoConfig.for_model(**edits.pop(name))
            for name in ("vision_config", "text_config")
        ]
        config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(*parts, **edits)
    else:
        config = getattr(transformers, f"{kind}Config")(**edits)
    return getattr(transformers, f"{kind}Model")(config)


def load(family: Family, layout: str, folder: Path, weights: bool = True) -> nn.Module:
    """The model of a folder in one of the layouts, in evaluation mode, float32."""
    if layout == "openai":
        model = open_clip.load_openai_model(str(folder / "model.pt"), "fp32", "cpu")
    elif layout == "open_clip":
        with reduced(family):
            model = open_clip.create_model(
                f"local-dir:{folder}", load_weights=weights, pretrained_text=False
            )
    else:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        kind = "dual" if kind == "vision-text-dual-encoder" else kind
        model = getattr(transformers, f"{HF_CLASSES[kind]}Model").from_pretrained(folder)
    return model.eval()


def save(model: nn.Module, layout: str, folder: Path) -> None:
    """The weights in the layout's own way."""
    if layout == "openai":
        _save_archive(model, folder / "model.pt")
    elif layout == "open_clip":
        from safetensors.torch import save_file

        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
    else:
        model.save_pretrained(folder)


def _save_archive(model: nn.Module, path: Path) -> None:
    """A traced program as OpenAI released them: matrices in half precision, and three numbers."""
    open_clip.model.convert_weights_to_fp16(model)
    size = model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    pixels = torch.zeros(1, 3, size, size, dtype=torch.float16)
    tokens = torch.zeros(1, model.context_length, dtype=torch.int32)
    numbers = {"input_resolution": size, "context_length": model.context_length}
    numbers["vocab_size"] = model.vocab_size
    for name, number in numbers.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(number))
    mask = model.attn_mask.half()
    del model.attn_mask
    model.attn_mask = mask  # a constant of the program instead of a tensor of the archive
    inputs = {"encode_image": pixels, "encode_text": tokens}
    torch.jit.save(torch.jit.trace_module(model, inputs, check_trace=False), path)


def parameter_count(name: str) -> int:
    """Trainable scalars of a full-size model of open_clip, without memory for them."""
    with reduced(Family(name, "open_clip")), torch.device("meta"):
        model = open_clip.create_model(name, device="meta", pretrained_text=False)
    return sum(parameter.numel() for parameter in model.parameters())
