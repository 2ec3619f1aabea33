"""SentencePiece tokenizers: training from captions, and use of any `.model` file.

Source: Kudo 2018 (unigram language model); SigLIP and SigLIP 2 use such vocabularies.
"""

import io
import itertools
import logging
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import sentencepiece

from clip_jax.errors import UserError
from clip_jax.text.added_tokens import PythonSplitter, TokenSplitter
from clip_jax.text.cleaning import check_cleaning, clean_text
from clip_jax.text.rows import RowTokenizer, id_bytes

logger = logging.getLogger(__name__)

MODEL_FILE_NAME = "tokenizer.model"
# The reserved pieces are pad, unk, EOS and one per byte.
_NUM_RESERVED_PIECES = 3 + 256
# SentencePiece drops longer lines (4,192 bytes); rows of ids are far shorter anyway.
_MAX_TRAINING_CHARACTERS = 1000
_FAIRSEQ_IDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
_SPACE = "▁"  # as written in the models
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MIN_VOCAB_SIZE = _NUM_RESERVED_PIECES + 16


class SentencePieceTokenizer(RowTokenizer):
    """A SentencePiece model: texts -> int32 (N, context_length): [BOS,] ids, EOS, padding.

    The name of a control symbol ("</s>") is ordinary text in a caption; `special_strings="parse"`
    gives its id, as in transformers.

    Args:
      model: content of a SentencePiece `.model` file.
      context_length: ids per row, BOS and EOS included.
      cleaning: a mode of `clip_jax.text.cleaning.clean_text`, applied before the model.
      add_bos: puts the BOS id first.
      pad_id: None takes the model's; SigLIP pads with its EOS id.
      truncate: cuts longer texts, keeping EOS as last id; otherwise they raise UserError.
      special_strings: "encode" them as text or "parse" them into the special ids.
      fairseq_ids: numbers pieces like XLM-RoBERTa: 0 BOS, 1 padding, 2 EOS, 3 unknown, then the
      model's pieces from the fourth on, one higher than in the model, and a mask id last.
      added_tokens: tokens that a user added (see `added_tokens.py`), matched as in transformers'
      SiglipTokenizer, or with `fairseq_ids` XLMRobertaTokenizer: before SigLIP's own cleaning,
      after any other. The one of `pad_id` stays text.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        context_length: int = 64,
        cleaning: str = "lower",
        add_bos: bool = False,
        pad_id: int | None = None,
        truncate: bool = False,
        special_strings: str = "encode",
        fairseq_ids: bool = False,
        added_tokens: Sequence[Mapping[str, Any]] = (),
    ):
        super().__init__(context_length, cleaning, truncate, special_strings)
        self._processor = processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"{MODEL_FILE_NAME} is not a SentencePiece model: {error}") from error
        if not loaded or processor.vocab_size() == 0:
            raise UserError(f"{MODEL_FILE_NAME} is not a SentencePiece model")
        self.add_bos = add_bos
        self.fairseq_ids = fairseq_ids
        self.model = model
        self._pad_option = pad_id
        self.unk_id: int = processor.unk_id()
        self.vocab_size: int = processor.vocab_size() + (2 if fairseq_ids else 0)
        self.added_tokens = [dict(token) for token in added_tokens]
        self.vocab_size = max(self.vocab_size, *(t["id"] + 1 for t in self.added_tokens), 0)
        bos, pad, eos = processor.bos_id(), processor.pad_id(), processor.eos_id()
        if fairseq_ids:
            bos, pad, eos = 0, 1, 2
        self.eos_id = self._required_id("eos_id", eos)
        self.bos_id = self._required_id("bos_id", bos) if add_bos else None
        self.pad_id = self._required_id("pad_id", pad if pad_id is None else pad_id)
        self._prefix = () if self.bos_id is None else (self.bos_id,)
        self._suffix = (self.eos_id,)
        self._check_row()
        self._specials = {
            processor.id_to_piece(i): i
            for i in range(processor.vocab_size())
            if processor.is_control(i) or processor.is_unknown(i)
        }

        found = [
            token
            for token in self.added_tokens
            if token["id"] != self.pad_id or special_strings == "parse"
        ]
        splitter = TokenSplitter if fairseq_ids else PythonSplitter
        self._split = splitter(found) if found else None

    def _required_id(self, name: str, value: int) -> int:
        if not 0 <= value < self.vocab_size:
            raise UserError(
                f"{name}={value} is not among the {self.vocab_size} ids of this SentencePiece model"
            )
        return value

    def piece(self, index: int) -> str:
        """The name of one of the model's own ids."""
        return self._processor.id_to_piece(index)

    @property
    def marks(self) -> set[str]:
        """Names of the ids that mark a row's structure: control symbols and the unknown piece."""
        return {*self._specials, *(("<pad>", "<mask>") if self.fairseq_ids else ())}

    def find_piece(self, piece: str) -> int | None:
        """The id of a piece in the tokenizer's own numbering, or None."""
        if self.fairseq_ids and piece in _FAIRSEQ_IDS:
            return _FAIRSEQ_IDS[piece]
        found = self._processor.piece_to_id(piece)
        if self.piece(found) == piece:
            return found + 1 if self.fairseq_ids else found
        mask = self._processor.vocab_size() + 1
        return mask if self.fairseq_ids and piece == "<mask>" else None

    def piece_id(self, piece: str) -> int:
        """The model's id of a piece, such as "</s>". Raises UserError if it has none."""
        found = self._processor.piece_to_id(piece)
        if self.piece(found) != piece:
            raise UserError(f"this SentencePiece model has no piece {piece!r}")
        return found

    def _bodies(self, texts: list[str], cut: bool) -> Iterable[bytes]:
        if not texts:
            return []
        if self._split is not None:
            return [id_bytes(self._with_added(text)) for text in texts]
        if self.special_strings == "parse":
            return [id_bytes(self._renumber(self._parse(text))) for text in texts]
        cleaned = [clean_text(text, self.cleaning) for text in texts]
        # One thread is enough: data workers call this in parallel, each on its own core.
        rows = self._processor.encode(cleaned, out_type=int, num_threads=1)
        return [id_bytes(self._renumber(ids)) for ids in rows]

    def _with_added(self, text: str) -> list[int]:
        """Ids of a text, in which added tokens are matched."""
        assert self._split is not None
        own_cleaning = self.cleaning == "siglip"
        text = clean_text(text, "none" if own_cleaning else self.cleaning)
        if not self.fairseq_ids:
            text = f"{_SPACE}{text.replace(_SPACE, ' ')}"
        ids: list[int] = []
        for part in self._split(text):
            if isinstance(part, int):
                ids.append(part)
            elif self.special_strings == "parse":
                ids += self._renumber(self._parse(part))
            elif self.fairseq_ids:
                ids += self._renumber(self._processor.encode(part))
            else:
                ids += self._stretch(part)
        return ids

    def _stretch(self, text: str) -> list[int]:
        """Ids of a part of a text as in SiglipTokenizer: after an added token the first word has no
        leading space, and a piece with an added token's name is that token."""
        if self.cleaning == "siglip":
            text = text.lower().translate(_PUNCTUATION)
        words = " ".join(text.split())
        unknown = self.piece(self.unk_id)
        skipped = len(self._processor.encode(unknown))
        pieces = self._processor.encode(unknown + words, out_type=str)[skipped:]
        added = {token["content"]: token["id"] for token in self.added_tokens}
        return [added.get(piece, self._processor.piece_to_id(piece)) for piece in pieces]

    def _renumber(self, ids: list[int]) -> list[int]:
        if not self.fairseq_ids:
            return ids
        return [3 if i == self.unk_id else i + 1 for i in ids]

    def _parse(self, text: str) -> list[int]:
        """Ids of a text, in which names of special symbols become those symbols."""
        names = "|".join(map(re.escape, self._specials))
        ids: list[int] = []
        for i, part in enumerate(re.split(f"({names})", text)):
            if i % 2:
                ids.append(self._specials[part])
            else:
                ids += self._processor.encode(clean_text(part.strip(), self.cleaning))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of one text -> cleaned text up to the first EOS, without BOS and padding."""
        kept = [i for i in self._body_of(ids) if i not in (self.bos_id, self.pad_id)]
        added = {token["id"]: token["content"] for token in self.added_tokens}
        parts = [
            added[next(stretch)] if is_added else self._decode(list(stretch))
            for is_added, group in itertools.groupby(kept, added.__contains__)
            for stretch in ([iter([i]) for i in group] if is_added else [group])
        ]
        return " ".join(part for part in parts if part)

    def _decode(self, ids: list[int]) -> str:
        pieces = self._processor.vocab_size()
        if self.fairseq_ids:
            ids = [self.unk_id if i == 3 else i - 1 for i in ids if 3 <= i <= pieces]
        return self._processor.decode(ids)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {
            "add_bos": self.add_bos,
            "pad_id": self._pad_option,
            "fairseq_ids": self.fairseq_ids,
            **({"added_tokens": self.added_tokens} if self.added_tokens else {}),
        }

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(JSON-serialisable spec, {file name: content}); inverse of `tokenizer_from_files`."""
        return {"kind": self.kind, "options": self._options()}, {MODEL_FILE_NAME: self.model}

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Inverse of `to_files`."""
        return cls(files[MODEL_FILE_NAME], **spec["options"])


def train_sentencepiece(
    captions: Iterable[str],
    vocab_size: int,
    context_length: int = 64,
    cleaning: str = "lower",
) -> SentencePieceTokenizer:
    """Trains a unigram vocabulary on the distinct cleaned captions, in the order first seen.

    Equal captions in equal order give the same model, byte for byte. Ids: 0 padding, 1 unknown,
    2 EOS, then 256 bytes (which spell characters outside the vocabulary, so nothing is lost), then
    the learned pieces; there is no BOS.

    Args:
      captions: at least one must remain after cleaning; only their first 1,000 characters count.
      vocab_size: requested number of ids, including the 259 above; few captions give fewer,
        which is logged (`.vocab_size` of the result is the actual number).
      context_length: ids per row, EOS included.
      cleaning: a mode of `clip_jax.text.cleaning.clean_text`.

    Raises:
      UserError: no captions, or a vocabulary too small for the 259 reserved ids.
    """
    check_cleaning(cleaning)
    if vocab_size < _MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size={vocab_size}: accepted is >= {_MIN_VOCAB_SIZE} "
            f"({_NUM_RESERVED_PIECES} ids are reserved for padding, unknown, EOS and the bytes)"
        )
    distinct = dict.fromkeys(
        clean_text(caption, cleaning)[:_MAX_TRAINING_CHARACTERS] for caption in captions
    )
    distinct.pop("", None)
    if not distinct:
        raise UserError("no captions to train a tokenizer on: all are missing or empty")
    model = _train_unigram(list(distinct), vocab_size)
    tokenizer = SentencePieceTokenizer(model, context_length, cleaning)
    level = logging.INFO if tokenizer.vocab_size == vocab_size else logging.WARNING
    logger.log(
        level,
        "tokenizer: %d pieces (vocab_size=%d asked for) from %d distinct captions",
        tokenizer.vocab_size,
        vocab_size,
        len(distinct),
    )
    return tokenizer


def _train_unigram(captions: list[str], vocab_size: int) -> bytes:
    """Cleaned captions -> content of a `.model` file."""
    room = vocab_size - _NUM_RESERVED_PIECES
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_without_rare_characters(captions, most=room // 2)),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=2,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",  # captions are already clean
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=1,  # with more, the order of float sums would vary
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"no vocabulary of vocab_size={vocab_size} could be trained on {len(captions)} "
            f"captions: {reason}"
        ) from error
    return model.getvalue()


def _without_rare_characters(captions: list[str], most: int) -> list[str]:
    """The captions, with all but their `most` commonest characters replaced by spaces.

    Characters that training never sees are spelled in bytes. SentencePiece gives every character
    its own piece (at least 98 % of the running text), which for a few Chinese captions exceeds a
    small vocabulary.
    """
    counts = Counter(itertools.chain.from_iterable(captions))
    rare = dict.fromkeys((ord(c) for c, _ in counts.most_common()[most:]), " ")
    return [caption.translate(rare) for caption in captions] if rare else captions
