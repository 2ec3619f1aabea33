"""Matching of a model and a tokenizer: context length, vocabulary size, pooled end-of-text id."""

import logging
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.kinds import BertConfig
from clip_jax.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def fit_tokenizer(
    config: ClipConfig, tokenizer: Tokenizer, *, keep_vocab_size: bool = True
) -> tuple[ClipConfig, Tokenizer]:
    """Matches both: the tokenizer gets the model's context length, the model pools at its end id.

    If end of text is not the largest id, the text tower pools at that id instead. Without
    `keep_vocab_size` the model takes the tokenizer's vocabulary size. Raises `UserError` if the
    tokenizer has more ids than the model.
    """
    if not keep_vocab_size:
        sizes: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
        decoder = {} if config.decoder is None else {"decoder": sizes}
        config = override(config, **sizes, **decoder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"vocab_size={config.vocab_size} of {config.name}: the tokenizer has "
            f"{tokenizer.vocab_size} ids; give vocab_size={tokenizer.vocab_size} or more"
        )
    ends_last = tokenizer.eos_id == tokenizer.vocab_size - 1
    if config.text.pool == "eos" or (config.text.pool == "argmax" and not ends_last):
        config = override(config, text={"pool": "eos", "eos_id": tokenizer.eos_id})
    if isinstance(config.text, BertConfig) or config.text.pool == "appended":
        config = override(config, text={"pad_id": tokenizer.pad_id})
    return config, tokenizer.with_context_length(config.context_length)


def fitting(tokenizer: Tokenizer, config: ClipConfig, where: str) -> Tokenizer:
    """The tokenizer at the model's context length; logs likely mistakes.

    Raises `UserError` if it has more ids than the model, or never writes the id at which the text
    tower pools.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, but the model "
            f"vocab_size={config.vocab_size}: they do not belong together"
        )
    eos_id = getattr(config.text, "eos_id", None)
    if config.text.pool == "eos" and tokenizer.eos_id != eos_id:
        raise UserError(
            f"{where}: the tokenizer ends texts with id {tokenizer.eos_id}, but the model reads "
            f"them at text.eos_id={eos_id}: they do not belong together"
        )
    if tokenizer.vocab_size < config.vocab_size:
        logger.warning(
            "%s: the tokenizer has %d ids, the token table %d rows: the last %d are never used; if "
            "tokens were added, the tokenizer's files lack them",
            where,
            tokenizer.vocab_size,
            config.vocab_size,
            config.vocab_size - tokenizer.vocab_size,
        )
    if config.text.pool == "argmax" and tokenizer.eos_id != tokenizer.vocab_size - 1:
        logger.warning(
            "%s: the model reads a text at its largest id, but the tokenizer has ids up to %d and "
            "ends texts with %d: a text with a larger id is read there, as in transformers with "
            "eos_token_id=2",
            where,
            tokenizer.vocab_size - 1,
            tokenizer.eos_id,
        )
    return tokenizer.with_context_length(config.context_length)
