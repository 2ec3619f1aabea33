"""Tokenizer for any `tokenizer.json`, by Hugging Face's `tokenizers` library.

`huggingface_files.py` reads whole Hugging Face directories, `huggingface_export.py` writes them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import tokenizers

from clip_jax.errors import UserError, first_line
from clip_jax.text.added_tokens import added_tokens_of, role_names
from clip_jax.text.byte_pairs import parse_json
from clip_jax.text.cleaning import clean_text
from clip_jax.text.guard import hide_tokens, without_marks
from clip_jax.text.rows import RowTokenizer, id_bytes

TOKENIZER_JSON_NAME = "tokenizer.json"
# Hugging Face's tokenizer_config.json gets another name, because ours has that one.
CONFIG_NAME = "huggingface_config.json"
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
_EOS_NAMES = ("</s>", "<eos>", "[SEP]", "<|endoftext|>")


class HuggingFaceTokenizer(RowTokenizer):
    """Any `tokenizer.json`: texts -> int32 (N, context_length): prefix, ids, suffix, padding.

    The name of a token that marks a row's structure ("[SEP]", "</s>") is ordinary text in a caption
    and never becomes the special id; `special_strings="parse"` gives Hugging Face's behaviour.
    Other added tokens, special or not, are matched as in Hugging Face.

    Args:
      tokenizer_json: content of the file.
      context_length: ids per row, special ones included.
      cleaning: a mode of `clip_jax.text.cleaning.clean_text`, applied before the file's own
        normalisation.
      truncate: cuts longer texts, keeping EOS as last id; otherwise they raise UserError.
      special_strings: "encode" them as text or "parse" them into the special ids.
      config: content of Hugging Face's `tokenizer_config.json`, for the names of special tokens.
      pad_id: None takes the files'.
      prefix_ids: ids before those of the text, mostly BOS or [CLS]; None takes the prefix of the
        file's post-processor.
      suffix_ids: ids after them, EOS or [SEP] last; None takes the post-processor's.
      strip_sep_token: CLIPA's rule: in a finished row the suffix's last id becomes padding.
    """

    kind = "huggingface"

    def __init__(
        self,
        tokenizer_json: bytes,
        context_length: int = 77,
        cleaning: str = "none",
        truncate: bool = False,
        special_strings: str = "encode",
        config: bytes = b"{}",
        pad_id: int | None = None,
        prefix_ids: Sequence[int] | None = None,
        suffix_ids: Sequence[int] | None = None,
        strip_sep_token: bool = False,
    ):
        super().__init__(context_length, cleaning, truncate, special_strings)
        self.strip_sep_token = strip_sep_token
        self._files = {TOKENIZER_JSON_NAME: tokenizer_json, CONFIG_NAME: config}
        spec = parse_json(tokenizer_json, TOKENIZER_JSON_NAME)
        names = role_names(parse_json(config, CONFIG_NAME))
        original = load_backend(tokenizer_json)
        own = original.get_vocab(with_added_tokens=False)
        self.all_added_tokens = added_tokens_of(original)
        self.added_tokens = [t for t in self.all_added_tokens if t["content"] not in own]
        self.vocab_size = _largest_id(original) + 1
        prefix, suffix = _post_processor_ids(original)
        self._prefix = tuple(prefix if prefix_ids is None else prefix_ids)
        self._suffix = tuple(suffix if suffix_ids is None else suffix_ids)
        if not self._suffix:
            self._suffix = (_first_known(original, (names.get("eos"), *_EOS_NAMES), "EOS"),)
        self.eos_id = self._suffix[-1]
        if pad_id is None:
            pad_id = (spec.get("padding") or {}).get("pad_id")
            if "pad" in names or pad_id is None:
                pad_id = _first_known(original, (names.get("pad"), *_PAD_NAMES), "padding")
        self.pad_id = pad_id
        self._check_row()

        plain = {**spec, "post_processor": None, "truncation": None, "padding": None}
        if special_strings == "encode":
            rows = (*self._prefix, *self._suffix, self.pad_id)
            marks = {original.id_to_token(i) for i in rows}
            marks |= {name for name in names.values() if name in own}
            plain = hide_tokens(plain, {name for name in marks if name is not None})
        self._backend = load_backend(json.dumps(plain).encode())

    def __call__(self, texts: str | Sequence[str], truncate: bool | None = None) -> np.ndarray:
        """Texts (N) -> int32 (N, context_length); see `RowTokenizer`."""
        rows = super().__call__(texts, truncate)
        if self.strip_sep_token:
            rows[rows == self.eos_id] = self.pad_id
        return rows

    def _bodies(self, texts: list[str], cut: bool) -> Iterable[bytes]:
        encode = self._backend.encode
        for text in texts:
            cleaned = without_marks(clean_text(text, self.cleaning))
            # Texts go one by one: data workers call this in parallel, each on its own core.
            yield id_bytes(encode(cleaned, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of one text -> text as the vocabulary spells it, up to the first EOS."""
        return self._backend.decode(self._body_of(ids), skip_special_tokens=False)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {
            "pad_id": self.pad_id,
            "prefix_ids": list(self._prefix),
            "suffix_ids": list(self._suffix),
            "strip_sep_token": self.strip_sep_token,
        }

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(JSON-serialisable spec, {file name: content}); inverse of `tokenizer_from_files`."""
        return {"kind": self.kind, "options": self._options()}, dict(self._files)

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Inverse of `to_files`."""
        return cls(files[TOKENIZER_JSON_NAME], config=files[CONFIG_NAME], **spec["options"])


def load_backend(content: bytes) -> tokenizers.Tokenizer:
    """Content of a `tokenizer.json` -> the library's object. Raises UserError if it is invalid."""
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    # The library raises plain Exception for any damage.
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"{TOKENIZER_JSON_NAME} cannot be used: {reason}") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _largest_id(backend: tokenizers.Tokenizer) -> int:
    return max(backend.get_vocab(with_added_tokens=True).values(), default=-1)


def _post_processor_ids(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
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
