"""Writer of model folders, in our own layout, Hugging Face's or open_clip's."""

import json
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.files.disk import replacing_folder, writing
from clip_jax.models.config import ClipConfig, image_fields
from clip_jax.text.cleaning import clean_text
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.huggingface_export import to_huggingface_files
from clip_jax.text.tokenizer import OPENAI_VOCAB_SIZE, Tokenizer
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.layouts import huggingface, open_clip
from clip_jax.weights.layouts.bundle import CONFIG, write_bundle
from clip_jax.weights.layouts.open_clip_export import config_to_open_clip
from clip_jax.weights.model_card import model_card
from clip_jax.weights.rules import preprocessing
from clip_jax.weights.rules.table import write_tensors

OPEN_CLIP_CONFIG = "open_clip_config.json"
# Our text cleaning mode -> open_clip's nearest mode.
OPEN_CLIP_CLEANING = {
    **{mode: mode for mode in ("lower", "whitespace", "canonicalize")},
    "siglip": "canonicalize",
    "lowercase": "lower",
    "none": "whitespace",
}
FORMATS = ("clip_jax", "huggingface", "open_clip")


def save_model(
    directory: Path,
    format: str,
    config: ClipConfig,
    params: Any,
    tokenizer: Tokenizer | None,
    source: str | None = None,
) -> None:
    """Writes a model with its image transform, tokenizer and model card.

    It writes to a temporary folder and renames it, so that no reader sees a partial model. The
    card names `source` as origin. Raises `UserError` for an unknown format, a model that the format
    cannot express, or a folder with other files.
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r}: choose one of {', '.join(FORMATS)}")
    card = model_card(config, params, tokenizer, format, source)
    try:
        with writing(directory):
            if format == "clip_jax":
                write_bundle(directory, config, params, tokenizer, card=card)
            else:
                _write_foreign(directory, format, config, params, tokenizer, card)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror or error})") from error


def _write_foreign(
    directory: Path,
    format: str,
    config: ClipConfig,
    params: Any,
    tokenizer: Tokenizer | None,
    card: str,
) -> None:
    """Writes a folder in Hugging Face's or open_clip's layout."""
    documents = _documents(format, config, tokenizer)  # first, because it may refuse the model
    files = {} if tokenizer is None else to_huggingface_files(tokenizer)
    if format == "open_clip" and tokenizer is not None:
        text_cfg = documents[OPEN_CLIP_CONFIG]["model_cfg"]["text_cfg"]
        text_cfg |= open_clip_tokenizer(tokenizer)
    names = {"huggingface": "model.safetensors", "open_clip": "open_clip_model.safetensors"}
    rules = (
        huggingface.huggingface_rules(config)
        if format == "huggingface"
        else open_clip.open_clip_rules(config)
    )

    directory = directory.absolute()
    mark = next(iter(documents))
    # An older model of the same layout is replaced; a folder with anything else is left alone.
    if directory.exists() and any(directory.iterdir()) and not (directory / mark).is_file():
        raise UserError(f"{directory}: holds other files; give a new or empty folder")
    with replacing_folder(directory) as aside:
        for name, document in documents.items():
            (aside / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for name, content in files.items():
            (aside / name).write_bytes(content)
        (aside / "README.md").write_text(card, encoding="utf-8")
        save_safetensors(aside / names[format], write_tensors(config, rules, params))
        if foreign := _foreign_names(directory):
            raise UserError(f"{directory}: holds other files ({', '.join(foreign)})")


def check_output(directory: Path, source: Path) -> None:
    """Raises `UserError` early if a model cannot be written to `directory`."""
    target, origin = directory.absolute().resolve(), source.resolve()
    if target == origin or target in origin.parents:
        raise UserError(f"{directory}: holds the source itself; give a new folder")
    if target.is_file():
        raise UserError(f"{directory}: is a file; give a folder")
    if foreign := _foreign_names(target):
        raise UserError(f"{directory}: holds other files ({', '.join(foreign[:5])})")


def open_clip_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's keys of text_cfg.

    Any name makes open_clip read the folder's tokenizer files; without one it takes OpenAI's.

    Raises `UserError` naming added tokens that open_clip's cleaning, run first, would change.
    """
    added = [token["content"] for token in getattr(tokenizer, "added_tokens", ())]
    is_clip = isinstance(tokenizer, ClipBpeTokenizer)
    if is_clip and tokenizer.vocab_size == OPENAI_VOCAB_SIZE and not added:
        return {}
    cleaning = getattr(tokenizer, "cleaning", "none")
    theirs = OPEN_CLIP_CLEANING[cleaning]
    if is_clip and added and theirs == "lower":
        theirs = "whitespace"  # CLIPTokenizer lower-cases itself, after matching added tokens
    lost = [token for token in added if clean_text(token, theirs) != token]
    if lost and theirs != cleaning:
        raise UserError(
            f"format='open_clip': its cleaning {theirs!r} comes before the tokenizer and would "
            f"change the added tokens {', '.join(lost[:5])}; write clip_jax or huggingface"
        )
    options: dict[str, Any] = {"clean": theirs}
    if getattr(tokenizer, "strip_sep_token", False):
        options["strip_sep_token"] = True
    return {"hf_tokenizer_name": "files of this folder", "tokenizer_kwargs": options}


def _documents(
    format: str, config: ClipConfig, tokenizer: Tokenizer | None
) -> dict[str, dict[str, Any]]:
    """{file name: JSON}; the first file identifies the layout."""
    if format == "open_clip":
        return {OPEN_CLIP_CONFIG: config_to_open_clip(config)}
    end_of_text = None if tokenizer is None else tokenizer.eos_id
    document = huggingface.config_to_huggingface(config, end_of_text=end_of_text)
    kind = {"metaclip_2": "clip"}.get(document["model_type"], document["model_type"])
    patch_size = getattr(config.vision, "patch_size", None)
    preprocessor = preprocessing.to_huggingface(image_fields(config), kind, patch_size)
    return {CONFIG: document, "preprocessor_config.json": preprocessor}


def _foreign_names(folder: Path) -> list[str]:
    """Returns the sorted names in a folder that can belong to no model; [] if it does not exist."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    endings = (".json", ".safetensors", ".txt", ".model", ".txt.gz")
    return sorted(n for n in names - {"README.md", "tokenizer"} if not n.endswith(endings))
