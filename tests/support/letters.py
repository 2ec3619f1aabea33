"""A tokenizer whose tokens are letters."""

import numpy as np

from clip_jax.errors import UserError
from clip_jax.text.rows import Tokenizer

START, END, PAD, FIRST = 57, 59, 0, 10


class Letters(Tokenizer):
    """A letter is a token."""

    vocab_size, eos_id, pad_id, prefix_ids, suffix_ids = 60, END, PAD, (START,), (END,)

    def __init__(self, context_length: int = 24) -> None:
        self.context_length = context_length

    def with_context_length(self, context_length: int) -> "Letters":
        return Letters(context_length)

    def __call__(self, texts, truncate=None) -> np.ndarray:  # type: ignore[no-untyped-def]
        rows = np.full((len(texts), self.context_length), PAD, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [START, *(FIRST + ord(letter) % 40 for letter in text), END]
            if len(ids) > self.context_length:
                raise UserError(f"text {text!r} has {len(ids)} ids")
            row[: len(ids)] = ids
        return rows
