"""Learned words of class prompts: CoOp (Zhou et al. 2022), section 3; CoCoOp (Zhou et al. 2022b).

A learned word is a row of the token table. Class prompts use few of the table's rows, so that they
get a small table of their own, with the learned rows first: the text tower is as it is, and its
gradient has the size of what is learned.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.adaptation.additions import linear_map
from clip_jax.adaptation.towers import encode
from clip_jax.adaptation.tree import Adapter
from clip_jax.arguments import Checked, Range
from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.two_tower import l2_normalize
from clip_jax.text.tokenizer import Tokenizer

WORDS = "text/context"  # (M, D), of an adapter
META_NET = f"{WORDS}_net/"  # before the names of the meta-net's arrays
FIRST_WORDS = "a photo of a"  # a context of at most as many words starts from these


@dataclasses.dataclass(frozen=True)
class Context(Checked):
    """Learned words before each class name, the same for all classes."""

    words: Annotated[int, Range(1)] = 16


@dataclasses.dataclass(frozen=True)
class MetaNet(Checked):
    """A net that shifts all learned words by what it makes of the image (CoCoOp, section 3.2).

    The shift of an image of features f (D,), of length 1, is relu(f·down + down_bias)·up + up_bias.
    """

    reduction: Annotated[int, Range(1)] = 16  # D over the hidden width


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
    """Makes the learned words: the first of `words` if there are as many, else N(0, 0.02²)."""
    table = params["text"]["token_embedding"]
    if len(words) >= options.words:
        return {WORDS: jnp.array(table[np.asarray(words[: options.words])], jnp.float32)}
    return {WORDS: 0.02 * jax.random.normal(key, (options.words, table.shape[1]))}


def init_meta_net(config: ClipConfig, params: Any, options: MetaNet, key: jax.Array) -> Adapter:
    """Makes a net from the shared space to the text tower's words, as PyTorch's layers start."""
    width = params["text"]["token_embedding"].shape[1]
    hidden = max(config.embed_dim // options.reduction, 1)
    down_key, up_key = jax.random.split(key)
    down, down_bias = linear_map(down_key, config.embed_dim, hidden)
    up, up_bias = linear_map(up_key, hidden, width)
    leaves = {"down": down, "down_bias": down_bias, "up": up, "up_bias": up_bias}
    return {f"{META_NET}{name}": leaf for name, leaf in leaves.items()}


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
    return params, without_words(adapter)


def without_words(adapter: Adapter) -> Adapter:
    """Returns what enters the towers by itself: all but the learned words and their meta-net."""
    return {path: leaf for path, leaf in adapter.items() if not path.startswith(WORDS)}


def has_meta_net(adapter: Adapter) -> bool:
    """Whether each image has a classifier of its own."""
    return any(path.startswith(META_NET) for path in adapter)


def text_classifier(
    prompts: ClassPrompts,
    params: Any,
    adapter: Adapter,
    scale: Any = 1.0,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the classifier of the prompts, float32 (D, K) with columns of length 1.

    The arguments are those of `towers.encode`; the adapter may have learned words.
    """
    if WORDS in adapter:
        params, adapter = with_words(params, adapter, prompts.rows)
    tokens_KL = jnp.asarray(prompts.tokens_KL)
    embeds_KD = encode(prompts.config, params, adapter, tokens_KL, "text", scale, dropout, key)
    return l2_normalize(embeds_KD).T


def cosines_of_each(
    classifier: Callable[[Adapter], jax.Array], adapter: Adapter, images_BD: jax.Array
) -> jax.Array:
    """Returns (B, K): cosines of images with the classifiers that a meta-net makes for each.

    One image after the other: each takes a pass of the text tower over all K prompts, of which a
    gradient keeps no more than one at a time.
    """
    leaves = {name: adapter[META_NET + name] for name in ("down", "down_bias", "up", "up_bias")}

    def cosines(image_D: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(image_D @ leaves["down"] + leaves["down_bias"])
        shift_D = hidden @ leaves["up"] + leaves["up_bias"]
        return image_D @ classifier(adapter | {WORDS: adapter[WORDS] + shift_D})

    # With one image alone there is nothing to save by computing it again.
    each = cosines if len(images_BD) == 1 else jax.checkpoint(cosines)
    return jax.lax.map(each, images_BD)
