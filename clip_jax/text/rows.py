"""Base class of all tokenizers: rows of a fixed length, truncation, modified copies."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from clip_jax.arguments import text_list
from clip_jax.errors import UserError
from clip_jax.text.cleaning import check_cleaning

BYTES_PER_ID = 4


def id_bytes(ids: Iterable[int]) -> bytes:
    """Ids -> their bytes as int32; joining such bytes builds rows."""
    return array("i", ids).tobytes()


def as_text_list(texts: str | Sequence[str]) -> list[str]:
    """A list from one string or a sequence of strings. Raises UserError naming a wrong item."""
    return [texts] if isinstance(texts, str) else text_list(texts, "texts", "a photo of a cat")


class RowTokenizer:
    """Texts -> int32 (N, context_length): prefix ids, ids of the text, suffix ids, padding.

    A subclass turns texts into ids (`_bodies`) and serialises itself (`to_files`).
    """

    kind: str
    vocab_size: int
    eos_id: int
    pad_id: int
    # A user added these tokens to the vocabulary; their form is tokenizer.json's.
    added_tokens: Sequence[Mapping[str, Any]] = ()
    _prefix: tuple[int, ...]  # before the ids of a text, mostly BOS
    _suffix: tuple[int, ...]  # after them, EOS last

    def __init__(self, context_length: int, cleaning: str, truncate: bool, special_strings: str):
        if special_strings not in ("encode", "parse"):
            raise UserError(f"special_strings={special_strings!r}: accepted are encode, parse")
        self.context_length = context_length
        self.cleaning = check_cleaning(cleaning)
        self.truncate = truncate
        self.special_strings = special_strings

    def _check_row(self) -> None:
        """Raises UserError if the special ids do not fit into a row, or an option is wrong."""
        smallest = max(2, len(self._prefix) + len(self._suffix))
        if type(self.context_length) is not int or self.context_length < smallest:
            raise UserError(
                f"context_length={self.context_length!r}: accepted is a whole number >= {smallest}"
            )
        if not isinstance(self.truncate, bool):
            raise UserError(f"truncate={self.truncate!r}: accepted are true and false")
        if not 0 <= self.pad_id < self.vocab_size:
            raise UserError(f"pad_id={self.pad_id!r} is not among the {self.vocab_size} ids")

    def __call__(self, texts: str | Sequence[str], truncate: bool | None = None) -> np.ndarray:
        """Texts (N) -> int32 (N, context_length).

        `truncate`: cuts texts that are too long, keeping EOS; None takes the tokenizer's setting.

        Raises:
          UserError: a text is too long and not to be cut.
        """
        listed = as_text_list(texts)
        cut = self.truncate if truncate is None else truncate
        prefix, suffix = id_bytes(self._prefix), id_bytes(self._suffix)
        room = BYTES_PER_ID * self.context_length - len(prefix) - len(suffix)
        padding = id_bytes([self.pad_id]) * self.context_length
        rows = []
        for i, body in enumerate(self._bodies(listed, cut)):
            if len(body) > room:
                if not cut:
                    raise self._too_long(listed[i], len(prefix + body + suffix))
                body = body[:room]
            row = prefix + body + suffix
            rows.append(row + padding[len(row) :])
        # numpy's view of a bytearray is writable, unlike that of bytes.
        packed = np.frombuffer(bytearray(b"".join(rows)), np.int32)
        return packed.reshape(len(listed), self.context_length)

    def _too_long(self, text: str, num_bytes: int) -> UserError:
        beginning = text if len(text) <= 60 else text[:60] + "…"
        return UserError(
            f"text {beginning!r} has {num_bytes // BYTES_PER_ID} ids, more than "
            f"context_length={self.context_length}: shorten it, or give truncate=True"
        )

    def _bodies(self, texts: list[str], cut: bool) -> Iterable[bytes]:
        """`id_bytes` of each text without prefix and suffix; if `cut`, ids beyond the context
        length may be omitted."""
        raise NotImplementedError

    def _body_of(self, ids: Iterable[int]) -> list[int]:
        """The ids of a row that belong to the text: up to EOS, without prefix and padding."""
        body = []
        for i in (int(i) for i in ids):
            if i == self.eos_id:
                break
            body.append(i)
        else:
            while body and body[-1] == self.pad_id:
                body.pop()
        start = len(self._prefix)
        return body[start:] if tuple(body[:start]) == self._prefix else body

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of one text, in any integer container -> text."""
        raise NotImplementedError

    def with_context_length(self, context_length: int) -> Self:
        """The same tokenizer with rows of `context_length` ids."""
        return self._changed(context_length=context_length)

    def with_truncation(self, truncate: bool) -> Self:
        """The same tokenizer, cutting texts that are too long or refusing them."""
        return self._changed(truncate=truncate)

    def _changed(self, **attributes: Any) -> Self:
        # Copies share the vocabulary and the word cache.
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__ | attributes)
        other._check_row()
        return other

    def _options(self) -> dict[str, Any]:
        """JSON-serialisable keyword arguments of the constructor."""
        return {
            "context_length": self.context_length,
            "cleaning": self.cleaning,
            "truncate": self.truncate,
            "special_strings": self.special_strings,
        }

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(JSON-serialisable spec, {file name: content}); inverse of `tokenizer_from_files`."""
        raise NotImplementedError

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Inverse of `to_files`."""
        raise NotImplementedError

    def __reduce__(self):
        return type(self).from_files, self.to_files()
