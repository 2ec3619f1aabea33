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


class Tokenizer:
    """Texts -> int32 (N, context_length): prefix ids, ids of the text, suffix ids, padding.

    Picklable, so that data workers can hold one. The name of a token that marks a row's structure
    ("<|endoftext|>", "</s>", "[SEP]") is ordinary text in a caption and never becomes the special
    id, which would move the position at which the text tower pools.

    A subclass turns texts into ids (`_bodies`) and back (`decode`); its constructor takes the
    contents of `file_names`, and `options`.

    Args:
      context_length: ids per row, special ones included.
      cleaning: a mode of `clip_jax.text.cleaning.clean_text`, applied first.
      truncate: cuts longer texts, keeping EOS as last id; otherwise they raise UserError.
    """

    kind: str
    context_length: int  # ids per row, special ones included
    vocab_size: int
    eos_id: int  # ends every text; the text tower pools at it
    pad_id: int
    prefix_ids: tuple[int, ...]  # before the ids of a text, mostly BOS
    suffix_ids: tuple[int, ...]  # after them, EOS last
    # A user added these tokens to the vocabulary; their form is tokenizer.json's.
    added_tokens: Sequence[Mapping[str, Any]]
    options: tuple[str, ...] = ("context_length", "cleaning", "truncate")
    # Contents of these files are arguments of the constructor: (argument, name).
    file_names: tuple[tuple[str, str], ...]

    def __init__(self, context_length: int, cleaning: str, truncate: bool):
        self.context_length = context_length
        self.cleaning = check_cleaning(cleaning)
        self.truncate = truncate

    def _set_row(
        self,
        prefix: Sequence[int],
        suffix: Sequence[int],
        pad_id: int,
        added: Sequence[Mapping[str, Any]] = (),
    ) -> list[Mapping[str, Any]]:
        """Sets the ids of a row, and the tokens that a user added: their ids may exceed the
        vocabulary's.

        Returns those that are found in texts: the one that pads stays text.
        """
        self.prefix_ids, self.suffix_ids = tuple(prefix), tuple(suffix)
        self.eos_id, self.pad_id = suffix[-1], pad_id
        self.added_tokens = [dict(token) for token in added]
        self.vocab_size = max(self.vocab_size, *(token["id"] + 1 for token in added), 0)
        self._check_row()
        return [token for token in self.added_tokens if token["id"] != pad_id]

    def _check_row(self) -> None:
        """Raises UserError if the special ids do not fit into a row, or an option is wrong."""
        smallest = max(2, len(self.prefix_ids) + len(self.suffix_ids))
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

        If `truncate`, texts that are too long are cut, keeping EOS; otherwise they raise UserError.
        None takes the tokenizer's setting (see `with_truncation`), by default False.
        """
        if isinstance(texts, str):
            listed = [texts]
        else:
            listed = text_list(texts, "texts", "a photo of a cat")
        cut = self.truncate if truncate is None else truncate
        prefix, suffix = id_bytes(self.prefix_ids), id_bytes(self.suffix_ids)
        room = BYTES_PER_ID * self.context_length - len(prefix) - len(suffix)
        padding = id_bytes([self.pad_id]) * self.context_length
        rows = []
        for text, body in zip(listed, self._bodies(listed, cut), strict=True):
            if len(body) > room:
                if not cut:
                    raise self._too_long(text, len(prefix + body + suffix))
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

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of one text, in any integer container -> text up to the first EOS."""
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
        start = len(self.prefix_ids)
        return body[start:] if tuple(body[:start]) == self.prefix_ids else body

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

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(JSON-serialisable spec with `kind` and `options`, {file name: content})."""
        options = {name: getattr(self, name) for name in self.options}
        contents = {name: getattr(self, argument) for argument, name in self.file_names}
        return {"kind": self.kind, "options": options}, contents

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Inverse of `to_files`."""
        contents: dict[str, Any] = {argument: files[name] for argument, name in cls.file_names}
        return cls(**contents, **spec["options"])

    def __reduce__(self):
        return type(self).from_files, self.to_files()
