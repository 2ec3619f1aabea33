"""Models at a path: any layout, a training run, or one of its checkpoints."""

import functools
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.sharding import leaves_by_path
from clip_jax.weights.layouts.bundle import (
    bundle_rules,
    is_bundle,
    is_whole,
    tokenizer_from_identity,
)
from clip_jax.weights.layouts.checkpoint import (
    DamagedCheckpoint,
    checkpoints_in,
    is_checkpoint,
    read_identity,
    read_params,
)
from clip_jax.weights.load import Source, open_source
from clip_jax.weights.rules.table import ArrayTensors


def open_model(path: Path, architecture: str | None = None) -> Source:
    """Recognises, without reading it, the model at a path: any layout, or a training checkpoint.

    Raises `UserError` naming what was looked for and what was found.
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
        reason = str(error).removesuffix("; download it again")  # a training run was not downloaded
    raise UserError(
        f"{reason}; give {instead.path}, the newest checkpoint that can be read, or run the "
        "training command again, which exports again"
    )


def _find_checkpoints(source: Path) -> list[Path]:
    """The given checkpoint and earlier ones, or all checkpoints of a run, newest first."""
    if is_checkpoint(source):
        steps = checkpoints_in(source.parent) if source.name.isdigit() else []
        return [source, *(path for path in steps if int(path.name) < int(source.name))]
    for folder in (source / "checkpoints", source):
        found = checkpoints_in(folder)
        # Only its location identifies an empty folder as a checkpoint.
        is_ours = folder.name == "checkpoints" or any(is_checkpoint(path) for path in found)
        if found and is_ours:
            return found
    return []


def _open_newest(checkpoints: list[Path], source: Path) -> Source:
    """Opens the first. If it is damaged, raises `UserError` naming the next readable one."""
    found, reasons = _first_readable(checkpoints)
    if found is not None and not reasons:
        return found
    if found is not None:
        raise UserError(f"{reasons[0]}; give {found.path}, the newest one that can be read")
    if source == checkpoints[0]:
        raise UserError(reasons[0])
    raise UserError(f"no checkpoint of {source} can be read: {'; '.join(reasons)}")


def _first_readable(checkpoints: list[Path]) -> tuple[Source | None, list[str]]:
    """The first with readable parameters, and the errors of those before it."""
    reasons: list[str] = []
    for path in checkpoints:
        try:
            return _open_checkpoint(path), reasons
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
        tensors=ArrayTensors(leaves_by_path(read_params(directory)), directory),
        rules=functools.partial(bundle_rules, config),
        tokenizer=lambda: tokenizer_from_identity(identity),
    )
