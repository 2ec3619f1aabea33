"""Look-up of tokenizers by name or path, and their storage with a model."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.arguments import with_home
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.text.byte_pairs import BPE_FILE_NAME, OPENAI_VOCAB_SIZE, read_file
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.huggingface_files import load_huggingface_file, load_huggingface_tokenizer
from clip_jax.text.huggingface_pipeline import HuggingFaceTokenizer
from clip_jax.text.merges_file import find_bpe_file
from clip_jax.text.rows import Tokenizer
from clip_jax.text.sentencepiece_model import SentencePieceTokenizer
from clip_jax.text.sentencepiece_model import train_sentencepiece as train_sentencepiece

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
_KINDS: dict[str, type[Tokenizer]] = {
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
        spec = json.loads(read_file(config))
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
        files[name] = read_file(config.parent / name)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise UserError(f"{config.parent / name} is corrupted: its SHA-256 is not {digest}")
    try:
        return tokenizer_from_files(spec, files)
    except UserError as error:
        raise UserError(f"{config}: {error}") from error


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
    config = ARCHITECTURES.get(name_or_path) if isinstance(name_or_path, str) else None
    if config is not None and config.vocab_size == OPENAI_VOCAB_SIZE:
        return ClipBpeTokenizer(find_bpe_file().read_bytes(), config.context_length)
    if name_or_path in ("clip_bpe", "openai"):
        return ClipBpeTokenizer(find_bpe_file().read_bytes())
    path = Path(with_home(name_or_path, "tokenizer"))
    found: Tokenizer | None = None
    if path.is_dir():
        # Hugging Face's file of the same name has no `kind`.
        config_file = path / TOKENIZER_CONFIG_NAME
        is_ours = config_file.is_file() and b'"kind"' in read_file(config_file)
        found = None if is_ours else load_huggingface_tokenizer(path)
        return load_tokenizer(path) if found is None else found
    if path.is_file() and path.name.endswith(".txt.gz"):
        found = ClipBpeTokenizer(find_bpe_file(path).read_bytes())
    elif path.is_file() and path.suffix == ".model":
        try:
            found = SentencePieceTokenizer(read_file(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    elif path.is_file() and path.suffix in (".json", ".txt"):
        found = load_huggingface_file(path)
    if found is not None:
        return found
    raise UserError(
        f"tokenizer {str(name_or_path)!r}: accepted are 'clip_bpe' ('openai'), a directory with "
        f"{TOKENIZER_CONFIG_NAME} or Hugging Face's tokenizer files, a SentencePiece .model file, "
        f"{BPE_FILE_NAME}, tokenizer.json, merges.txt or vocab.txt"
    )
