"""Our own layout of a model on disk.

DIR/config.json          {"format": "clip_jax", "version": 1, "architecture": {all fields}}
DIR/model.safetensors    parameters, their tree paths joined by "/"
DIR/tokenizer/           the tokenizer's configuration and its own files
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.files.disk import replacing_folder
from clip_jax.models.config import ClipConfig
from clip_jax.sharding import leaves_by_path
from clip_jax.text.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, tokenizer_from_files
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.files.tensors import open_tensors
from clip_jax.weights.layouts.layout import Layout, Opened, folder_and_file
from clip_jax.weights.rules.table import Rule, our_shapes

VERSION = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
CARD = "README.md"
APART = re.compile(r"/blocks_(\d+)/")
# Position tables: (how they are resized to another input size, leading rows that are kept).
RESIZED = {
    "vision/positions": ("grid", 1),
    "vision/attention_pool/positions": ("grid", 1),
    "text/positions": ("line", 0),
}


def write_bundle(
    directory: Path,
    config: ClipConfig,
    params: Any,
    tokenizer: Tokenizer | None,
    step: int | None = None,
    card: str | None = None,
    replace_damaged: bool = False,
) -> None:
    """Writes a model to a temporary folder and renames it, so that no reader sees a partial one.

    `step` is the training step of the parameters, if known; `card` goes into README.md. Raises
    `UserError` if the folder holds anything but such a model; with `replace_damaged`, the remains
    of one whose config.json is missing or truncated are replaced too.
    """
    directory = directory.absolute()
    names = {path.name for path in directory.glob("*")}
    is_ours = is_bundle(directory) or (replace_damaged and _has_lost_config(directory))
    if names - {CONFIG, WEIGHTS, TOKENIZER, CARD} or (names and not is_ours):
        raise UserError(f"{directory}: holds other files; give a new or empty folder")
    with replacing_folder(directory) as aside:
        tensors = ((name, np.asarray(leaf)) for name, leaf in leaves_by_path(params).items())
        save_safetensors(aside / WEIGHTS, tensors, max_shard_bytes=None)
        if card is not None:
            (aside / CARD).write_text(card, encoding="utf-8")
        about = {
            "format": "clip_jax",
            "version": VERSION,
            "architecture": config.to_dict(),
            "step": step,
        }
        (aside / CONFIG).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if tokenizer is not None:
            save_tokenizer(tokenizer, aside / TOKENIZER)


def _read_about(directory: Path) -> dict[str, Any]:
    try:
        about = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) and about.get("format") == "clip_jax" else {}


def is_bundle(directory: Path) -> bool:
    """Whether a folder was written by `write_bundle`."""
    return bool(_read_about(directory))


def _has_lost_config(directory: Path) -> bool:
    """Whether config.json is not JSON, or missing beside a tokenizer, as in no intact layout."""
    try:
        json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return (directory / TOKENIZER).is_dir()
    except (OSError, ValueError):
        return True
    return False


def exported_step(directory: Path) -> int | None:
    """The training step recorded in an exported folder; None if it is not an export."""
    return _read_about(directory).get("step")


def is_whole(directory: Path) -> bool:
    """Whether the weights and the tokenizer of an export open, without reading tensors.

    Exports of training runs always have a tokenizer. The size of the weight file is checked.
    """
    try:
        return open_bundle(directory).tokenizer() is not None
    except UserError:
        return False


def open_bundle(directory: Path) -> Opened:
    """The model in a folder of `write_bundle`. Raises `UserError` naming a damaged file."""
    about = _read_about(directory)
    if about.get("version") != VERSION:
        raise UserError(
            f"{directory / CONFIG}: version {about.get('version')}; this clip_jax reads {VERSION}"
        )
    folder = directory / TOKENIZER

    def tokenizer() -> Tokenizer | None:
        return load_tokenizer(folder) if folder.is_dir() else None

    try:
        config = ClipConfig.from_dict(about.get("architecture", {}))
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}") from error
    rules = functools.partial(bundle_rules, config)
    tensors = open_tensors(directory / WEIGHTS)
    return Opened("clip_jax", directory, config, tensors, rules, tokenizer)


def _open(path: Path, architecture: str | None) -> Opened | None:
    """Opens an export, or that of a training run."""
    place = folder_and_file(path, architecture)
    folders = () if place is None else (place[0], path / "model")
    return next((open_bundle(folder) for folder in folders if is_bundle(folder)), None)


LAYOUT = Layout("clip_jax", _open)


def bundle_rules(stored: ClipConfig, config: ClipConfig) -> list[Rule]:
    """The table of our own layout, whose names are tree paths.

    If blocks are stacked on one side and separate on the other, they are matched by layer.
    """
    rules = []
    for path, shape in our_shapes(config).items():
        resize, prefix = RESIZED.get(path, (None, 0))
        if path == "vision/positions" and not getattr(config.vision, "class_token", False):
            prefix = 0
        rule = Rule(path, path, resize=resize, prefix=prefix)
        if config.scan_layers and not stored.scan_layers and "/blocks/" in path:
            rules += [
                rule._replace(theirs=path.replace("/blocks/", f"/blocks_{n}/"), at=(n,))
                for n in range(shape[0])
            ]
        elif stored.scan_layers and not config.scan_layers and (found := APART.search(path)):
            theirs = path.replace(found[0], "/blocks/")
            rules.append(rule._replace(theirs=theirs, theirs_at=(int(found[1]),)))
        else:
            rules.append(rule)
    return rules


def tokenizer_to_identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer and its files as JSON-serialisable values."""
    import base64

    spec, files = tokenizer.to_files()
    encoded = {name: base64.b64encode(data).decode("ascii") for name, data in files.items()}
    return {"spec": spec, "files": encoded}


def tokenizer_from_identity(identity: dict[str, Any]) -> Tokenizer:
    """The inverse of `tokenizer_to_identity`, from a whole checkpoint identity."""
    import base64

    stored = identity["tokenizer"]
    files = {name: base64.b64decode(data) for name, data in stored["files"].items()}
    return tokenizer_from_files(stored["spec"], files)
