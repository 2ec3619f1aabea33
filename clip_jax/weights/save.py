"""Writer of model folders, in any layout that can be written."""

import json
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.files.disk import replacing_folder, writing
from clip_jax.models.config import ClipConfig
from clip_jax.text.huggingface_export import to_huggingface_files
from clip_jax.text.tokenizer import Tokenizer
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.layouts import layouts
from clip_jax.weights.layouts.bundle import write_bundle
from clip_jax.weights.layouts.layout import Written
from clip_jax.weights.model_card import model_card
from clip_jax.weights.rules.table import write_tensors


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
    writers = {layout.name: layout.write for layout in layouts() if layout.write is not None}
    if format != "clip_jax" and format not in writers:
        raise UserError(
            f"format={format!r}: choose one of {', '.join(sorted(['clip_jax', *writers]))}"
        )
    card = model_card(config, params, tokenizer, format, source)
    try:
        with writing(directory):
            if format == "clip_jax":
                write_bundle(directory, config, params, tokenizer, card=card)
            else:
                written = writers[format](config, tokenizer)  # first, as it may refuse the model
                _write_foreign(directory, written, config, params, tokenizer, card)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror or error})") from error


def _write_foreign(
    directory: Path,
    written: Written,
    config: ClipConfig,
    params: Any,
    tokenizer: Tokenizer | None,
    card: str,
) -> None:
    """Writes a folder in another layout than ours."""
    files = {} if tokenizer is None else to_huggingface_files(tokenizer)
    directory = directory.absolute()
    mark = next(iter(written.documents))
    # An older model of the same layout is replaced; a folder with anything else is left alone.
    if directory.exists() and any(directory.iterdir()) and not (directory / mark).is_file():
        raise UserError(f"{directory}: holds other files; give a new or empty folder")
    with replacing_folder(directory) as aside:
        for name, document in written.documents.items():
            (aside / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for name, content in files.items():
            (aside / name).write_bytes(content)
        (aside / "README.md").write_text(card, encoding="utf-8")
        save_safetensors(aside / written.weights, write_tensors(config, written.rules, params))
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


def _foreign_names(folder: Path) -> list[str]:
    """Returns the sorted names in a folder that can belong to no model; [] if it does not exist."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    endings = (".json", ".safetensors", ".txt", ".model", ".txt.gz")
    return sorted(n for n in names - {"README.md", "tokenizer"} if not n.endswith(endings))
