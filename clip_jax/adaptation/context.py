"""Learned words of class prompts: CoOp (Zhou et al. 2022), section 3.

A learned word is a row of the token table. Class prompts use few of the table's rows, so that they
get a small table of their own, with the learned rows first: the text tower is as it is, and its
gradient has the size of what is learned.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.adaptation.tree import Adapter
from clip_jax.arguments import Checked, Range
from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, override
from clip_jax.text.tokenizer import Tokenizer

WORDS = "text/context"  # (M, D), of an adapter
FIRST_WORDS = "a photo of a"  # the context of as many words starts from these


@dataclasses.dataclass(frozen=True)
class Context(Checked):
    """Learned words before each class name, the same for all classes."""

    words: Annotated[int, Range(1)] = 16


class ClassPrompts(NamedTuple):
    """Prompts with room for learned words.

    Attributes:
      config: of the model with the small table.
      tokens_KL: int32, of the small table; its first rows are the learned words.
      rows: int (U,), the rows of the model's table that follow them.
    """

    config: ClipConfig
    tokens_KL: np.ndarray
    rows: np.ndarray


def init_context(params: Any, options: Context, key: jax.Array, words: Sequence[int]) -> Adapter:
    """Makes the learned words: those of `words` if there are as many, else N(0, 0.02²)."""
    table = params["text"]["token_embedding"]
    if len(words) == options.words:
        return {WORDS: jnp.array(table[np.asarray(words)], jnp.float32)}
    return {WORDS: 0.02 * jax.random.normal(key, (options.words, table.shape[1]))}


def first_words(tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens of "a photo of a", without those that start and end a text."""
    row = tokenizer([FIRST_WORDS])[0]
    start = len(tokenizer.prefix_ids)
    return [int(token) for token in row[start : int(np.argmax(row == tokenizer.eos_id))]]


def class_prompts(
    config: ClipConfig, tokenizer: Tokenizer, names: Sequence[str], count: int
) -> ClassPrompts:
    """Makes "[V]1 … [V]M NAME." for each class, with M = `count` learned words.

    Raises UserError: a name that is too long, or no room for so many words.
    """
    room = config.context_length - count
    if room < 8:
        raise UserError(
            f"words={count}: the context has {config.context_length} tokens; accepted is at most"
            f" {config.context_length - 8}"
        )
    try:
        plain_KL = tokenizer.with_context_length(room)([f"{name}." for name in names])
    except UserError as error:
        raise UserError(f"with {count} learned words before it: {error}") from error
    rows, small = np.unique(plain_KL, return_inverse=True)
    small_KL = small.reshape(plain_KL.shape) + count
    words_KM = np.broadcast_to(np.arange(count), (len(names), count))
    start = len(tokenizer.prefix_ids)
    tokens_KL = np.concatenate([small_KL[:, :start], words_KM, small_KL[:, start:]], axis=1)
    # The order of ids stays, so that the largest is the same token.
    text = {
        field: int(np.searchsorted(rows, getattr(config.text, field))) + count
        for field in ("eos_id", "pad_id")
        if getattr(config.text, field, None) in rows
    }
    small_config = override(config, vocab_size=len(rows) + count, text=text)
    return ClassPrompts(small_config, tokens_KL.astype(np.int32), rows)


def with_words(params: Any, adapter: Adapter, rows: np.ndarray) -> tuple[Any, Adapter]:
    """Returns parameters with the small table, and the adapter without the learned words."""
    words_MD = adapter[WORDS]
    table = jnp.asarray(params["text"]["token_embedding"])[rows]
    table = jnp.concatenate([words_MD.astype(table.dtype), table])
    params = params | {"text": params["text"] | {"token_embedding": table}}
    return params, {path: leaf for path, leaf in adapter.items() if path != WORDS}
