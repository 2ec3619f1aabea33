"""Tokenizer for any `tokenizer.json`, by Hugging Face's `tokenizers` library.

`huggingface_files.py` reads whole Hugging Face directories, `huggingface_export.py` writes them.
"""

import json
from collections.abc import Iterable, Sequence, Set
from typing import Any

import numpy as np
import tokenizers

from clip_jax.errors import UserError
from clip_jax.text.added_tokens import (
    TOKENIZER_JSON_NAME,
    added_tokens_of,
    load_backend,
    role_names,
)
from clip_jax.text.byte_pairs import parse_json
from clip_jax.text.cleaning import clean_text
from clip_jax.text.rows import Tokenizer, id_bytes

# Hugging Face's tokenizer_config.json gets another name, because ours has that one.
CONFIG_NAME = "huggingface_config.json"
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
_EOS_NAMES = ("</s>", "<eos>", "[SEP]", "<|endoftext|>")
# Hidden names start with these noncharacters, and `_without_marks` keeps them out of texts.
_MARKS = "\ufdd0\ufdd1\ufdd2"


class HuggingFaceTokenizer(Tokenizer):
    """Any `tokenizer.json`: texts -> int32 (N, context_length): prefix, ids, suffix, padding.

    Added tokens, special or not, are matched as in Hugging Face, but for those that mark a row's
    structure ("[SEP]", "</s>"): their names are text.

    Args:
      tokenizer_json: content of the file.
      context_length, cleaning, truncate: see `Tokenizer`; cleaning comes before the file's own
        normalisation.
      config: content of Hugging Face's `tokenizer_config.json`, for the names of special tokens.
      pad_id: None takes the files'.
      prefix_ids: ids before those of the text, mostly BOS or [CLS]; None takes the prefix of the
        file's post-processor.
      suffix_ids: ids after them, EOS or [SEP] last; None takes the post-processor's.
      strip_sep_token: CLIPA's rule: in a finished row the suffix's last id becomes padding.
    """

    kind = "huggingface"
    options = (*Tokenizer.options, "pad_id", "prefix_ids", "suffix_ids", "strip_sep_token")
    file_names = (("tokenizer_json", TOKENIZER_JSON_NAME), ("config", CONFIG_NAME))

    def __init__(
        self,
        tokenizer_json: bytes,
        context_length: int = 77,
        cleaning: str = "none",
        truncate: bool = False,
        config: bytes = b"{}",
        pad_id: int | None = None,
        prefix_ids: Sequence[int] | None = None,
        suffix_ids: Sequence[int] | None = None,
        strip_sep_token: bool = False,
    ):
        super().__init__(context_length, cleaning, truncate)
        self.strip_sep_token = strip_sep_token
        self.tokenizer_json, self.config = tokenizer_json, config
        spec = parse_json(tokenizer_json, TOKENIZER_JSON_NAME)
        names = role_names(parse_json(config, CONFIG_NAME))
        original = load_backend(tokenizer_json)
        own = original.get_vocab(with_added_tokens=False)
        self.all_added_tokens = added_tokens_of(original)
        self.vocab_size = max(original.get_vocab().values(), default=-1) + 1
        prefix, suffix = _post_processor_ids(original)
        prefix = prefix if prefix_ids is None else prefix_ids
        suffix = suffix if suffix_ids is None else suffix_ids
        suffix = suffix or [_first_known(original, (names.get("eos"), *_EOS_NAMES), "EOS")]
        if pad_id is None:
            pad_id = (spec.get("padding") or {}).get("pad_id")
            if "pad" in names or pad_id is None:
                pad_id = _first_known(original, (names.get("pad"), *_PAD_NAMES), "padding")
        added = [token for token in self.all_added_tokens if token["content"] not in own]
        self._set_row(prefix, suffix, pad_id, added)

        rows = (*prefix, *suffix, pad_id)
        marks = {original.id_to_token(i) for i in rows} | {n for n in names.values() if n in own}
        plain = {**spec, "post_processor": None, "truncation": None, "padding": None}
        self._backend = load_backend(json.dumps(_hide_tokens(plain, marks)).encode())

    def __call__(self, texts: str | Sequence[str], truncate: bool | None = None) -> np.ndarray:
        """Texts (N) -> int32 (N, context_length); see `Tokenizer`."""
        rows = super().__call__(texts, truncate)
        if self.strip_sep_token:
            rows[rows == self.eos_id] = self.pad_id
        return rows

    def _bodies(self, texts: list[str], cut: bool) -> Iterable[bytes]:
        encode = self._backend.encode
        for text in texts:
            cleaned = _without_marks(clean_text(text, self.cleaning))
            # Texts go one by one: data workers call this in parallel, each on its own core.
            yield id_bytes(encode(cleaned, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of one text -> text as the vocabulary spells it, up to the first EOS."""
        return self._backend.decode(self._body_of(ids), skip_special_tokens=False)


def _hide_tokens(spec: dict[str, Any], hidden: Set[str | None]) -> dict[str, Any]:
    """A parsed `tokenizer.json` with the tokens `hidden` renamed so that no text contains them.

    Removing them from the added tokens is not enough: a unigram model finds any piece of its
    vocabulary in a text, even control symbols, and a word-level model any word.
    """

    def rename(name: str) -> str:
        return _MARKS + name if name in hidden else name

    model = dict(spec["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {rename(name): i for name, i in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[rename(name), score] for name, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = rename(model["unk_token"])
    if model.get("merges"):
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        model["merges"] = [
            pair for pair in pairs if hidden.isdisjoint(pair) and "".join(pair) not in hidden
        ]
    added = [
        {**token, "content": rename(token["content"])} for token in spec.get("added_tokens") or ()
    ]
    return {**spec, "model": model, "added_tokens": added}


def _without_marks(text: str) -> str:
    """The text; if it contains all marks, in any order, the first mark becomes U+FFFD."""
    return text.replace(_MARKS[0], "\ufffd") if all(mark in text for mark in _MARKS) else text


def _post_processor_ids(backend: tokenizers.Tokenizer) -> tuple[Sequence[int], Sequence[int]]:
    """(prefix, suffix): the ids that the file's post-processor adds to those of a text."""
    for probe in ("a", "e", "0", ".", *list(backend.get_vocab())[-64:]):
        body = backend.encode(probe, add_special_tokens=False).ids
        row = backend.encode(probe, add_special_tokens=True).ids
        for start in range(len(row) - len(body) + 1):
            if body and row[start : start + len(body)] == body:
                return row[:start], row[start + len(body) :]
    return [], backend.encode("", add_special_tokens=True).ids


def _first_known(backend: tokenizers.Tokenizer, names: Iterable[str | None], what: str) -> int:
    tried = [name for name in names if name is not None]
    for name in tried:
        if (found := backend.token_to_id(name)) is not None:
            return found
    raise UserError(
        f"{TOKENIZER_JSON_NAME} has no {what} token: none of {', '.join(tried)} is in it"
    )
