"""Reader of tokenizers in Hugging Face's and open_clip's files; see `huggingface_export.py`."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.text.added_tokens import (
    ADDED_TOKENS_NAME,
    AddedToken,
    declared_tokens,
    role_names,
    with_tokens,
)
from clip_jax.text.builders import byte_level_spec, clip_spec, wordpiece_spec
from clip_jax.text.byte_pairs import (
    BOS_TOKEN,
    BPE_FILE_NAME,
    END_OF_PIECE,
    EOS_TOKEN,
    MERGES_FILE_NAME,
    VOCAB_FILE_NAME,
    BpeVocabulary,
    parse_json,
    read_file,
    read_huggingface_merges,
    read_openai_merges,
    vocabulary_of_tokenizer_json,
    write_huggingface_merges,
)
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.huggingface_pipeline import TOKENIZER_JSON_NAME, HuggingFaceTokenizer
from clip_jax.text.merges_file import find_bpe_file
from clip_jax.text.rows import Tokenizer
from clip_jax.text.sentencepiece_model import SentencePieceTokenizer

_CONFIG = "tokenizer_config.json"
_SPECIAL_MAP = "special_tokens_map.json"
# A SentencePiece model may have any of these names.
_PIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_TOKENIZER_FILES = (TOKENIZER_JSON_NAME, VOCAB_FILE_NAME, "vocab.txt", BPE_FILE_NAME, *_PIECE_FILES)
_CONFIG_FILES = (_CONFIG, _SPECIAL_MAP, ADDED_TOKENS_NAME)
_MODEL_CONFIG, _OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
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
_T5 = re.compile(r"<extra_id_\d+>$")
_GEMMA = ("GemmaTokenizer", "Siglip2Tokenizer")
_DEFAULT_CONTEXT_LENGTHS = {"SiglipTokenizer": 64} | dict.fromkeys(_GEMMA, 64)
_LARGEST_CONTEXT_LENGTH = 1 << 20  # transformers writes 10^30 for no limit


class _Files:
    """Files of a tokenizer by their usual names, with the parsed configurations."""

    def __init__(self, paths: Mapping[str, Path]):
        self.paths = paths
        self.model = self.json(_MODEL_CONFIG)
        special_map, config = self.json(_SPECIAL_MAP), self.json(_CONFIG)
        self.config = {**special_map, **config}
        self.names = role_names(self.config)
        # Added tokens are separated into those with an id in the files, and those without.
        added = self.json(ADDED_TOKENS_NAME)
        self.declared, self.extra = declared_tokens(config, special_map, added)
        self.text_model = _object(self.model, "text_config")
        open_clip = _object(self.json(_OPEN_CLIP_CONFIG), "model_cfg")
        self.open_clip_text = _object(open_clip, "text_cfg")
        self.open_clip_options = _object(self.open_clip_text, "tokenizer_kwargs")

    def has(self, *names: str) -> bool:
        return all(name in self.paths for name in names)

    def read(self, name: str) -> bytes:
        return read_file(self.paths[name])

    def json(self, name: str) -> dict[str, Any]:
        return parse_json(self.read(name), name) if self.has(name) else {}

    def tokenizer_class(self) -> str:
        """transformers' class name without "Fast"; "" if unknown."""
        named = self.config.get("tokenizer_class")
        if not isinstance(named, str):
            kinds = (self.text_model.get("model_type"), self.model.get("model_type"))
            known = (_CLASS_OF_MODEL_TYPE.get(k) for k in kinds if isinstance(k, str))
            named = next((name for name in known if name), "")
        return named.removesuffix("Fast")

    def context_length(self, given: int | None, name: str) -> int:
        """The given length, else the configurations', else the usual one of the tokenizer class."""
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


def _object(parent: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = parent.get(key)
    return found if isinstance(found, dict) else {}


def has_tokenizer(directory: Path) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


def load_huggingface_tokenizer(
    directory: str | Path, *, context_length: int | None = None
) -> Tokenizer | None:
    """The tokenizer of a Hugging Face or open_clip directory; None if it has no such files.

    Its kind follows from tokenizer_class of tokenizer_config.json, else model_type of config.json,
    else the files: CLIPTokenizer (ours, with ftfy), SiglipTokenizer with spiece.model, Gemma (lower
    case, no BOS), XLM-RoBERTa's sentencepiece.bpe.model, BERT's vocab.txt, RoBERTa's vocab.json and
    merges.txt, and any tokenizer.json.

    Args:
      directory: holds tokenizer.json, or vocab.json with merges.txt, or vocab.txt, or spiece.model,
        tokenizer.model, sentencepiece.bpe.model, or OpenAI's merges file. An open_clip_config.json
        says how texts are cleaned, and whether CLIPA's rule holds (see `HuggingFaceTokenizer`).
      context_length: ids per row; None takes that of open_clip_config.json, model_max_length of
        tokenizer_config.json, or the class's default.

    Raises:
      UserError: a file is damaged, or files do not match; the message names it.
    """
    folder = Path(directory)
    if not has_tokenizer(folder):
        return None
    names = (*_TOKENIZER_FILES, MERGES_FILE_NAME, *_CONFIG_FILES, _MODEL_CONFIG, _OPEN_CLIP_CONFIG)
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    return _load_paths(folder, paths, context_length)


def load_huggingface_file(path: Path) -> Tokenizer | None:
    """The tokenizer of one file and those that it requires, ignoring others in the folder.

    `path`: merges.txt or vocab.json, which need each other; else any .json is a tokenizer.json, and
    any .txt a vocab.txt. Raises UserError if a file is damaged or missing.
    """
    pair = (MERGES_FILE_NAME, VOCAB_FILE_NAME)
    paths = {TOKENIZER_JSON_NAME if path.suffix == ".json" else "vocab.txt": path}
    if path.name in pair:
        paths = {name: path.with_name(name) for name in pair}
    beside = {name: path.with_name(name) for name in _CONFIG_FILES}
    paths |= {name: config for name, config in beside.items() if config.is_file()}
    return _load_paths(path.parent, paths)


def _load_paths(
    folder: Path, paths: Mapping[str, Path], context_length: int | None = None
) -> Tokenizer | None:
    try:
        return _load(_Files(paths), context_length)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: its tokenizer files are damaged: {error!r}") from error


def _load(files: _Files, context_length: int | None) -> Tokenizer | None:
    name = files.tokenizer_class()
    length = files.context_length(context_length, name)
    usual = "whitespace" if files.open_clip_text.get("hf_tokenizer_name") else None
    cleaning = files.open_clip_options.get("clean", usual)
    spec = files.json(TOKENIZER_JSON_NAME) if files.has(TOKENIZER_JSON_NAME) else None
    if name == "CLIPTokenizer" or _is_clip(spec or {}):
        # This tokenizer lower-cases itself, whatever cleaning precedes it.
        cleaning = "lower" if cleaning in (None, "whitespace") else cleaning
        return _load_clip(files, spec, length, cleaning)
    lower = files.config.get("do_lower_case", True)
    if name == "SiglipTokenizer":
        cleaning = cleaning or ("siglip" if lower else "none")
        if files.has("spiece.model"):
            return _load_pieces(files, "spiece.model", length, cleaning)
    if spec is not None:
        spec = _with_lowercase(spec) if name in _GEMMA and lower else spec
        return _load_spec(files, spec, name, length, cleaning or "none")
    for piece_file in _PIECE_FILES:
        if files.has(piece_file):
            default = "lowercase" if name in _GEMMA else "none"
            return _load_pieces(files, piece_file, length, cleaning or default)
    if files.has("vocab.txt"):
        spec = wordpiece_spec(files.read("vocab.txt"), files.config, files.names)
    elif files.has(VOCAB_FILE_NAME, MERGES_FILE_NAME):
        vocabulary = read_huggingface_merges(
            files.read(VOCAB_FILE_NAME), files.read(MERGES_FILE_NAME)
        )
        if BOS_TOKEN in vocabulary.ids:
            return _load_clip(files, None, length, cleaning or "lower")
        spec = byte_level_spec(vocabulary, files.config, files.names)
    elif files.has(BPE_FILE_NAME):
        return _load_clip(files, None, length, cleaning or "lower")
    else:
        return None
    return _load_spec(files, spec, name, length, cleaning or "none")


def _is_clip(spec: dict[str, Any]) -> bool:
    """Whether a parsed `tokenizer.json` is a byte-pair vocabulary of CLIP's kind."""
    model = spec.get("model") or {}
    if model.get("end_of_word_suffix") != END_OF_PIECE or "merges" not in model:
        return False
    try:
        return BOS_TOKEN in vocabulary_of_tokenizer_json(spec).ids
    except UserError:
        return False


def _with_lowercase(spec: dict[str, Any]) -> dict[str, Any]:
    """A parsed `tokenizer.json` that lower-cases first, as SigLIP 2 does before Gemma's steps."""
    normalizer = spec.get("normalizer")
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    if any(step.get("type") == "Lowercase" for step in steps):
        return spec
    steps = [{"type": "Lowercase"}, *steps]
    return {**spec, "normalizer": {"type": "Sequence", "normalizers": steps}}


def _load_clip(
    files: _Files, spec: dict[str, Any] | None, length: int, cleaning: str
) -> ClipBpeTokenizer:
    bos, eos = files.names.get("bos", BOS_TOKEN), files.names.get("eos", EOS_TOKEN)
    vocab: bytes | None = None
    if files.has(VOCAB_FILE_NAME, MERGES_FILE_NAME):
        vocab, merges = files.read(VOCAB_FILE_NAME), files.read(MERGES_FILE_NAME)
        vocabulary = read_huggingface_merges(vocab, merges)
    elif spec is not None:
        vocabulary = vocabulary_of_tokenizer_json(spec, (bos, eos))
        vocab, merges = write_huggingface_merges(vocabulary)
    elif files.has(BPE_FILE_NAME):
        merges = find_bpe_file(files.paths[BPE_FILE_NAME]).read_bytes()
        vocabulary = read_openai_merges(merges)
    else:
        raise UserError(
            f"a CLIPTokenizer without its files: looked for {TOKENIZER_JSON_NAME}, "
            f"{VOCAB_FILE_NAME} with {MERGES_FILE_NAME}, and {BPE_FILE_NAME}"
        )
    added = _added_to_clip(files, spec, vocabulary, bos, eos)
    ids = {**vocabulary.ids, **{token["content"]: token["id"] for token in added}}
    pad = files.names.get("pad", eos)
    # open_clip pads with 0, unless it reads the tokenizer files beside its weights.
    zero = files.open_clip_text and not (added and files.open_clip_text.get("hf_tokenizer_name"))
    return ClipBpeTokenizer(
        merges,
        length,
        cleaning=cleaning,
        vocab=vocab,
        pad_id=0 if zero or vocab is None else ids.get(pad, ids.get(eos, 0)),
        bos_token=bos,
        eos_token=eos,
        added_tokens=added,
    )


def _added_to_clip(
    files: _Files, spec: dict[str, Any] | None, vocabulary: BpeVocabulary, bos: str, eos: str
) -> list[AddedToken]:
    """The tokens that a user added to a CLIP vocabulary, with their ids."""
    structure = {bos, eos} | {name for name in files.names.values() if name in vocabulary.ids}
    extra = [token for token in files.extra if token["content"] not in structure]
    if spec is None:
        if not files.declared and not extra:
            return []
        spec = clip_spec(vocabulary, bos, eos)
    added = with_tokens(spec, files.declared, extra).get("added_tokens") or ()
    return [token for token in added if token["content"] not in structure]


def _load_pieces(files: _Files, name: str, length: int, cleaning: str) -> SentencePieceTokenizer:
    fairseq = name == "sentencepiece.bpe.model"
    options: Any = {"add_bos": fairseq, "fairseq_ids": fairseq}
    make = partial(SentencePieceTokenizer, files.read(name), length, cleaning, **options)
    plain = make(pad_id=1 if fairseq else 0)
    is_siglip = files.tokenizer_class() == "SiglipTokenizer"
    added = _added_to_pieces(files, plain, is_siglip)
    pad = files.names.get("pad", "</s>" if is_siglip else None)
    pad_id: int | None = plain.pad_id
    if not fairseq and pad is not None:
        of_added = {token["content"]: token["id"] for token in added}
        pad_id = of_added.get(pad, plain.find_piece(pad))
        if pad_id is None:
            raise UserError(f"this SentencePiece model has no piece {pad!r}")
    return make(pad_id=pad_id, added_tokens=added)


def _added_to_pieces(
    files: _Files, tokenizer: SentencePieceTokenizer, is_siglip: bool
) -> list[AddedToken]:
    """The tokens that a user added to a SentencePiece model, with their ids."""
    declared = {token["content"]: token for token in files.declared}
    if is_siglip:
        for token in files.json(TOKENIZER_JSON_NAME).get("added_tokens") or ():
            declared.setdefault(token["content"], token)
    marks = {*files.names.values(), *tokenizer.marks()}
    pieces = tokenizer.vocab_size
    added = [t for t in declared.values() if t["content"] not in marks or t["id"] >= pieces]
    following = max([pieces, *(token["id"] + 1 for token in declared.values())])
    for token in files.extra:
        if token["content"] in declared:
            continue
        index = tokenizer.find_piece(token["content"])
        if index is None:
            index, following = following, following + 1
        if index >= pieces or token["content"] not in marks:
            added.append({"id": index, **token})
    if not is_siglip and not tokenizer.fairseq_ids:
        # The model matches its own tokens itself, and T5's additional tokens occur in no text.
        others = [t["content"] for t in added if t["id"] >= pieces and not _T5.match(t["content"])]
        if others:
            raise UserError(
                f"added tokens {', '.join(others[:5])}: only a {TOKENIZER_JSON_NAME} says how they "
                "are found here; save the tokenizer with transformers' save_pretrained"
            )
        return []
    for token in added:
        found = tokenizer.find_piece(token["content"])
        if (token["id"] < pieces or found is not None) and found != token["id"]:
            raise UserError(
                f"added token {token['content']!r} has id {token['id']}, but in the SentencePiece "
                f"model {found}: the files do not belong together"
            )
    return added


def _load_spec(
    files: _Files,
    spec: dict[str, Any],
    name: str,
    length: int,
    cleaning: str,
) -> HuggingFaceTokenizer:
    spec = with_tokens(spec, files.declared, files.extra)
    options: dict[str, Any] = {}
    if files.open_clip_options.get("strip_sep_token"):
        options = {"strip_sep_token": True, "pad_id": 0}
    if name in _GEMMA:
        vocab = {t["content"]: t["id"] for t in spec.get("added_tokens") or ()}
        vocab |= spec["model"]["vocab"]
        eos = files.names.get("eos", "<eos>")
        if eos not in vocab:
            raise UserError(f"{TOKENIZER_JSON_NAME}: lacks the special token {eos!r}")
        options |= {"prefix_ids": [], "suffix_ids": [vocab[eos]]}
    content = json.dumps(spec, ensure_ascii=False).encode()
    config = json.dumps({**files.config, "tokenizer_class": name or "PreTrainedTokenizerFast"})
    return HuggingFaceTokenizer(content, length, cleaning, config=config.encode(), **options)
