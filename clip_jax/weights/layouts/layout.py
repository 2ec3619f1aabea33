"""Layouts of weights, and opening of files and folders."""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.text.huggingface_files import load_huggingface_tokenizer
from clip_jax.text.tokenizer import OPENAI_VOCAB_SIZE, Tokenizer, get_tokenizer
from clip_jax.weights.files.folders import inventory, refuse_adapter
from clip_jax.weights.files.tensors import find_weights, is_index, open_tensors
from clip_jax.weights.rules.table import Rule, Tensors

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")
NOTHING = re.compile(r"(?!)")

logger = logging.getLogger(__name__)


class NoTokenizerError(UserError):
    """A source without tokenizer files, when OpenAI's, its fallback, are not available either."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model recognised on disk, of which only names and shapes have been read."""

    layout: str
    path: Path
    config: ClipConfig  # the source's own, before any override
    tensors: Tensors
    rules: Callable[[ClipConfig], list[Rule]]
    tokenizer: Callable[[], Tokenizer | None]
    ignored: re.Pattern[str] = NOTHING
    says_sizes: bool = True  # False: only the architecture's name is known


class Written(NamedTuple):
    """A model as a layout writes it, except for the tensors, which its rules write."""

    documents: dict[str, dict[str, Any]]  # file name -> JSON; the first identifies the layout
    weights: str  # name of the file of weights
    rules: list[Rule]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout of weights, as `LAYOUT` of a module of this folder."""

    name: str  # `format` of `Clip.save`
    # (folder or file, architecture or None) -> the model, or None if it is of another layout
    open: Callable[[Path, str | None], Opened | None]
    write: Callable[[ClipConfig, Tokenizer | None], Written] | None = None
    rank: int = 0  # a layout with weak signs is asked after those of a lower rank


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: is no JSON object")
    return value


def folder_and_file(path: Path, architecture: str | None) -> tuple[Path, Path | None] | None:
    """The folder whose configuration describes the model, and the file of weights if it is given.

    None for a file that is not described by what is beside it.
    """
    if path.is_dir():
        return path, None
    is_weights = path.suffix in WEIGHT_SUFFIXES or is_index(path)
    described = architecture is None and is_weights and path.suffix != ".npz"
    return (path.parent, path) if described else None


def weights_in(path: Path, names: Sequence[str]) -> Tensors:
    """The tensors of a folder that has a configuration. Raises `UserError` if there are none."""
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


def tokenizer_in(folder: Path, config: ClipConfig) -> Tokenizer | None:
    """The folder's tokenizer; without one, OpenAI's BPE if vocab_size is 49,408."""
    found = load_huggingface_tokenizer(folder, context_length=config.context_length)
    if found is None and config.vocab_size == OPENAI_VOCAB_SIZE:
        try:
            return get_tokenizer("clip_bpe")
        except UserError as error:
            raise NoTokenizerError(str(error)) from error
    return found
