"""Trains a SentencePiece tokenizer on a sample of the captions of any image-text data.

python -m clip_jax.data tokenizer --data='shards/*.tar' --vocab_size=16000 --output=tokenizer

A training run takes it by --config.tokenizer.source=tokenizer.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
from absl import flags

from clip_jax.data.records import Source
from clip_jax.dataset_tools.data_flags import define_data_flags, open_data
from clip_jax.dataset_tools.output_files import names_in, output_folder
from clip_jax.dataset_tools.token_lengths import token_lengths
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.disk import telling
from clip_jax.text.cleaning import CLEANING_MODES
from clip_jax.text.tokenizer import (
    TOKENIZER_CONFIG_NAME,
    Tokenizer,
    save_tokenizer,
    train_sentencepiece,
)
from clip_jax.training.config import TokenizerConfig

FLAGS = flags.FlagValues()
_DATA = define_data_flags(FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", flag_values=FLAGS)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", TokenizerConfig().vocab_size, "Ids, including 259 reserved ones.",
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
_CONTEXT_LENGTH = flags.DEFINE_integer(
    "context_length", 64, "Ids per caption, including the end.", lower_bound=2, flag_values=FLAGS
)
_CLEANING = flags.DEFINE_enum(
    "cleaning",
    TokenizerConfig().cleaning,
    list(CLEANING_MODES),
    "Cleaning of captions.",
    flag_values=FLAGS,
)
_SAMPLE = flags.DEFINE_integer(
    "sample", 1_000_000, "Most samples whose captions are used.", lower_bound=1, flag_values=FLAGS
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of their choice.", lower_bound=0, flag_values=FLAGS)

_MEASURED = 20_000  # captions on which the figures are based


def main() -> int:
    """Trains and saves a tokenizer, and prints its figures."""
    folder = output_folder(_OUTPUT.value)
    there = names_in(folder)
    if there and TOKENIZER_CONFIG_NAME not in there:
        raise UserError(
            f"--output={folder}: is not empty and holds no tokenizer; give a new folder"
        )
    source = open_data(_DATA.read())
    captions = list(sampled_captions(source, _SAMPLE.value, _SEED.value))
    tokenizer = train_sentencepiece(
        captions, _VOCAB_SIZE.value, _CONTEXT_LENGTH.value, _CLEANING.value
    )
    with telling(f"--output={folder}"):
        save_tokenizer(tokenizer, folder)
    print(describe(tokenizer, captions))
    print(f"written: {folder} (train with --config.tokenizer.source={folder})")
    return 0


def sampled_captions(source: Source, most: int, seed: int) -> Iterator[str]:
    """Yields all captions of at most `most` records, drawn without replacement, in order."""
    for index in draw(len(source), most, seed):
        with contextlib.suppress(DecodeError):  # an unreadable shard has no captions
            yield from source.captions(index)


def draw(count: int, most: int, seed: int) -> list[int]:
    """At most `most` of 0 … count - 1, ascending; equal for equal seeds."""
    if count <= most:
        return list(range(count))
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, most, replace=False, shuffle=False)).tolist()


def describe(tokenizer: Tokenizer, captions: list[str]) -> str:
    """Text with vocabulary size, tokens per caption, and share of cut captions."""
    measured = captions[:: -(-len(captions) // _MEASURED)]
    lengths = token_lengths(tokenizer, measured)
    words = sum(len(caption.split()) for caption in measured)
    over = float(np.mean(lengths > tokenizer.context_length))
    middle, high = np.quantile(lengths, (0.5, 0.95)).astype(int).tolist()
    return (
        f"vocabulary: {tokenizer.vocab_size:,} ids, from {len(captions):,} captions\n"
        f"tokens a caption: {lengths.mean():.1f} on average, median {middle}, 95 % have at most"
        f" {high}, the longest {lengths.max():,} (of {len(measured):,} captions)\n"
        f"tokens a word: {lengths.sum() / max(words, 1):.2f}\n"
        f"longer than {tokenizer.context_length} tokens: {100 * over:.1f} % of the captions"
    )
