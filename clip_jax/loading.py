"""Making a `Clip`: random, or from whatever lies on disk, at a URL or on the hub."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from clip_jax.arguments import shown, whole_number
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.two_tower import init_params
from clip_jax.sharding import make_mesh
from clip_jax.text.tokenizer import Tokenizer, get_tokenizer
from clip_jax.training.run.checkpoint import (
    DamagedCheckpoint,
    checkpoints_in,
    is_checkpoint,
    read_identity,
    read_params,
)
from clip_jax.weights.layouts.bundle import (
    bundle_rules,
    flatten,
    is_bundle,
    is_whole,
    tokenizer_from_identity,
)
from clip_jax.weights.load import Source, fitting, on_mesh, open_source
from clip_jax.weights.resolve import resolve_source
from clip_jax.weights.rules.table import ArrayTensors


def create(
    name: str,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    **overrides: Any,
) -> Clip:
    """A CLIP with random parameters.

    `tokenizer`: a name or path that `get_tokenizer` takes, or a tokenizer. `overrides`:
    `ClipConfig` fields such as `image_size=`, `context_length=`, `vocab_size=`. Raises `UserError`
    for unknown ones.
    """
    config = get_architecture(name, **overrides)
    key = jax.random.key(whole_number(seed, "seed", least=0, greatest=2**32 - 1))
    tokenizer = _tokenizer(tokenizer)
    if tokenizer is not None:
        config, tokenizer = fit_tokenizer(config, tokenizer)
    params = jax.jit(lambda: init_params(config, key))()
    return Clip(config, params, tokenizer)


def _tokenizer(given: str | os.PathLike[str] | Tokenizer | None) -> Tokenizer | None:
    """The tokenizer that is given or named. Raises `UserError` for what is neither."""
    if isinstance(given, str | os.PathLike):
        return get_tokenizer(given)
    if given is None or hasattr(given, "with_context_length"):
        return given
    raise UserError(
        f"tokenizer={shown(given)}: must be a name or path that get_tokenizer takes, or a tokenizer"
    )


def fit_tokenizer(
    config: ClipConfig, tokenizer: Tokenizer, *, keep_vocab_size: bool = True
) -> tuple[ClipConfig, Tokenizer]:
    """The two made one: the tokenizer at the model's context length, the model pooling at its end.

    Where the end of text is not the largest id, the text tower reads that id's position instead;
    without `keep_vocab_size` the model takes the tokenizer's vocabulary. Raises `UserError` where
    the tokenizer has more ids than the model.
    """
    if not keep_vocab_size:
        sizes = {"vocab_size": tokenizer.vocab_size, "decoder_vocab_size": tokenizer.vocab_size}
        config = override(config, **sizes)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"vocab_size={config.vocab_size} of {config.name}: the tokenizer has "
            f"{tokenizer.vocab_size} ids; give vocab_size={tokenizer.vocab_size} or more"
        )
    ends_last = tokenizer.eos_id == tokenizer.vocab_size - 1
    if config.text_pool == "eos" or (config.text_pool == "argmax" and not ends_last):
        config = override(config, text_pool="eos", eos_id=tokenizer.eos_id)
    if config.text_kind == "bert" or config.text_pool == "appended":
        config = override(config, pad_id=tokenizer.pad_id)
    return config, tokenizer.with_context_length(config.context_length)


def load(
    source: str | os.PathLike[str],
    dtype: str = "float32",
    *,
    architecture: str | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
    **overrides: Any,
) -> Clip:
    """A CLIP from a path, a URL (`gs://`, `s3://`) or a hub id ("openai/clip-vit-base-patch32").

    Recognised are our exports, training runs and checkpoints; Hugging Face CLIP, SigLIP, SigLIP 2
    and VisionTextDualEncoder folders; open_clip folders and state dictionaries; OpenAI's .pt;
    big_vision's .npz. Weights go tensor by tensor on to the mesh.

    Args:
      dtype: "float32" or "bfloat16", of the parameters and of the computation.
      architecture: a name of `list_models()`, for files that do not say what they are.
      tokenizer: instead of the source's own; a name or path that `get_tokenizer` takes, or one.
      mesh: where the parameters live, split over its fsdp axis; by default all local devices.
      revision: branch, tag or commit of a hub id.
      overrides: `ClipConfig` fields such as `image_size=` or `context_length=`; tables of positions
        are interpolated, which the log says.

    Raises:
      UserError: says what is missing, damaged or contradictory.
    """
    if architecture is not None:
        get_architecture(architecture)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={dtype!r}: choose float32 or bfloat16")
    found = open_model(resolve_source(source, revision=revision), architecture)
    config = override(found.config, dtype=dtype, **overrides)
    tokenizer = _tokenizer(tokenizer)
    if tokenizer is not None:  # before the long work
        tokenizer = fitting(tokenizer, config, str(source))
    mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    params = found.params(config, dtype, on_mesh(mesh))
    if tokenizer is None:
        return Clip(config, params, mesh=mesh, find_tokenizer=lambda: found.own_tokenizer(config))
    return Clip(config, params, tokenizer, mesh)


def open_model(path: Path, architecture: str | None = None) -> Source:
    """What lies at a path, recognised but not yet read: any layout, or a training checkpoint.

    Raises `UserError` that says what was looked for and what was found.
    """
    if path.is_dir() and not is_bundle(path / "model") and not is_bundle(path):
        checkpoints = _find_checkpoints(path)
        if checkpoints:
            return _open_newest(checkpoints, path)
    try:
        return open_source(path, architecture)
    except UserError as error:
        run = path.parent if path.name == "model" else path
        if not is_bundle(run / "model") or is_whole(run / "model"):
            raise
        instead, _ = _first_readable(checkpoints_in(run / "checkpoints"))
        if instead is None:
            raise
        reason = str(error).removesuffix("; download it again")  # it came from a training run
    raise UserError(
        f"{reason}; give {instead}, the newest checkpoint that can be read, or run the training "
        "command again, which exports again"
    )


def _find_checkpoints(source: Path) -> list[Path]:
    """A checkpoint that is given and those before it, or those of a run, the newest first."""
    if is_checkpoint(source):
        steps = checkpoints_in(source.parent) if source.name.isdigit() else []
        return [source, *(path for path in steps if int(path.name) < int(source.name))]
    for folder in (source / "checkpoints", source):
        found = checkpoints_in(folder)
        # Empty folders are known as checkpoints by their place alone.
        is_ours = folder.name == "checkpoints" or any(is_checkpoint(path) for path in found)
        if found and is_ours:
            return found
    return []


def _open_newest(checkpoints: list[Path], source: Path) -> Source:
    """Opens the first. Raises `UserError` where it is damaged, with the next that can be read."""
    newest, *others = checkpoints
    try:
        return _open_checkpoint(newest)
    except DamagedCheckpoint as error:
        reason = str(error)
    before, reasons = _first_readable(others)
    if before is not None:
        raise UserError(f"{reason}; give {before}, the newest one that can be read")
    if source == newest:
        raise UserError(reason)
    raise UserError(f"no checkpoint of {source} can be read: {'; '.join([reason, *reasons])}")


def _first_readable(checkpoints: list[Path]) -> tuple[Path | None, list[str]]:
    """The first whose parameters can be read, and what is wrong with those before it."""
    reasons: list[str] = []
    for path in checkpoints:
        try:
            read_params(path)
            return path, reasons
        except DamagedCheckpoint as error:
            reasons.append(str(error))
    return None, reasons


def _open_checkpoint(directory: Path) -> Source:
    identity = read_identity(directory)
    config = ClipConfig.from_dict(identity["architecture"])
    return Source(
        layout="clip_jax",
        path=directory,
        config=config,
        tensors=ArrayTensors(flatten(read_params(directory)), directory),
        rules=functools.partial(bundle_rules, config),
        tokenizer=lambda: tokenizer_from_identity(identity),
    )
