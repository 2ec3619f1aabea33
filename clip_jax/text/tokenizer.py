"""Tokenizer interface, look-up by name or path, and storage with a model."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from clip_jax.arguments import with_home
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.text.added_tokens import ADDED_TOKENS_NAME
from clip_jax.text.clip_bpe import BPE_FILE_NAME, ClipBpeTokenizer, find_bpe_file
from clip_jax.text.huggingface_export import to_huggingface_files
from clip_jax.text.huggingface_files import (
    HuggingFaceTokenizer,
    load_huggingface_tokenizer,
)
from clip_jax.text.rows import RowTokenizer
from clip_jax.text.sentencepiece_model import SentencePieceTokenizer, train_sentencepiece

__all__ = [
    "TOKENIZER_CONFIG_NAME",
    "ClipBpeTokenizer",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "find_bpe_file",
    "get_tokenizer",
    "load_huggingface_tokenizer",
    "load_tokenizer",
    "save_tokenizer",
    "to_huggingface_files",
    "tokenizer_from_files",
    "train_sentencepiece",
]

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
OPENAI_VOCAB_SIZE = 49408


@runtime_checkable
class Tokenizer(Protocol):
    """Turns captions into rows of ids; picklable, so that data workers can hold one."""

    context_length: int  # ids per row, special ones included
    vocab_size: int
    eos_id: int  # ends every text; the text tower pools at it
    pad_id: int

    def __call__(self, texts: str | Sequence[str], /, truncate: bool | None = None) -> np.ndarray:
        """Texts (N) -> int32 (N, context_length).

        If `truncate`, texts that are too long are cut, keeping EOS; otherwise they raise UserError.
        None takes the tokenizer's setting (see `with_truncation`), by default False.
        """

    def decode(self, ids: Iterable[int], /) -> str:
        """Ids of one text, in any integer container -> text."""

    def with_context_length(self, context_length: int, /) -> "Tokenizer":
        """The same tokenizer with rows of another length."""

    def with_truncation(self, truncate: bool, /) -> "Tokenizer":
        """The same tokenizer, cutting texts that are too long or refusing them."""

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(JSON-serialisable spec with `kind` and `options`, {file name: content})."""


_KINDS: dict[str, type[RowTokenizer]] = {
    cls.kind: cls for cls in (ClipBpeTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer)
}


def tokenizer_from_files(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> Tokenizer:
    """Inverse of `Tokenizer.to_files`.

    Raises:
      UserError: unknown kind or option, a missing file, or invalid content.
    """
    cls = _KINDS.get(spec.get("kind", ""))
    if cls is None:
        raise UserError(f"tokenizer kind {spec.get('kind')!r}: accepted are {', '.join(_KINDS)}")
    if not isinstance(spec.get("options"), dict):
        raise UserError(f"tokenizer spec of kind {cls.kind!r} has no object 'options'")
    try:
        return cls.from_files(spec, files)
    except KeyError as error:
        raise UserError(f"tokenizer of kind {cls.kind!r} lacks its file {error}") from error
    except TypeError as error:
        raise UserError(f"tokenizer of kind {cls.kind!r}, options: {error}") from error


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes `tokenizer_config.json` and the tokenizer's own files into `directory`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    spec, files = tokenizer.to_files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = json.dumps({**spec, "sha256": digests}, indent=2)
    (folder / TOKENIZER_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Reads a tokenizer written by `save_tokenizer`.

    Raises:
      UserError: a file is missing or was changed; the message names it.
    """
    config = Path(directory) / TOKENIZER_CONFIG_NAME
    try:
        spec = json.loads(_read(config))
    except ValueError as error:
        raise UserError(f"{config} is not JSON: {error}") from error
    digests = spec.get("sha256") if isinstance(spec, dict) else None
    if not isinstance(digests, dict):
        raise UserError(f"{config}: expected an object with kind, options and sha256")
    files = {}
    for name, digest in digests.items():
        # A foreign config must not make us read files outside its folder.
        if Path(name).name != name:
            raise UserError(f"{config}: sha256 key {name!r} is not a plain file name")
        files[name] = _read(config.parent / name)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise UserError(f"{config.parent / name} is corrupted: its SHA-256 is not {digest}")
    try:
        return tokenizer_from_files(spec, files)
    except UserError as error:
        raise UserError(f"{config}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer file {path} cannot be read: {error.strerror}") from error


def get_tokenizer(name_or_path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer for a name or path.

    Accepted: "clip_bpe" or "openai" (OpenAI's, see `find_bpe_file`), or the name of an architecture
    with OpenAI's vocabulary; a directory written by `save_tokenizer`, or in Hugging Face's or
    open_clip's layout; a SentencePiece `.model` file (context length 64, cleaning "lower"); the
    merges file `bpe_simple_vocab_16e6.txt.gz`; a `tokenizer.json`, `merges.txt` (with vocab.json
    beside it) or `vocab.txt`.

    Raises:
      UserError: none of these, or the file is corrupted.
    """
    if name_or_path in ("clip_bpe", "openai"):
        return ClipBpeTokenizer(find_bpe_file().read_bytes())
    config = ARCHITECTURES.get(name_or_path) if isinstance(name_or_path, str) else None
    if config is not None and config.vocab_size == OPENAI_VOCAB_SIZE:
        return ClipBpeTokenizer(find_bpe_file().read_bytes(), config.context_length)
    path = Path(with_home(name_or_path, "tokenizer"))
    if path.is_dir():
        return _of_directory(path)
    if path.is_file() and path.name.endswith(".txt.gz"):
        return ClipBpeTokenizer(find_bpe_file(path).read_bytes())
    if path.is_file() and path.suffix == ".model":
        try:
            return SentencePieceTokenizer(_read(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if path.is_file() and path.suffix in (".json", ".txt"):
        return _of_single_file(path)
    raise UserError(
        f"tokenizer {str(name_or_path)!r}: accepted are 'clip_bpe' ('openai'), a directory with "
        f"{TOKENIZER_CONFIG_NAME} or Hugging Face's tokenizer files, a SentencePiece .model file, "
        f"{BPE_FILE_NAME}, tokenizer.json, merges.txt or vocab.txt"
    )


def _of_directory(path: Path) -> Tokenizer:
    # Hugging Face's file of the same name has no `kind`.
    config = path / TOKENIZER_CONFIG_NAME
    if config.is_file() and b'"kind"' in _read(config):
        return load_tokenizer(path)
    found = load_huggingface_tokenizer(path)
    return load_tokenizer(path) if found is None else found


def _of_single_file(path: Path) -> Tokenizer:
    """The tokenizer of one file and those that it requires, ignoring others in the folder."""
    names = {"merges.txt": "merges.txt", ".json": "tokenizer.json", ".txt": "vocab.txt"}
    name = names.get(path.name) or names[path.suffix]
    if path.name == "vocab.json":
        name = "vocab.json"
    parts = {name: _read(path)}
    if name == "merges.txt":
        parts["vocab.json"] = _read(path.parent / "vocab.json")
    if name == "vocab.json":
        parts["merges.txt"] = _read(path.parent / "merges.txt")
    for config in (TOKENIZER_CONFIG_NAME, "special_tokens_map.json", ADDED_TOKENS_NAME):
        if (path.parent / config).is_file():
            parts[config] = _read(path.parent / config)
    with tempfile.TemporaryDirectory() as folder:
        for part, content in parts.items():
            (Path(folder) / part).write_bytes(content)
        try:
            found = load_huggingface_tokenizer(folder)
        except UserError as error:
            raise UserError(str(error).replace(folder, str(path.parent))) from error
    if found is None:
        raise UserError(f"{path}: not a tokenizer file")
    return found
