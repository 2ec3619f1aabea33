"""Reader of tokenizers in Hugging Face and open_clip directories; see `huggingface_export.py`."""

import json
import re
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
from clip_jax.text.builders import byte_level_json, clip_json, wordpiece_json
from clip_jax.text.byte_pairs import (
    BOS_TOKEN,
    BPE_FILE_NAME,
    EOS_TOKEN,
    MERGES_FILE_NAME,
    VOCAB_FILE_NAME,
    BpeVocabulary,
    parse_json,
    read_huggingface_merges,
    read_openai_merges,
    vocabulary_of_tokenizer_json,
    write_huggingface_merges,
)
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.guard import is_clip_bpe, with_lowercase
from clip_jax.text.huggingface_pipeline import (
    TOKENIZER_JSON_NAME,
    HuggingFaceTokenizer,
)
from clip_jax.text.merges_file import find_bpe_file
from clip_jax.text.rows import RowTokenizer
from clip_jax.text.sentencepiece_model import SentencePieceTokenizer

__all__ = ["HuggingFaceTokenizer", "has_tokenizer", "load_huggingface_tokenizer"]

_CONFIG = "tokenizer_config.json"
_SPECIAL_MAP = "special_tokens_map.json"
# A SentencePiece model may have any of these names.
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
_T5 = re.compile(r"<extra_id_\d+>$")
_GEMMA = ("GemmaTokenizer", "Siglip2Tokenizer")
_DEFAULT_CONTEXT_LENGTHS = {"SiglipTokenizer": 64} | dict.fromkeys(_GEMMA, 64)
_LARGEST_CONTEXT_LENGTH = 1 << 20  # transformers writes 10^30 for no limit


class _Directory:
    """Files of a directory, with the parsed configurations."""

    def __init__(self, path: Path):
        self.path = path
        self.model = self.json("config.json")
        special_map, config = self.json(_SPECIAL_MAP), self.json(_CONFIG)
        self.config = {**special_map, **config}
        self.names = role_names(self.config)
        # Added tokens are separated into those with an id in the files, and those without.
        self.declared, self.extra = declared_tokens(
            config, special_map, self.json(ADDED_TOKENS_NAME)
        )
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


def has_tokenizer(directory: Path) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


def load_huggingface_tokenizer(
    directory: str | Path,
    *,
    context_length: int | None = None,
    cleaning: str | None = None,
    strip_sep_token: bool = False,
) -> RowTokenizer | None:
    """The tokenizer of a Hugging Face or open_clip directory; None if it has no such files.

    Its kind follows from tokenizer_class of tokenizer_config.json, else model_type of config.json,
    else the files: CLIPTokenizer (ours, with ftfy), SiglipTokenizer with spiece.model, Gemma (lower
    case, no BOS), XLM-RoBERTa's sentencepiece.bpe.model, BERT's vocab.txt, RoBERTa's vocab.json and
    merges.txt, and any tokenizer.json.

    Args:
      directory: holds tokenizer.json, or vocab.json with merges.txt, or vocab.txt, or spiece.model,
        tokenizer.model, sentencepiece.bpe.model, or OpenAI's merges file.
      context_length: ids per row; None takes that of open_clip_config.json, model_max_length of
      tokenizer_config.json, or the class's default.
      cleaning: a mode of `cleaning.clean_text`; None takes open_clip's if there is an
      open_clip_config.json, else transformers'.
      strip_sep_token: CLIPA's rule (see `HuggingFaceTokenizer`); open_clip_config.json may
      also set it.

    Raises:
      UserError: a file is damaged, or files do not match; the message names it.
    """
    path = Path(directory)
    if not has_tokenizer(path):
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
        # This tokenizer lower-cases itself, whatever cleaning precedes it.
        cleaning = "lower" if cleaning in (None, "whitespace") else cleaning
        return _load_clip(files, spec, length, cleaning)
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
    bos, eos = files.names.get("bos", BOS_TOKEN), files.names.get("eos", EOS_TOKEN)
    vocab: bytes | None = None
    if files.has(VOCAB_FILE_NAME) and files.has(MERGES_FILE_NAME):
        vocab, merges = files.read(VOCAB_FILE_NAME), files.read(MERGES_FILE_NAME)
        vocabulary = read_huggingface_merges(vocab, merges)
    elif spec is not None:
        vocabulary = vocabulary_of_tokenizer_json(spec, (bos, eos))
        vocab, merges = write_huggingface_merges(vocabulary)
    elif files.has(BPE_FILE_NAME):
        merges = find_bpe_file(files.path / BPE_FILE_NAME).read_bytes()
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
    pad_id = 0 if zero or vocab is None else ids.get(pad, ids.get(eos, 0))
    return ClipBpeTokenizer(
        merges,
        length,
        cleaning=cleaning,
        vocab=vocab,
        pad_id=pad_id,
        bos_token=bos,
        eos_token=eos,
        added_tokens=added,
    )


def _added_to_clip(
    files: _Directory,
    spec: dict[str, Any] | None,
    vocabulary: BpeVocabulary,
    bos: str,
    eos: str,
) -> list[AddedToken]:
    """The tokens that a user added to a CLIP vocabulary, with their ids."""
    structure = {bos, eos} | {name for name in files.names.values() if name in vocabulary.ids}
    extra = [token for token in files.extra if token["content"] not in structure]
    if spec is None:
        if not files.declared and not extra:
            return []
        spec = json.loads(clip_json(vocabulary, bos, eos))
    added = with_tokens(spec, files.declared, extra).get("added_tokens") or ()
    return [token for token in added if token["content"] not in structure]


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
    added = _added_to_pieces(files, tokenizer, is_siglip)
    of_added = {token["content"]: token["id"] for token in added}
    pad_id = tokenizer.pad_id
    if not fairseq and pad is not None:
        pad_id = of_added[pad] if pad in of_added else tokenizer.piece_id(pad)
    return SentencePieceTokenizer(
        model,
        length,
        cleaning,
        add_bos=fairseq,
        pad_id=pad_id,
        fairseq_ids=fairseq,
        added_tokens=added,
    )


def _added_to_pieces(
    files: _Directory, tokenizer: SentencePieceTokenizer, is_siglip: bool
) -> list[AddedToken]:
    """The tokens that a user added to a SentencePiece model, with their ids."""
    declared, extra = files.declared, files.extra
    if is_siglip and files.has(TOKENIZER_JSON_NAME):
        known = {token["content"] for token in declared}
        listed = files.json(TOKENIZER_JSON_NAME).get("added_tokens") or ()
        declared = declared + [token for token in listed if token["content"] not in known]
        known = {token["content"] for token in declared}
        extra = [token for token in extra if token["content"] not in known]
    marks = {*files.names.values(), *tokenizer.marks}
    pieces = tokenizer.vocab_size
    added = [t for t in declared if t["content"] not in marks or t["id"] >= pieces]
    following = max([pieces, *(token["id"] + 1 for token in declared)])
    for token in extra:
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


def _load_json(
    files: _Directory,
    spec: dict[str, Any],
    name: str,
    length: int,
    cleaning: str,
    strip_sep_token: bool,
) -> HuggingFaceTokenizer:
    spec = with_tokens(spec, files.declared, files.extra)
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
