"""Recognition of a model on disk, and reading of its parameters: any layout, a training run, or one
of its checkpoints."""

import dataclasses
import functools
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from clip_jax.errors import UserError
from clip_jax.models.architectures import same_function
from clip_jax.models.config import ClipConfig
from clip_jax.sharding import leaf_spec, leaves_by_path
from clip_jax.text.tokenizer import Tokenizer
from clip_jax.weights.files.folders import inventory
from clip_jax.weights.fitting import fitting
from clip_jax.weights.layouts import layouts
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
from clip_jax.weights.layouts.layout import Opened
from clip_jax.weights.rules.table import ArrayTensors, Place, Rule
from clip_jax.weights.rules.table import read_params as read_tensors

LARGE_MODEL = 300_000_000  # scalars; smaller ones load in a second or two


class Source(Opened):
    """An opened model whose parameters can be read."""

    def params(self, config: ClipConfig, dtype: str, place: Place, show: bool | None = None) -> Any:
        """The parameters in `dtype` and in the layout of `config`; each leaf goes through `place`.

        `show`: a progress bar on stderr; None shows it on a terminal if the model is large.
        """
        size = sum(math.prod(shape) for shape in self.tensors.shapes.values())
        if show is None:
            show = size > LARGE_MODEL and sys.stderr.isatty()
        table = [
            rule if self._may_resize(rule, config) else rule._replace(resize=None)
            for rule in self.rules(config)
        ]
        with tqdm(total=size, unit_scale=True, desc="loading", disable=not show) as bar:
            return read_tensors(config, table, self.tensors, self.ignored, dtype, place, bar.update)

    def _may_resize(self, rule: Rule, config: ClipConfig) -> bool:
        """Whether to interpolate a table: if another size was requested, or the source states none.

        Otherwise a mismatch means that the source contradicts itself, which is refused.
        """
        if not self.says_sizes:
            return True
        if rule.resize == "line":
            return config.position_rows != self.config.position_rows
        return config.vision_grid != self.config.vision_grid

    def own_tokenizer(self, config: ClipConfig) -> Tokenizer | None:
        """The source's tokenizer at the model's context length, or None.

        Raises `UserError` if it has more ids than the model.
        """
        found = self.tokenizer()
        return None if found is None else fitting(found, config, str(self.path))


def on_mesh(mesh: Mesh) -> Place:
    """Returns a `Place` that puts leaves on the mesh, sharded over fsdp by the training rule."""

    def place(path: str, leaf: np.ndarray) -> jax.Array:
        spec = leaf_spec(path, leaf.shape, leaf.dtype, mesh)
        return jax.make_array_from_callback(
            leaf.shape, NamedSharding(mesh, spec), leaf.__getitem__, dtype=leaf.dtype
        )

    return place


def open_model(path: Path, architecture: str | None = None) -> Source:
    """Recognises, without reading it, the model at a path: any layout, or a training checkpoint.

    `architecture` is for files that do not state their own. Raises `UserError` naming what was
    looked for and what was found.
    """
    if path.is_dir() and not is_bundle(path / "model") and not is_bundle(path):
        checkpoints = _find_checkpoints(path)
        if checkpoints:
            return _open_newest(checkpoints, path)
    try:
        return _open(path, architecture)
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


def _open(path: Path, architecture: str | None) -> Source:
    """Opens a model in the first layout that recognises it, under the name of its function."""
    try:
        opened = next((x for layout in layouts() if (x := layout.open(path, architecture))), None)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if opened is None:
        raise UserError(
            f"{path}: no model found; looked for an export or run of clip_jax (model/, "
            "checkpoints/), Hugging Face's config.json, open_clip_config.json, or weights such as "
            f"model.safetensors or pytorch_model.bin; there is: {inventory(path)}"
        )
    if opened.config.name == "custom":
        named = dataclasses.replace(opened.config, name=same_function(opened.config))
        opened = dataclasses.replace(opened, config=named)
    return Source(**vars(opened))


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
    if identity.get("base_hash"):
        raise UserError(
            f"{directory}: holds only an adapter; its run writes the model at its end, which the"
            " training command goes on to"
        )
    return Source(
        layout="clip_jax",
        path=directory,
        config=config,
        tensors=ArrayTensors(leaves_by_path(read_params(directory)), directory),
        rules=functools.partial(bundle_rules, config),
        tokenizer=lambda: tokenizer_from_identity(identity),
    )
