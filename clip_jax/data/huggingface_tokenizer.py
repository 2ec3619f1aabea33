"""Tokenizers out of Hugging Face and open_clip directories, and back into Hugging Face files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.data.bpe import ClipBpeTokenizer
from clip_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from clip_jax.data.token_builders import byte_level_json, clip_json, unigram_json, wordpiece_json
from clip_jax.data.token_files import find_bpe_file
from clip_jax.data.token_guard import is_clip_bpe, with_lowercase
from clip_jax.data.token_merges import (
    BOS_TOKEN,
    BPE_FILE_NAME,
    EOS_TOKEN,
    MERGES_FILE_NAME,
    VOCAB_FILE_NAME,
    parse_json,
    read_huggingface_merges,
    vocabulary_of_tokenizer_json,
    write_huggingface_merges,
)
from clip_jax.data.token_rows import RowTokenizer
from clip_jax.data.tokenizer_json import (
    CONFIG_NAME,
    TOKENIZER_JSON_NAME,
    HuggingFaceTokenizer,
    special_names,
)
from clip_jax.errors import UserError

__all__ = ["HuggingFaceTokenizer", "load_huggingface_tokenizer", "to_huggingface_files"]

_CONFIG = "tokenizer_config.json"
_SPECIAL_MAP = "special_tokens_map.json"
# SentencePiece files and the layout that each name stands for.
_PIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_TOKENIZER_FILES = (
    TOKENIZER_JSON_NAME,
    VOCAB_FILE_NAME,
    "vocab.txt",
    BPE_FILE_NAME,
    *_PIECE_FILES,
)
_CLASS_OF_MODEL_TYPE = {
    "clip": "CLIPTokenizer",
    "clip_text_model": "CLIPTokenizer",
    "siglip": "SiglipTokenizer",
    "siglip2": "Siglip2Tokenizer",
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "mt5": "T5Tokenizer",
    "t5": "T5Tokenizer",
}
_GEMMA = ("GemmaTokenizer", "Siglip2Tokenizer")
_DEFAULT_CONTEXT_LENGTHS = {"SiglipTokenizer": 64} | dict.fromkeys(_GEMMA, 64)
_LARGEST_CONTEXT_LENGTH = 1 << 20  # transformers writes 10^30 where there is no limit


class _Directory:
    """The files of a directory, and what its configurations say."""

    def __init__(self, path: Path):
        self.path = path
        self.model = self.json("config.json")
        self.config = {**self.json(_SPECIAL_MAP), **self.json(_CONFIG)}
        self.names = special_names(self.config)
        text = self.model.get("text_config")
        self.text_model = text if isinstance(text, dict) else {}
        open_clip = self.json("open_clip_config.json").get("model_cfg") or {}
        text = open_clip.get("text_cfg") if isinstance(open_clip, dict) else None
        self.open_clip_text: dict[str, Any] = text if isinstance(text, dict) else {}

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"tokenizer file {self.path / name} cannot be read: {error.strerror}"
            ) from error

    def json(self, name: str) -> dict[str, Any]:
        return parse_json(self.read(name), name) if self.has(name) else {}

    def tokenizer_class(self) -> str:
        """Of transformers, without "Fast"; "" where nothing tells."""
        named = self.config.get("tokenizer_class")
        if not isinstance(named, str):
            kinds = (self.text_model.get("model_type"), self.model.get("model_type"))
            known = (_CLASS_OF_MODEL_TYPE.get(k) for k in kinds if isinstance(k, str))
            named = next((name for name in known if name), "")
        return named.removesuffix("Fast")

    def context_length(self, given: int | None, name: str) -> int:
        """As given; else as the configurations say; else what the class of tokenizer is used at."""
        said = (
            given,
            self.open_clip_text.get("context_length"),
            self.config.get("model_max_length"),
            self.text_model.get("max_position_embeddings") if "CLIP" in name else None,
        )
        for length in said:
            if isinstance(length, int | float) and 0 < length < _LARGEST_CONTEXT_LENGTH:
                return int(length)
        return _DEFAULT_CONTEXT_LENGTHS.get(name, 77)


def load_huggingface_tokenizer(
    directory: str | Path,
    *,
    context_length: int | None = None,
    cleaning: str | None = None,
    strip_sep_token: bool = False,
) -> RowTokenizer | None:
    """The tokenizer of a Hugging Face or open_clip directory; None where it holds no such files.

    By tokenizer_class of tokenizer_config.json, else model_type of config.json, else the files
    themselves: CLIPTokenizer (ours, with ftfy), SiglipTokenizer with spiece.model, Gemma (lower
    case, no BOS), XLM-RoBERTa's sentencepiece.bpe.model, BERT's vocab.txt, RoBERTa's vocab.json and
    merges.txt, and any tokenizer.json.

    Args:
      directory: holds tokenizer.json, or vocab.json with merges.txt, or vocab.txt, or spiece.model,
        tokenizer.model, sentencepiece.bpe.model, or OpenAI's merges file.
      context_length: ids a row; None takes that of open_clip_config.json, model_max_length of
        tokenizer_config.json, or of the class.
      cleaning: a mode of `text_cleaning.clean_text`; None takes open_clip's where there is an
        open_clip_config.json, and transformers' elsewhere.
      strip_sep_token: CLIPA's rule (see `HuggingFaceTokenizer`); that of open_clip_config.json
        counts too.

    Raises:
      UserError: a file is damaged, or they do not belong together; the message names it.
    """
    path = Path(directory)
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return _load(_Directory(path), context_length, cleaning, strip_sep_token)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its tokenizer files are damaged: {error!r}") from error


def _load(
    files: _Directory, context_length: int | None, cleaning: str | None, strip_sep_token: bool
) -> RowTokenizer | None:
    name = files.tokenizer_class()
    length = files.context_length(context_length, name)
    kwargs = files.open_clip_text.get("tokenizer_kwargs") or {}
    if files.open_clip_text.get("hf_tokenizer_name"):
        cleaning = cleaning or kwargs.get("clean", "whitespace")
        strip_sep_token = strip_sep_token or bool(kwargs.get("strip_sep_token"))
    spec = files.json(TOKENIZER_JSON_NAME) if files.has(TOKENIZER_JSON_NAME) else None
    if name == "CLIPTokenizer" or is_clip_bpe(spec or {}):
        return _load_clip(files, spec, length, cleaning or "lower")
    if name == "SiglipTokenizer":
        lower = files.config.get("do_lower_case", True)
        cleaning = cleaning or ("siglip" if lower else "none")
        if files.has("spiece.model"):
            return _load_pieces(files, "spiece.model", length, cleaning)
    if spec is not None:
        if name in _GEMMA and files.config.get("do_lower_case", True):
            spec = with_lowercase(spec)
        return _load_json(files, spec, name, length, cleaning or "none", strip_sep_token)
    for piece_file in _PIECE_FILES:
        if files.has(piece_file):
            default = "lowercase" if name in _GEMMA else "none"
            return _load_pieces(files, piece_file, length, cleaning or default)
    if files.has("vocab.txt"):
        built = wordpiece_json(files.read("vocab.txt"), files.config, files.names)
    elif files.has(VOCAB_FILE_NAME) and files.has(MERGES_FILE_NAME):
        contents = files.read(VOCAB_FILE_NAME), files.read(MERGES_FILE_NAME)
        vocabulary = read_huggingface_merges(*contents)
        if BOS_TOKEN in vocabulary.ids:
            return _load_clip(files, None, length, cleaning or "lower")
        built = byte_level_json(vocabulary, files.config, files.names)
    elif files.has(BPE_FILE_NAME):
        return _load_clip(files, None, length, cleaning or "lower")
    else:
        return None
    spec = json.loads(built)
    return _load_json(files, spec, name, length, cleaning or "none", strip_sep_token)


def _load_clip(
    files: _Directory, spec: dict[str, Any] | None, length: int, cleaning: str
) -> ClipBpeTokenizer:
    if files.has(VOCAB_FILE_NAME) and files.has(MERGES_FILE_NAME):
        vocab, merges = files.read(VOCAB_FILE_NAME), files.read(MERGES_FILE_NAME)
        ids = read_huggingface_merges(vocab, merges).ids
    elif spec is not None:
        vocabulary = vocabulary_of_tokenizer_json(spec)
        vocab, merges = write_huggingface_merges(vocabulary)
        ids = vocabulary.ids
    elif files.has(BPE_FILE_NAME):
        content = find_bpe_file(files.path / BPE_FILE_NAME).read_bytes()
        return ClipBpeTokenizer(content, length, cleaning=cleaning)
    else:
        raise UserError(
            f"a CLIPTokenizer without its files: looked for {TOKENIZER_JSON_NAME}, "
            f"{VOCAB_FILE_NAME} with {MERGES_FILE_NAME}, and {BPE_FILE_NAME}"
        )
    bos, eos = files.names.get("bos", BOS_TOKEN), files.names.get("eos", EOS_TOKEN)
    pad = files.names.get("pad", eos)
    # open_clip pads with 0 whatever the files beside its weights say.
    pad_id = 0 if files.open_clip_text else ids.get(pad, ids.get(eos, 0))
    return ClipBpeTokenizer(
        merges, length, cleaning=cleaning, vocab=vocab, pad_id=pad_id, bos_token=bos, eos_token=eos
    )


def _load_pieces(
    files: _Directory, name: str, length: int, cleaning: str
) -> SentencePieceTokenizer:
    model = files.read(name)
    fairseq = name == "sentencepiece.bpe.model"
    tokenizer = SentencePieceTokenizer(
        model, length, cleaning, add_bos=fairseq, pad_id=1 if fairseq else 0, fairseq_ids=fairseq
    )
    is_siglip = files.tokenizer_class() == "SiglipTokenizer"
    pad = files.names.get("pad", "</s>" if is_siglip else None)
    if fairseq or pad is None:
        return tokenizer
    return SentencePieceTokenizer(model, length, cleaning, pad_id=tokenizer.piece_id(pad))


def _load_json(
    files: _Directory,
    spec: dict[str, Any],
    name: str,
    length: int,
    cleaning: str,
    strip_sep_token: bool,
) -> HuggingFaceTokenizer:
    content = json.dumps(spec, ensure_ascii=False).encode()
    config = {**files.config, "tokenizer_class": name or "PreTrainedTokenizerFast"}
    options: dict[str, Any] = {"strip_sep_token": strip_sep_token}
    if strip_sep_token:
        options["pad_id"] = 0
    if name in _GEMMA:
        vocab = {t["content"]: t["id"] for t in spec.get("added_tokens") or ()}
        vocab |= spec["model"]["vocab"]
        eos = files.names.get("eos", "<eos>")
        if eos not in vocab:
            raise UserError(f"{TOKENIZER_JSON_NAME}: lacks the special token {eos!r}")
        options |= {"prefix_ids": [], "suffix_ids": [vocab[eos]]}
    encoded = json.dumps(config).encode()
    return HuggingFaceTokenizer(content, length, cleaning, config=encoded, **options)


def to_huggingface_files(tokenizer: object) -> dict[str, bytes]:
    """{file name: content} of a directory that transformers' AutoTokenizer loads to the same ids.

    transformers does less cleaning: it has no ftfy and no HTML unescaping, so the ids are the same
    for a text that these leave alone (`clean_text(text, tokenizer.cleaning)` is one). A literal
    special string is text to us and a special token to transformers. Cleaning "canonicalize" is
    written as SigLIP's, which deletes "_" instead of making it a space.

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
        return {TOKENIZER_JSON_NAME: files[TOKENIZER_JSON_NAME], _CONFIG: _json(config)}
    raise UserError(f"a {type(tokenizer).__name__} cannot be written as Hugging Face files")


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _clip_files(tokenizer: ClipBpeTokenizer) -> dict[str, bytes]:
    vocabulary, bos, eos = tokenizer.vocabulary, tokenizer.bos_token, tokenizer.eos_token
    vocab, merges = write_huggingface_merges(vocabulary)
    # A padding token is special to transformers: were it "!" (OpenAI's id 0), every "!" of a text
    # would become padding. Behind EOS a causal tower sees no padding, so EOS serves as well.
    names = {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": eos}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.context_length,
        "do_lower_case": True,
        **names,
    }
    return {
        VOCAB_FILE_NAME: vocab,
        MERGES_FILE_NAME: merges,
        TOKENIZER_JSON_NAME: clip_json(vocabulary, bos, eos),
        _CONFIG: _json(config),
        _SPECIAL_MAP: _json(names),
    }


def _piece_files(tokenizer: SentencePieceTokenizer) -> dict[str, bytes]:
    model = tokenizer.model
    config: dict[str, Any]
    if tokenizer.fairseq_ids:
        config = {
            "tokenizer_class": "XLMRobertaTokenizer",
            "model_max_length": tokenizer.context_length,
        }
        return {"sentencepiece.bpe.model": model, _CONFIG: _json(config)}
    names = {
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "pad_token": tokenizer.piece(tokenizer.pad_id),
        "unk_token": tokenizer.piece(tokenizer.unk_id),
    }
    config = {"model_max_length": tokenizer.context_length, **names}
    if tokenizer.cleaning in ("siglip", "canonicalize"):
        config = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, **config}
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
