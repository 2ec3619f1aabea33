"""CLIP's byte-pair vocabulary, read from OpenAI's merges file or from Hugging Face files."""

import gzip
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import models

from clip_jax.errors import UserError

BPE_FILE_NAME = "bpe_simple_vocab_16e6.txt.gz"
VOCAB_FILE_NAME = "vocab.json"
MERGES_FILE_NAME = "merges.txt"
NUM_MERGES = 48_894  # used by CLIP; OpenAI's file has more lines
OPENAI_VOCAB_SIZE = 256 + 256 + NUM_MERGES + 2  # 49,408: bytes, those that end a piece, BOS, EOS
BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
END_OF_PIECE = "</w>"


def byte_symbols() -> dict[int, str]:
    """{byte: GPT-2's printable stand-in}, in CLIP's order: printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


@dataclass(frozen=True)
class BpeVocabulary:
    """Symbols and merges of a byte-pair vocabulary. Raises UserError if they do not match."""

    ids: dict[str, int]  # symbol → id, special ones included
    merges: list[tuple[str, str]]  # by rank: earlier ones are applied first
    merges_name: str  # of the file, for errors

    def __post_init__(self) -> None:
        for rank, (a, b) in enumerate(self.merges):
            if a not in self.ids or b not in self.ids or a + b not in self.ids:
                missing = next(symbol for symbol in (a, b, a + b) if symbol not in self.ids)
                raise UserError(
                    f"{self.merges_name} is corrupted or of another vocabulary: merge {rank + 1}, "
                    f"{a!r} + {b!r}, has the unknown symbol {missing!r}"
                )

    def special_id(self, token: str) -> int:
        """Id of a special token. Raises UserError if the vocabulary lacks it."""
        if token not in self.ids:
            raise UserError(f"{VOCAB_FILE_NAME}: lacks the special token {token!r}")
        return self.ids[token]

    def engine(self, **options: Any) -> models.BPE:
        """The library's model. It drops each symbol that `ids` lacks, or replaces it by
        `unk_token`."""
        options |= {"end_of_word_suffix": END_OF_PIECE, "cache_capacity": 0}
        return models.BPE(vocab=self.ids, merges=self.merges, **options)


@lru_cache(maxsize=2)
def read_openai_merges(content: bytes) -> BpeVocabulary:
    """Content of `bpe_simple_vocab_16e6.txt.gz` -> 49,408 symbols. UserError if it is damaged."""
    try:
        lines = gzip.decompress(content).decode("utf-8").split("\n")[1 : NUM_MERGES + 1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{BPE_FILE_NAME} is corrupted: {error}") from error
    merges = [(a, b) for a, b in (line.split() for line in lines if line.count(" ") == 1)]
    if len(merges) != NUM_MERGES:
        raise UserError(f"{BPE_FILE_NAME} is corrupted: expected {NUM_MERGES} lines of two symbols")
    single = [*byte_symbols().values()]
    symbols = [*single, *(s + END_OF_PIECE for s in single), *(a + b for a, b in merges)]
    ids = {symbol: i for i, symbol in enumerate([*symbols, BOS_TOKEN, EOS_TOKEN])}
    return BpeVocabulary(ids, merges, BPE_FILE_NAME)


@lru_cache(maxsize=2)
def read_huggingface_merges(vocab: bytes, merges: bytes) -> BpeVocabulary:
    """Contents of `vocab.json` and `merges.txt` -> a vocabulary of any size.

    Raises UserError if one is damaged, or they do not match.
    """
    ids = parse_json(vocab, VOCAB_FILE_NAME)
    if not ids or not all(type(i) is int and i >= 0 for i in ids.values()):
        raise UserError(f"{VOCAB_FILE_NAME}: expected an object of {{symbol: id}}, ids from 0")
    try:
        lines = merges.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{MERGES_FILE_NAME} is corrupted: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split()
        if len(pair) != 2:
            raise UserError(f"{MERGES_FILE_NAME}:{number}: {line[:60]!r} is not two symbols")
        pairs.append((pair[0], pair[1]))
    return BpeVocabulary(ids, pairs, MERGES_FILE_NAME)


def write_huggingface_merges(vocabulary: BpeVocabulary) -> tuple[bytes, bytes]:
    """The contents of `vocab.json` and `merges.txt`."""
    vocab = json.dumps(vocabulary.ids, ensure_ascii=False).encode()
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in vocabulary.merges)]
    return vocab, ("\n".join(lines) + "\n").encode()


def vocabulary_of_tokenizer_json(
    spec: Mapping[str, Any], special: Collection[str] = (BOS_TOKEN, EOS_TOKEN)
) -> BpeVocabulary:
    """The vocabulary of a parsed `tokenizer.json`, with only the added tokens in `special`.

    Raises UserError if it is not one of byte pairs.
    """
    model = spec.get("model") or {}
    try:
        added = {t["content"]: t["id"] for t in spec.get("added_tokens") or ()}
        ids = {**model["vocab"], **{name: added[name] for name in special if name in added}}
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        pairs = [(a, b) for a, b in merges]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"tokenizer.json: not a byte-pair vocabulary: {error!r}") from error
    return BpeVocabulary(ids, pairs, "tokenizer.json")


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """Parses a JSON file that holds an object; otherwise raises UserError with its `name`."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{name}: expected an object, found {type(value).__name__}")
    return value


def read_file(path: Path) -> bytes:
    """A file's content. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer file {path} cannot be read: {error.strerror}") from error
