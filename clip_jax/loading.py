"""Constructors of `Clip`: random, or from disk, a URL or the hub."""

import os
from typing import Any

import jax
from jax.sharding import Mesh

from clip_jax.adapted import adapter_of_run, read_adapted
from clip_jax.arguments import shown, whole_number
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import override
from clip_jax.models.two_tower import init_params
from clip_jax.sharding import make_mesh
from clip_jax.text.tokenizer import Tokenizer, get_tokenizer
from clip_jax.weights.fitting import fit_tokenizer, fitting
from clip_jax.weights.load import on_mesh, open_model
from clip_jax.weights.resolve import resolve_source


def create(
    name: str,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    **overrides: Any,
) -> Clip:
    """Creates a CLIP with random parameters.

    `tokenizer` is a name or path that `get_tokenizer` takes, or a tokenizer. `overrides` are
    `ClipConfig` fields such as `image_size=` or `vocab_size=`, those of a tower as a dict:
    `vision={"patch_size": 16}`. Raises `UserError` for unknown ones.
    """
    config = get_architecture(name, **overrides)
    key = jax.random.key(whole_number(seed, "seed", least=0, greatest=2**32 - 1))
    tokenizer = _tokenizer(tokenizer)
    if tokenizer is not None:
        config, tokenizer = fit_tokenizer(config, tokenizer)
    params = jax.jit(lambda: init_params(config, key))()
    return Clip(config, params, tokenizer)


def _tokenizer(given: str | os.PathLike[str] | Tokenizer | None) -> Tokenizer | None:
    """Returns the given or named tokenizer. Raises `UserError` for anything else."""
    if isinstance(given, str | os.PathLike):
        return get_tokenizer(given)
    if given is None or hasattr(given, "with_context_length"):
        return given
    raise UserError(
        f"tokenizer={shown(given)}: must be a name or path that get_tokenizer takes, or a tokenizer"
    )


def load(
    source: str | os.PathLike[str],
    dtype: str = "float32",
    *,
    architecture: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
    **overrides: Any,
) -> Clip:
    """Loads a CLIP from a path, URL (`gs://`, `s3://`) or hub id ("openai/clip-vit-base-patch32").

    Recognises this package's exports, training runs and checkpoints; Hugging Face CLIP, SigLIP,
    SigLIP 2 and VisionTextDualEncoder folders; open_clip folders and state dictionaries; OpenAI's
    .pt; big_vision's .npz. Weights go tensor by tensor to the mesh.

    Args:
      dtype: "float32" or "bfloat16", of the parameters and the computation.
      architecture: a name of `list_models()`, for files that do not name their architecture.
      adapter: a folder with an adapter, ours or PEFT's; `clip_jax.adapted.AdaptedClip` says what a
        model with one can do. A run of `clip_jax.adapt` as `source` brings its own.
      tokenizer: replaces the source's own; a name or path that `get_tokenizer` takes, or one.
      mesh: holds the parameters, split over its fsdp axis; by default all local devices.
      revision: branch, tag or commit of a hub id.
      overrides: `ClipConfig` fields such as `image_size=`, `context_length=` or
        `vision={"activation": "gelu"}`; position tables are interpolated, with a log message.

    Raises:
      UserError: something is missing, damaged or contradictory.
    """
    if architecture is not None:
        get_architecture(architecture)
    if (run := adapter_of_run(source)) is not None:
        if adapter is not None:
            raise UserError(f"adapter={adapter}: {source} has an adapter of its own; give one")
        source, adapter = run
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={dtype!r}: choose float32 or bfloat16")
    found = open_model(resolve_source(source, revision=revision), architecture)
    config = override(found.config, dtype=dtype, **overrides)
    tokenizer = _tokenizer(tokenizer)
    if tokenizer is not None:  # fails before the long work
        tokenizer = fitting(tokenizer, config, str(source))
    mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    params = found.params(config, dtype, on_mesh(mesh))
    if tokenizer is None:
        clip = Clip(config, params, mesh=mesh, find_tokenizer=lambda: found.own_tokenizer(config))
    else:
        clip = Clip(config, params, tokenizer, mesh)
    return clip if adapter is None else read_adapted(clip, adapter, str(source))
