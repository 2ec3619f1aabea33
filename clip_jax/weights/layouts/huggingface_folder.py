"""Hugging Face's folders: `CLIPModel`, `SiglipModel` and their relatives, and
`VisionTextDualEncoderModel`."""

import functools
from collections.abc import Callable
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, image_fields, override
from clip_jax.text.huggingface_files import has_tokenizer
from clip_jax.text.tokenizer import Tokenizer
from clip_jax.weights.files.folders import newest_trainer_checkpoint, refuse_adapter
from clip_jax.weights.files.tensors import find_weights, open_tensors
from clip_jax.weights.layouts import dual_encoder, huggingface
from clip_jax.weights.layouts.huggingface_config import (
    config_from_huggingface,
    config_to_huggingface,
)
from clip_jax.weights.layouts.layout import (
    Layout,
    Opened,
    Written,
    folder_and_file,
    read_json,
    tokenizer_in,
    weights_in,
)
from clip_jax.weights.layouts.state_dict import BARE_WEIGHTS
from clip_jax.weights.rules.preprocessing import from_huggingface, to_huggingface
from clip_jax.weights.rules.table import Rule

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def _open(path: Path, architecture: str | None) -> Opened | None:
    place = folder_and_file(path, architecture)
    if place is None:
        return None
    folder, file = place
    if file is None and find_weights(folder, BARE_WEIGHTS) is None:
        refuse_adapter(folder)
        checkpoint = newest_trainer_checkpoint(folder, WEIGHTS)
        if checkpoint is not None:
            return _open_folder(checkpoint, root=folder)
    return _open_folder(folder, file) if (folder / CONFIG).is_file() else None


def _open_folder(path: Path, file: Path | None = None, root: Path | None = None) -> Opened:
    """Opens a folder with a config.json; tokenizer and image transform may come from `root`."""
    document = read_json(path / CONFIG)
    tensors = open_tensors(file) if file else weights_in(path, WEIGHTS)
    rules: Callable[[ClipConfig], list[Rule]]
    if document.get("model_type") == "vision-text-dual-encoder":
        config = dual_encoder.config_from_dual_encoder(document)
        rules = functools.partial(dual_encoder.dual_encoder_rules, names=tensors.shapes)
        ignored = dual_encoder.IGNORED
    else:
        config = config_from_huggingface(document)
        rules, ignored = huggingface.huggingface_rules, huggingface.IGNORED
    config = _with_preprocessing(config, [folder for folder in (path, root) if folder])

    def tokenizer() -> Tokenizer | None:
        return tokenizer_in(path if root is None or has_tokenizer(path) else root, config)

    return Opened("huggingface", path, config, tensors, rules, tokenizer, ignored)


def _with_preprocessing(config: ClipConfig, folders: list[Path]) -> ClipConfig:
    """`config` with the image transform of the first folder that has one."""
    names = ("preprocessor_config.json", "processor_config.json")
    for path in [folder / name for folder in folders for name in names]:
        about = read_json(path) if path.is_file() else {}
        # transformers 5 writes processor_config.json for text-only processors too.
        if not about or (path.name == "processor_config.json" and "image_processor" not in about):
            continue
        try:
            image = from_huggingface(about)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        size = image.pop("image_size", config.image_size)
        if config.vision.grid(size) != config.vision_grid:
            raise UserError(
                f"{path}: images of {size} pixels, but config.json says "
                f"image_size={config.image_size}"
            )
        return override(config, **image)
    return config


def _write(config: ClipConfig, tokenizer: Tokenizer | None) -> Written:
    end_of_text = None if tokenizer is None else tokenizer.eos_id
    document = config_to_huggingface(config, end_of_text=end_of_text)
    kind = {"metaclip_2": "clip"}.get(document["model_type"], document["model_type"])
    patch_size = getattr(config.vision, "patch_size", None)
    preprocessor = to_huggingface(image_fields(config), kind, patch_size)
    documents = {CONFIG: document, "preprocessor_config.json": preprocessor}
    return Written(documents, WEIGHTS[0], huggingface.huggingface_rules(config))


LAYOUT = Layout("huggingface", _open, _write, rank=1)
