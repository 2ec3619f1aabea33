"""Our own layout of a model on disk.

DIR/config.json            {"format": "clip_jax", "version": 1, "architecture": {… every ClipConfig
field}} DIR/model.safetensors      parameters, their tree paths joined by "/"
DIR/tokenizer/             the tokenizer's configuration and its own files
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from clip_jax.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, tokenizer_from_files
from clip_jax.errors import UserError
from clip_jax.models.architectures import ClipConfig, override
from clip_jax.models.two_tower import init_params

VERSION = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"

Loaded = tuple[ClipConfig, Any, Tokenizer | None]


def flatten(params: Any) -> dict[str, Any]:
    """Nested dict -> {"vision/transformer/blocks_0/…": leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def write_bundle(
    directory: Path,
    config: ClipConfig,
    params: Any,
    tokenizer: Tokenizer | None,
    step: int | None = None,
) -> None:
    """Writes a model, aside first and then renamed, so that no reader ever sees half of it.

    `step` is the training step of the parameters, where that is known. Raises `UserError` when the
    folder holds something that is not such a model.
    """
    directory = directory.absolute()
    foreign = {path.name for path in directory.glob("*")} - {CONFIG, WEIGHTS, TOKENIZER}
    if foreign or (directory.exists() and any(directory.iterdir()) and not is_bundle(directory)):
        raise UserError(f"{directory}: holds other files; give a new or empty folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    before = aside.with_name(aside.name + "-before")
    try:
        tensors = {
            name: np.ascontiguousarray(np.asarray(leaf)).reshape(np.shape(leaf))
            for name, leaf in flatten(params).items()
        }
        save_file(tensors, aside / WEIGHTS)
        about = {
            "format": "clip_jax",
            "version": VERSION,
            "architecture": config.to_dict(),
            "step": step,
        }
        (aside / CONFIG).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if tokenizer is not None:
            save_tokenizer(tokenizer, aside / TOKENIZER)
        aside.chmod(0o755)
        if directory.exists():
            os.replace(directory, before)
        os.replace(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _read_about(directory: Path) -> dict[str, Any]:
    try:
        about = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) and about.get("format") == "clip_jax" else {}


def is_bundle(directory: Path) -> bool:
    """Whether a folder was written by `write_bundle`."""
    return bool(_read_about(directory))


def exported_step(directory: Path) -> int | None:
    """The training step that a folder was exported at; None where there is no export."""
    return _read_about(directory).get("step")


def read_bundle(directory: Path, dtype: str) -> Loaded:
    """A model written by `write_bundle`. Raises `UserError` naming the damaged file."""
    about = _read_about(directory)
    if about.get("version") != VERSION:
        raise UserError(
            f"{directory / CONFIG}: version {about.get('version')}; this clip_jax reads {VERSION}"
        )
    config = ClipConfig.from_dict(about["architecture"])
    try:
        with safetensors.safe_open(directory / WEIGHTS, framework="numpy") as file:
            params = unflatten({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory / WEIGHTS}: cannot be read ({error})") from error
    tokenizer = None
    if (directory / TOKENIZER).is_dir():
        tokenizer = load_tokenizer(directory / TOKENIZER)
    return check_params(config, params, directory / WEIGHTS, dtype, tokenizer)


def check_params(
    config: ClipConfig, params: Any, where: Path, dtype: str, tokenizer: Tokenizer | None
) -> Loaded:
    """The model in `dtype`, once every parameter is there with its shape. Raises `UserError` if
    not."""
    wanted = flatten(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    found = flatten(params)
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise UserError(
            f"{where}: missing parameters {missing or 'none'}, unknown {extra or 'none'}"
        )
    for name, leaf in found.items():
        if np.shape(leaf) != wanted[name].shape:
            raise UserError(
                f"{where}: {name} has shape {np.shape(leaf)}, "
                f"the architecture says {wanted[name].shape}"
            )
    kind = np.dtype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
    # The scale stays float32: exp() of a rounded logarithm is visibly another temperature.
    cast = {k: v if k.startswith("logit_") else v.astype(kind) for k, v in found.items()}
    return override(config, dtype=dtype), unflatten(cast), tokenizer


def tokenizer_to_identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer with its files as JSON-able values."""
    import base64

    spec, files = tokenizer.to_files()
    encoded = {name: base64.b64encode(data).decode("ascii") for name, data in files.items()}
    return {"spec": spec, "files": encoded}


def tokenizer_from_identity(identity: dict[str, Any]) -> Tokenizer:
    """The inverse, from a checkpoint's identity."""
    import base64

    stored = identity["tokenizer"]
    files = {name: base64.b64decode(data) for name, data in stored["files"].items()}
    return tokenizer_from_files(stored["spec"], files)
