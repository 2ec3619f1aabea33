"""Writer of tokenizers as Hugging Face's files; `huggingface_files.py` reads them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.text.builders import clip_json, unigram_json
from clip_jax.text.byte_pairs import (
    MERGES_FILE_NAME,
    VOCAB_FILE_NAME,
    parse_json,
    write_huggingface_merges,
)
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.huggingface_pipeline import (
    CONFIG_NAME,
    TOKENIZER_JSON_NAME,
    HuggingFaceTokenizer,
)
from clip_jax.text.sentencepiece_model import SentencePieceTokenizer

_CONFIG = "tokenizer_config.json"
_SPECIAL_MAP = "special_tokens_map.json"


def to_huggingface_files(tokenizer: object) -> dict[str, bytes]:
    """{file name: content} of a directory that transformers' AutoTokenizer loads to equal ids.

    transformers cleans less: it has no ftfy and no HTML unescaping, so the ids are equal for texts
    that these leave alone, such as `clean_text(text, tokenizer.cleaning)`. A literal special string
    is text to us and a special token to transformers. Cleaning "canonicalize" is written as
    SigLIP's, which deletes "_" instead of turning it into a space.

    Raises:
      UserError: the tokenizer has no counterpart in transformers.
    """
    if isinstance(tokenizer, ClipBpeTokenizer):
        return _clip_files(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _piece_files(tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        _, files = tokenizer.to_files()
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= parse_json(files[CONFIG_NAME], CONFIG_NAME)
        config["model_max_length"] = tokenizer.context_length
        if tokenizer.added_tokens:
            config["added_tokens_decoder"] = _decoder(tokenizer.all_added_tokens)
        return {TOKENIZER_JSON_NAME: files[TOKENIZER_JSON_NAME], _CONFIG: _json(config)}
    raise UserError(f"a {type(tokenizer).__name__} cannot be written as Hugging Face files")


def _decoder(tokens: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`added_tokens_decoder` for a tokenizer_config.json."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokens
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _clip_files(tokenizer: ClipBpeTokenizer) -> dict[str, bytes]:
    vocabulary, bos, eos = tokenizer.vocabulary, tokenizer.bos_token, tokenizer.eos_token
    vocab, merges = write_huggingface_merges(vocabulary)
    # transformers treats the padding token as special: if it were "!" (OpenAI's id 0), every "!" of
    # a text would become padding. A causal tower ignores ids after EOS, so EOS can pad.
    names = {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": eos}
    added = tokenizer.added_tokens
    names["pad_token"] = next((t["content"] for t in added if t["id"] == tokenizer.pad_id), eos)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.context_length,
        "do_lower_case": True,
        **names,
    }
    whole = clip_json(vocabulary, bos, eos, added)
    if added:
        config["added_tokens_decoder"] = _decoder(json.loads(whole)["added_tokens"])
    return {
        VOCAB_FILE_NAME: vocab,
        MERGES_FILE_NAME: merges,
        TOKENIZER_JSON_NAME: whole,
        _CONFIG: _json(config),
        _SPECIAL_MAP: _json(names),
    }


def _piece_files(tokenizer: SentencePieceTokenizer) -> dict[str, bytes]:
    model = tokenizer.model
    config: dict[str, Any]
    added = tokenizer.added_tokens
    if added and tokenizer.cleaning != "siglip" and not tokenizer.fairseq_ids:
        raise UserError(
            f"added tokens {', '.join(token['content'] for token in added[:5])}: transformers has "
            f"no tokenizer that finds them after cleaning {tokenizer.cleaning!r}; write clip_jax"
        )
    decoder = {"added_tokens_decoder": _decoder(added)} if added else {}
    if tokenizer.fairseq_ids:
        config = {
            "tokenizer_class": "XLMRobertaTokenizer",
            "model_max_length": tokenizer.context_length,
            **decoder,
        }
        return {"sentencepiece.bpe.model": model, _CONFIG: _json(config)}
    names = {
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "pad_token": next(
            (token["content"] for token in added if token["id"] == tokenizer.pad_id), None
        )
        or tokenizer.piece(tokenizer.pad_id),
        "unk_token": tokenizer.piece(tokenizer.unk_id),
    }
    config = {"model_max_length": tokenizer.context_length, **names}
    if tokenizer.cleaning in ("siglip", "canonicalize"):
        config = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, **config, **decoder}
        return {"spiece.model": model, _CONFIG: _json(config), _SPECIAL_MAP: _json(names)}
    built = None
    if not tokenizer.add_bos and tokenizer.cleaning in ("lower", "whitespace"):
        built = unigram_json(model, tokenizer.eos_id, lowercase=tokenizer.cleaning == "lower")
    if built is None:
        raise UserError(
            f"this SentencePiece tokenizer (cleaning={tokenizer.cleaning!r}) has no counterpart in "
            "transformers; accepted are SigLIP's, and unigram ones without normalisation of their "
            "own, without BOS, and with cleaning 'lower' or 'whitespace'"
        )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    return {TOKENIZER_JSON_NAME: built, _CONFIG: _json(config), _SPECIAL_MAP: _json(names)}
