"""Recognition of a model on disk: its layout, configuration, tokenizer and weights."""

import dataclasses
import functools
import json
import logging
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture, same_function
from clip_jax.models.config import ClipConfig, override
from clip_jax.sharding import leaf_spec
from clip_jax.text.huggingface_files import has_tokenizer, load_huggingface_tokenizer
from clip_jax.text.tokenizer import OPENAI_VOCAB_SIZE, Tokenizer, get_tokenizer
from clip_jax.weights.files.folders import inventory, newest_trainer_checkpoint, refuse_adapter
from clip_jax.weights.files.tensors import find_weights, is_index, open_tensors
from clip_jax.weights.fitting import fitting
from clip_jax.weights.layouts import big_vision, dual_encoder, huggingface, open_clip, openai
from clip_jax.weights.layouts.bundle import bundle_rules, is_bundle, open_bundle
from clip_jax.weights.layouts.open_clip_config import config_from_open_clip
from clip_jax.weights.rules.preprocessing import from_huggingface
from clip_jax.weights.rules.table import Place, Rule, Tensors, read_params

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
HUGGING_FACE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BARE_WEIGHTS = (*OPEN_CLIP_WEIGHTS, "model.pt", "model.npz")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")
LARGE_MODEL = 300_000_000  # scalars; smaller ones load in a second or two
NOTHING = re.compile(r"(?!)")

logger = logging.getLogger(__name__)


class NoTokenizerError(UserError):
    """A source without tokenizer files, when OpenAI's, its fallback, are not available either."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A model recognised on disk, of which only names and shapes have been read."""

    layout: str  # "clip_jax", "huggingface", "open_clip", "openai" or "big_vision"
    path: Path
    config: ClipConfig  # the source's own, before any override
    tensors: Tensors
    rules: Callable[[ClipConfig], list[Rule]]
    tokenizer: Callable[[], Tokenizer | None]
    ignored: re.Pattern[str] = NOTHING
    says_sizes: bool = True  # False: only the architecture's name is known

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
            return read_params(config, table, self.tensors, self.ignored, dtype, place, bar.update)

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


def open_source(path: Path, architecture: str | None = None) -> Source:
    """Recognises the model at `path`. `architecture`: for files that do not state their own.

    Raises `UserError` naming what was looked for and what was found.
    """
    try:
        opened = _open_directory if path.is_dir() else _open_file
        source = opened(path, architecture)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if source.config.name == "custom":
        named = dataclasses.replace(source.config, name=same_function(source.config))
        source = dataclasses.replace(source, config=named)
    return source


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: is no JSON object")
    return value


def _open_directory(path: Path, architecture: str | None) -> Source:
    for folder in (path, path / "model"):
        if is_bundle(folder):
            return _bundle(folder)
    if (path / OPEN_CLIP_CONFIG).is_file():
        return _open_clip_directory(path)
    bare = find_weights(path, BARE_WEIGHTS)
    if bare is None:
        refuse_adapter(path)
        checkpoint = newest_trainer_checkpoint(path, HUGGING_FACE_WEIGHTS)
        if checkpoint is not None:
            return _hugging_face_directory(checkpoint, root=path)
    if (path / "config.json").is_file():
        return _hugging_face_directory(path)
    if bare is not None:
        return _open_file(bare, architecture)
    raise UserError(
        f"{path}: no model found; looked for an export or run of clip_jax (model/, checkpoints/), "
        f"Hugging Face's config.json, {OPEN_CLIP_CONFIG}, or weights such as model.safetensors "
        f"or pytorch_model.bin; there is: {inventory(path)}"
    )


def _bundle(folder: Path) -> Source:
    config, tensors, tokenizer = open_bundle(folder)
    rules = functools.partial(bundle_rules, config)
    return Source("clip_jax", folder, config, tensors, rules, tokenizer)


def _weights_in(path: Path, names: tuple[str, ...]) -> Tensors:
    file = find_weights(path, names)
    if file is None:
        refuse_adapter(path)
        raise UserError(
            f"{path}: has a configuration but no weights (looked for {' and '.join(names)}, their "
            f"shards and variants); there is: {inventory(path)}"
        )
    if file.name.split(".index")[0] not in names:  # for example model.fp16.safetensors
        logger.warning("%s: has no %s; took %s", path, " or ".join(names), file.name)
    return open_tensors(file)


def _open_clip_directory(path: Path, file: Path | None = None) -> Source:
    document = _read_json(path / OPEN_CLIP_CONFIG)
    if not isinstance(document.get("model_cfg"), dict):
        raise UserError(f"{path / OPEN_CLIP_CONFIG}: has no object model_cfg")
    config = config_from_open_clip(document)
    tensors = open_tensors(file) if file else _weights_in(path, OPEN_CLIP_WEIGHTS)
    text_cfg = document["model_cfg"].get("text_cfg") or {}
    options = text_cfg.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict):
        raise UserError(
            f"{path / OPEN_CLIP_CONFIG}: tokenizer_kwargs={options!r}: must be an object"
        )
    return Source(
        "open_clip",
        path,
        config,
        tensors,
        _open_clip_rules(tensors),
        lambda: _tokenizer(
            path, config, options.get("clean"), bool(options.get("strip_sep_token", False))
        ),
        open_clip.IGNORED,
    )


def _open_clip_rules(tensors: Tensors) -> Callable[[ClipConfig], list[Rule]]:
    custom = any(name.startswith("text.") for name in tensors.shapes)
    return lambda config: open_clip.open_clip_rules(config, custom)


def _hugging_face_directory(
    path: Path, file: Path | None = None, root: Path | None = None
) -> Source:
    """Opens Hugging Face's layout; tokenizer and image transform may come from `root`."""
    document = _read_json(path / "config.json")
    tensors = open_tensors(file) if file else _weights_in(path, HUGGING_FACE_WEIGHTS)
    rules: Callable[[ClipConfig], list[Rule]]
    if document.get("model_type") == "vision-text-dual-encoder":
        config = dual_encoder.config_from_dual_encoder(document)
        rules = functools.partial(dual_encoder.dual_encoder_rules, names=tensors.shapes)
        ignored = dual_encoder.IGNORED
    else:
        config = huggingface.config_from_huggingface(document)
        rules, ignored = huggingface.huggingface_rules, huggingface.IGNORED
    names = ("preprocessor_config.json", "processor_config.json")
    for about_path in [folder / name for folder in (path, root) if folder for name in names]:
        name = about_path.name
        about = _read_json(about_path) if about_path.is_file() else {}
        # transformers 5 writes processor_config.json for text-only processors too.
        if about if name == "preprocessor_config.json" else "image_processor" in about:
            try:
                image = from_huggingface(about)
            except UserError as error:
                raise UserError(f"{about_path}: {error}") from error
            size = image.pop("image_size", config.image_size)
            if config.vision.grid(size) != config.vision_grid:
                raise UserError(
                    f"{about_path}: images of {size} pixels, but config.json says "
                    f"image_size={config.image_size}"
                )
            config = override(config, **image)
            break
    return Source(
        "huggingface",
        path,
        config,
        tensors,
        rules,
        lambda: _tokenizer(path if root is None or has_tokenizer(path) else root, config),
        ignored,
    )


def _open_file(path: Path, architecture: str | None) -> Source:
    """Opens a weight file with the configuration beside it, or that of `architecture`."""
    if path.suffix not in WEIGHT_SUFFIXES and not is_index(path):
        raise UserError(
            f"{path}: not a file of weights (accepted: {', '.join(WEIGHT_SUFFIXES)}, or a folder)"
        )
    beside = path.parent
    if architecture is None and path.suffix != ".npz":
        if (beside / OPEN_CLIP_CONFIG).is_file():
            return _open_clip_directory(beside, path)
        if is_bundle(beside):
            return _bundle(beside)
        if (beside / "config.json").is_file():
            return _hugging_face_directory(beside, path)
    tensors = open_tensors(path)
    rules, ignored = _open_clip_rules(tensors), open_clip.IGNORED
    if path.suffix == ".npz":
        layout = "big_vision"
        config = big_vision.config_from_big_vision(tensors.shapes, architecture)
        tensors = big_vision.merge_position_tables(tensors)
        rules = functools.partial(big_vision.big_vision_rules, names=tensors.shapes)
        ignored = big_vision.IGNORED
    elif architecture is not None:
        layout, config = "open_clip", get_architecture(architecture)
    elif "input_resolution" in tensors.shapes:  # only in OpenAI's own archives
        layout, config = "openai", openai.config_from_shapes(tensors.shapes, str(path))
    else:
        raise UserError(f"{path}: a bare state dictionary; {_which_architecture(tensors, path)}")
    return Source(
        layout,
        path,
        config,
        tensors,
        rules,
        lambda: _tokenizer(beside, config),
        ignored,
        says_sizes=architecture is None,
    )


def _which_architecture(tensors: Tensors, path: Path) -> str:
    """A hint naming the architectures that fit; shapes do not show the activation, so none is
    chosen."""
    if not openai.looks_native(tensors.shapes):
        return "give architecture= (clip_jax.list_models() has the names)"
    try:
        like = same_function(openai.config_from_shapes(tensors.shapes, str(path)))
    except UserError:
        like = "custom"
    if like == "custom":
        return "give architecture= (no known name has these shapes)"
    plain = like.removesuffix("-quickgelu")
    return f"give architecture={plain!r}, or {like!r} if it was trained with quick GELU"


def _tokenizer(
    folder: Path, config: ClipConfig, cleaning: str | None = None, strip_sep_token: bool = False
) -> Tokenizer | None:
    """The folder's tokenizer; without one, OpenAI's BPE if vocab_size is 49,408."""
    found = load_huggingface_tokenizer(
        folder,
        context_length=config.context_length,
        cleaning=cleaning,
        strip_sep_token=strip_sep_token,
    )
    if found is None and config.vocab_size == OPENAI_VOCAB_SIZE:
        try:
            return get_tokenizer("clip_bpe")
        except UserError as error:
            raise NoTokenizerError(str(error)) from error
    return found
