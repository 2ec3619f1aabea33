"""What a tokenizer is, how one is found by name or path, and how it is saved with a model."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from clip_jax.data.bpe import BPE_FILE_NAME, ClipBpeTokenizer, find_bpe_file
from clip_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_sentencepiece
from clip_jax.errors import UserError

__all__ = [
    "TOKENIZER_CONFIG_NAME",
    "ClipBpeTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "find_bpe_file",
    "get_tokenizer",
    "load_tokenizer",
    "save_tokenizer",
    "tokenizer_from_files",
    "train_sentencepiece",
]

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"


@runtime_checkable
class Tokenizer(Protocol):
    """Turns captions into rows of ids; picklable, so that data workers can hold one."""

    context_length: int  # ids a row, special ones included
    vocab_size: int
    eos_id: int  # every row has it exactly at its end; the text tower pools there
    pad_id: int

    def __call__(self, texts: str | Sequence[str], /) -> np.ndarray:
        """Texts (N) -> int32 (N, context_length)."""

    def decode(self, ids: Iterable[int], /) -> str:
        """Ids of one text, in any integer container -> text."""

    def with_context_length(self, context_length: int, /) -> "Tokenizer":
        """The same tokenizer with rows of another length."""

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(JSON-able spec with `kind` and `options`, {file name: content})."""


_KINDS: dict[str, type[ClipBpeTokenizer] | type[SentencePieceTokenizer]] = {
    cls.kind: cls for cls in (ClipBpeTokenizer, SentencePieceTokenizer)
}


def tokenizer_from_files(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> Tokenizer:
    """Inverse of `Tokenizer.to_files`.

    Raises:
      UserError: unknown kind or option, a file is missing, or its content is no such tokenizer.
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
    """Reads what `save_tokenizer` wrote.

    Raises:
      UserError: a file is missing or is not what was saved; the message names it.
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
        # A config from elsewhere must not make us read files outside its folder.
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


def get_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer of a name or path.

    Accepted: "clip_bpe" or "openai" (OpenAI's, see `find_bpe_file`); a directory that holds our
    `tokenizer_config.json`; a SentencePiece `.model` file (context length 64, cleaning "lower");
    the merges file `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
      UserError: none of these, or the file is corrupted.
    """
    if name_or_path in ("clip_bpe", "openai"):
        return ClipBpeTokenizer(find_bpe_file().read_bytes())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return load_tokenizer(path)
    if path.is_file() and path.name.endswith(".txt.gz"):
        return ClipBpeTokenizer(find_bpe_file(path).read_bytes())
    if path.is_file() and path.suffix == ".model":
        try:
            return SentencePieceTokenizer(_read(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    raise UserError(
        f"tokenizer {str(name_or_path)!r}: accepted are 'clip_bpe' ('openai'), a directory with "
        f"{TOKENIZER_CONFIG_NAME}, a SentencePiece .model file, or {BPE_FILE_NAME}"
    )
