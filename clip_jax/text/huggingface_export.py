"""Writer of tokenizers as Hugging Face's files; `huggingface_files.py` reads them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.text.builders import clip_spec, unigram_spec
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
from clip_jax.text.rows import Tokenizer
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
        config, names, files = _of_clip(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        config, names, files = _of_pieces(tokenizer)
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        config, names = parse_json(tokenizer.config, CONFIG_NAME), {}
        files = {TOKENIZER_JSON_NAME: tokenizer.tokenizer_json}
        if tokenizer.added_tokens:
            config["added_tokens_decoder"] = _decoder(tokenizer.all_added_tokens)
    else:
        raise UserError(f"a {type(tokenizer).__name__} cannot be written as Hugging Face files")
    length = {"model_max_length": tokenizer.context_length}
    files[_CONFIG] = _json({"tokenizer_class": "PreTrainedTokenizerFast"} | config | length | names)
    if names:
        files[_SPECIAL_MAP] = _json(names)
    return files


def _decoder(tokens: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`added_tokens_decoder` for a tokenizer_config.json."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokens
    }


def _json(value: Mapping[str, Any], indent: int | None = 2) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()


def _padding(tokenizer: Tokenizer, usual: str) -> str:
    """Name of the padding token: an added one, or the usual."""
    added = tokenizer.added_tokens
    return next((token["content"] for token in added if token["id"] == tokenizer.pad_id), usual)


# The parts of an export: tokenizer_config.json, names of special tokens, {file name: content}.
_Parts = tuple[dict[str, Any], dict[str, str], dict[str, bytes]]


def _of_clip(tokenizer: ClipBpeTokenizer) -> _Parts:
    vocabulary, bos, eos = tokenizer.vocabulary, tokenizer.bos_token, tokenizer.eos_token
    vocab, merges = write_huggingface_merges(vocabulary)
    # transformers treats the padding token as special: if it were "!" (OpenAI's id 0), every "!" of
    # a text would become padding. A causal tower ignores ids after EOS, so EOS can pad.
    names = {"bos_token": bos, "eos_token": eos, "unk_token": eos}
    names["pad_token"] = _padding(tokenizer, eos)
    whole = clip_spec(vocabulary, bos, eos, tokenizer.added_tokens)
    config: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    if tokenizer.added_tokens:
        config["added_tokens_decoder"] = _decoder(whole["added_tokens"])
    files = {
        VOCAB_FILE_NAME: vocab,
        MERGES_FILE_NAME: merges,
        TOKENIZER_JSON_NAME: _json(whole, None),
    }
    return config, names, files


def _of_pieces(tokenizer: SentencePieceTokenizer) -> _Parts:
    model, cleaning, added = tokenizer.model, tokenizer.cleaning, tokenizer.added_tokens
    if added and cleaning != "siglip" and not tokenizer.fairseq_ids:
        raise UserError(
            f"added tokens {', '.join(token['content'] for token in added[:5])}: transformers has "
            f"no tokenizer that finds them after cleaning {cleaning!r}; write clip_jax"
        )
    config: dict[str, Any] = {"added_tokens_decoder": _decoder(added)} if added else {}
    if tokenizer.fairseq_ids:
        config |= {"tokenizer_class": "XLMRobertaTokenizer"}
        return config, {}, {"sentencepiece.bpe.model": model}
    names = {
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "pad_token": _padding(tokenizer, "") or tokenizer.piece(tokenizer.pad_id),
        "unk_token": tokenizer.piece(tokenizer.unk_id),
    }
    if cleaning in ("siglip", "canonicalize"):
        config |= {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True}
        return config, names, {"spiece.model": model}
    spec = None
    if not tokenizer.add_bos and cleaning in ("lower", "whitespace"):
        spec = unigram_spec(model, tokenizer.eos_id, lowercase=cleaning == "lower")
    if spec is None:
        raise UserError(
            f"this SentencePiece tokenizer (cleaning={cleaning!r}) has no counterpart in "
            "transformers; accepted are SigLIP's, and unigram ones without normalisation of their "
            "own, without BOS, and with cleaning 'lower' or 'whitespace'"
        )
    return {}, names, {TOKENIZER_JSON_NAME: _json(spec, None)}
